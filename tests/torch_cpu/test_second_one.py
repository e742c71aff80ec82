"""What can be known before any work is said before any work: the shape of the answers, what trains, the settings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerfold as lf
from layerfold.cli import main
from layerfold.data import ImageData
from layerfold.errors import DataError, UsageError
from layerfold.finetune import check_answers, check_trainable, first_images
from layerfold.graph.alone import check_alone
from layerfold.importance import WholeScores
from layerfold.options import FinetuneOptions
from layerfold.pipeline import CompressOptions
from layerfold.pipeline.preflight import check_inputs
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance
from tests.torch_cpu.small_training import images, network, train


class Answers(nn.Module):
    """The small network, with its answer made into something else."""

    def __init__(self, change: Callable[[Tensor], Any], outputs: int = 3) -> None:
        super().__init__()
        self.inner, self.change = network(outputs=outputs, dropout=0.0), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


class Named(dict[str, Any]):
    """As libraries give their outputs."""


OTHER_ANSWERS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a list": (lambda z: [z, z], r"with a list \(\[2, 3\], \[2, 3\]\).*wrap the model"),
    "a nested tuple": (lambda z: (z, (z, z)), r"with a tuple \(\[2, 3\], tuple\).*wrap the model"),
    "a dictionary of its own": (lambda z: Named(scores=z), r"with a Named \(scores: \[2, 3\]\).*wrap the model"),
    "one number per image": (lambda z: z[:, 0], r"with a tensor \[2\].*give one row per image"),
    "one number": (lambda z: z.mean(), r"with a tensor \[\].*give one row per image"),
    "one output": (lambda z: z[:, :1], r"with a tensor \[2, 1\].*make two classes"),
    "classes of a map of one pixel": (lambda z: z[:, :, None, None], r"with a tensor \[2, 3, 1, 1\].*flatten\(1\)"),
    "a volume": (lambda z: z[:, :, None, None, None], r"with a tensor \[2, 3, 1, 1, 1\].*give one row per image"),
    "tokens": (lambda z: z[:, None].expand(-1, 5, -1), r"with a tensor \[2, 5, 3\].*give one row per image"),
    "all images in one row": (lambda z: z.reshape(1, -1), r"with a tensor \[1, 6\].*give one row per image"),
    "classes": (lambda z: (z > 0).long(), r"with a tensor of int64 \[2, 3\].*before argmax"),
    "nothing": (lambda z: None, r"with a NoneType.*wrap the model"),
    "NaN": (lambda z: z / 0 * 0, "NaN or infinity"),
    "infinity": (lambda z: z.exp() * 1e38 * 1e38, "NaN or infinity"),
}


@pytest.mark.parametrize("name", OTHER_ANSWERS)
def test_answers_of_another_shape_are_named_with_what_to_do(name: str) -> None:
    change, said = OTHER_ANSWERS[name]
    with pytest.raises(UsageError, match=rf"^model: answers .*{said}") as caught:
        check_answers(Answers(change), first_images(images()))
    assert "\n" not in str(caught.value)


def _asked(model: nn.Module, data: ImageData, way: str) -> None:
    if way == "compress":
        lf.compress_network(model, data, out="never", speedup=1.5)
        return
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    if way == "importance":
        lf.estimate_importance(model, net, data, "recalibrate", progress=False)
    elif way == "finetune":
        lf.finetune_network(model, data, progress=False)
    elif way == "wholes":
        WholeScores(model, net, data)
    else:
        solution = lf.Solution(act_pos=(1, 2), merge_pos=(1, 2))
        lf.compare_solutions(model, net, {"same": solution}, data=data, progress=False)


@pytest.mark.parametrize("way", ["compress", "importance", "finetune", "wholes", "compare"])
def test_whatever_scores_or_trains_refuses_other_answers_first(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^model: answers images \[2, 3, 8, 8\] with a dict \(z: \[2, 3\]\)"):
        _asked(Answers(lambda z: {"z": z}), images(), way)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_named(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match=r"is (float64|float16|bfloat16), .*model\.float\(\)"):
        train(network().to(dtype), images())


def test_classes_of_the_data_that_the_model_does_not_know_are_counted() -> None:
    with pytest.raises(DataError, match="gives 3 classes, and the data has 5"):
        check_answers(network(outputs=3), first_images(images()), num_classes=5)
    assert check_answers(network(outputs=7), first_images(images()), num_classes=5) == 7


def _frozen(names: tuple[str, ...]) -> nn.Module:
    model = network(dropout=0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return model


PARTLY = {
    "the first conv": ("0.",),
    "all but the head": ("0.", "1.", "3.", "4."),
    "the head": ("9.",),
    "norms": ("1.", "4."),
    "one bias": ("9.bias",),
}


@pytest.mark.parametrize("name", PARTLY)
def test_partly_frozen_network_trains_only_if_somebody_says_how(name: str) -> None:
    model = _frozen(PARTLY[name])
    with pytest.raises(UsageError, match=r"^model: \d+ of 10 parameters are frozen .*--unfreeze .* or --keep-frozen"):
        check_trainable(model)
    check_trainable(model, unfreeze=True)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    train(model, images(), epochs=1)  # who calls the library has frozen them himself
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved  # but for a bias that the norm behind it takes off again
    assert not any(key.startswith(PARTLY[name]) for key in moved)


def test_wholly_frozen_network_is_refused_wherever_it_would_train(tmp_path: Path) -> None:
    model = _frozen(("",))
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    for work in (
        lambda: train(model, images()),
        lambda: lf.estimate_importance(model, net, images(), "distill", progress=False),
        lambda: lf.estimate_importance(model, net, images(), "shared", keep_frozen=True, progress=False),
        lambda: lf.compress_network(model, images(), out=tmp_path / "out", speedup=1.5),
    ):
        with pytest.raises(UsageError, match=r"10 of 10 parameters are frozen .* nothing to train; give --unfreeze"):
            work()
    assert not list(tmp_path.iterdir())
    table = lf.estimate_importance(model, net, images(), "recalibrate", progress=False)
    assert table.entries, "nothing is trained"
    model.lock = threading.Lock()  # type: ignore[assignment]  # what Python cannot copy
    trained = lf.estimate_importance(model, net, images(), "shared", unfreeze=True, batch_size=16, progress=False)
    assert trained.entries
    assert not any(parameter.requires_grad for parameter in model.parameters()), "the caller's is as it was"


def test_frozen_layers_of_a_merged_segment_stay_and_the_others_train() -> None:
    model = _frozen(("0.",))
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(2,), merge_pos=(2,)))
    frozen = [value.clone() for value in student.parameters() if not value.requires_grad]
    assert sorted(value.numel() for value in frozen) == [8, 216], "weight and bias of the first conv"
    train(student, images(), epochs=1)
    assert all(
        torch.equal(one, other)
        for one, other in zip(frozen, (value for value in student.parameters() if not value.requires_grad), strict=True)
    )
    lf.merge_network(student)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_weight_that_a_conv_derives_from_frozen_ones_is_frozen_in_its_segment(is_frozen: bool) -> None:
    model = network(dropout=0.0).eval()
    nn.utils.parametrizations.weight_norm(model[0])
    for name, parameter in model[0].named_parameters():
        parameter.requires_grad_(not is_frozen or name == "bias")
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(2,), merge_pos=(2,)))
    (weight,) = [value for value in student.parameters() if value.shape == (8, 3, 3, 3)]
    assert weight.requires_grad != is_frozen
    assert sum(not value.requires_grad for value in student.parameters()) == is_frozen


class Tied(nn.Module):
    """Two convs with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return answer


def test_tied_weights_integer_buffers_and_no_norm_train_and_merge() -> None:
    model = Tied().eval()
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(2,), merge_pos=(2,)))
    train(student, images(), teacher=model, epochs=1)
    merged, x = lf.merge_network(student), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert float((merged(x) - student(x)).abs().max()) < 1e-5


def _unlabelled() -> ImageData:
    return replace(images(), is_labelled=False, fingerprint="")


REFUSED: dict[str, tuple[dict[str, Any], Callable[[], ImageData], str]] = {
    "labels for the score": ({"importance_score": "accuracy"}, _unlabelled, "has no labels; use score='kl'"),
    "labels for the method": ({"importance_method": "shared"}, _unlabelled, "has no labels; use score='kl'"),
    "a score that the method cannot tell": (
        {"importance_method": "taylor", "importance_score": "kl"},
        images,
        "cannot tell it",
    ),
    "images to train on": ({}, lambda: replace(images(), train=None), "has no images for training"),
    "one image to train on": (
        {},
        lambda: replace(images(), train=torch.utils.data.Subset(images().train, [0])),
        "has 1 image for training",
    ),
    "one class": (
        {},
        lambda: replace(images(), holdout=torch.utils.data.Subset(images().holdout, [0, 3, 6])),
        "have one label",
    ),
    "classes": ({}, lambda: images(classes=5), "gives 3 classes, and the data has 5"),
    "a device": ({"train_device": "gpu"}, images, "must be cpu, cuda"),
    "a rate": ({"learning_rate": 1e309}, images, "must be above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_compress_says_at_once_what_is_missing(name: str, tmp_path: Path) -> None:
    settings, data, said = REFUSED[name]
    with pytest.raises((UsageError, DataError), match=said) as caught:
        lf.compress_network(
            network(), data(), out=tmp_path / "out", options=CompressOptions(speedup=1.5, **settings), progress=False
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_output_folder_that_cannot_be_written_is_named_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, said in (("file", "is a file"), ("file/inside", "cannot be written")):
        with pytest.raises(UsageError, match=said):
            lf.compress_network(network(), images(), out=tmp_path / place, speedup=1.5, progress=False)


class _TwoInputs(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.mean((2, 3)) * mask


def test_a_forward_that_needs_more_than_images_is_told_so() -> None:
    with pytest.raises(UsageError, match="'mask'; its forward must take images alone"):
        check_answers(_TwoInputs(), first_images(images()))


BATCH_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalised": lambda x: (x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1),
    "centred": lambda x: x - x.mean(0, keepdim=True),
    "scaled by the largest": lambda x: x / x.abs().amax(),
    "scaled by the norm": lambda x: x / x.norm(),
    "sorted": lambda x: x.sort(0).values,
    "BatchNorm without running statistics": nn.BatchNorm1d(3, track_running_stats=False),
}


@pytest.mark.parametrize("name", BATCH_STATISTICS)
def test_answers_that_depend_on_the_other_images_are_refused_first(name: str) -> None:
    options = CompressOptions(speedup=1.5).settled(images())
    with pytest.raises(UsageError, match="answers an image otherwise alone than beside others"):
        check_inputs(Answers(BATCH_STATISTICS[name]).eval(), images(), options)


_STEPS = {
    "importance": ["--data", "DATA", "-o", "i.csv"],
    "finetune": ["--data", "DATA", "--solution", "solution.json", "-o", "f.safetensors"],
    "search": ["--data", "DATA", "--keep-gates", "1", "-o", "s.json"],
    "verify": ["--solution", "solution.json"],
    "merge": ["--solution", "solution.json", "-o", "m.safetensors"],
    "compare": ["a=solution.json"],
    "solve": ["--time-path", "latency.csv", "--imp-path", "importance.csv", "--speedup", "1.5"],
}


@pytest.mark.parametrize("command", _STEPS)
def test_every_step_to_a_merged_network_refuses_such_a_model(
    command: str, factory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(factory.parent)
    _write_tables()
    before = sorted(factory.parent.iterdir())
    model = {"merge": ["--model"], "solve": ["--verify"]}.get(command, [])
    more = [f"{factory}:data" if each == "DATA" else each for each in _STEPS[command]]
    assert main([command, *model, f"{factory}:by_batch", "--input", "3x8x8", *more]) == 2
    shown = capsys.readouterr().err
    assert "answers an image otherwise alone than beside others" in shown
    assert sorted(factory.parent.iterdir()) == before


def test_describing_such_a_model_stays(factory: Path) -> None:
    assert main(["inspect", f"{factory}:by_batch", "--input", "3x8x8", "--brief"]) == 0


def _write_tables() -> None:
    spans = [(0, 1), (1, 2), (0, 2)]
    provenance = Provenance(
        kind="latency", input_shape=(1, 3, 8, 8), chains=((0, 2),), batch=1, fixed_ms=0.1, backend="onnxruntime"
    )
    entries = [LatencyEntry(start=start, end=end, latency_ms=1.0) for start, end in spans]
    LatencyTable(entries, provenance=provenance).write("latency.csv")
    ImportanceTable(
        [
            ImportanceEntry(start=start, end=end, start_act=1, end_act=1, importance=start - end + 1.0)
            for start, end in spans
        ]
    ).write("importance.csv")


def test_an_answer_with_a_table_beside_its_rows_passes() -> None:
    class Pyramid(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"rows": [x.mean((2, 3))], "anchors": torch.arange(8.0).view(2, 4), "size": x.shape[2]}

    check_alone(Pyramid(), torch.randn(2, 3, 4, 4))


def test_half_precision_and_several_inputs_are_held_to_it_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), (shift - shift.mean(0))

    inputs = torch.randn(2, 3, 8, 8), torch.randn(2, 5)
    for model in (Both(), Both().double(), Both().bfloat16()):
        with pytest.raises(UsageError, match="answers an image otherwise alone"):
            check_alone(model, inputs)


@pytest.mark.parametrize("change", [lambda x: x.squeeze(), lambda x: x - x.mean(-1, keepdim=True), lambda x: 1e6 * x])
def test_answers_of_each_image_by_itself_pass(change: Callable[[Tensor], Tensor]) -> None:
    check_inputs(Answers(change).eval(), images(), CompressOptions(speedup=1.5).settled(images()))


@pytest.mark.parametrize(
    "settings",
    [
        {"speedup": True},
        {"speedup": "1.5"},
        {"speedup": 10**400},
        {"margin": float("nan")},
        {"margin": 1.0},
        {"seed": -1},
        {"seed": 2**64},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"whole_plans": 10**12},
        {"alpha": float("inf")},
        {"unfreeze": "yes"},
        {"learning_rate": -0.1},
        {"learning_rate": float("nan")},
        {"finetune_epochs": -1},
        {"max_growth": 0.0},
        {"threads": True},
        {"importance_images": 0},
    ],
)
def test_settings_of_a_compression_are_numbers_within_their_bounds(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^{next(iter(settings))}=.{{1,80}}: must be") as caught:
        CompressOptions(**{"speedup": 1.5, **settings})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"epochs": True},
        {"epochs": 1.5},
        {"epochs": 10**30},
        {"steps": 0},
        {"steps": "3"},
        {"seed": -1},
        {"batch_size": None},
        {"learning_rate": float("inf")},
        {"learning_rate": 10**400},
        {"temperature": float("nan")},
        {"weight_decay": -1},
        {"mixup": "much"},
        {"ema_decay": 1.0},
        {"milestones": (0.5, float("nan"))},
    ],
)
def test_settings_of_a_training_are_numbers_within_their_bounds(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^{next(iter(settings))}=.{{1,80}}: must be"):
        FinetuneOptions(**settings)


def test_batch_larger_than_the_data_is_refused_with_the_number_of_images() -> None:
    with pytest.raises(UsageError, match=r"^batch_size=10000: the train split has 64 images"):
        train(network(), images(), batch_size=10_000)
    assert train(network(), images(), batch_size=128, epochs=1).steps == 1, "the default is fine for few"


_SUFFIXES = (".csv", ".json", ".safetensors")
_FACTORY = """
import torch
from torch import nn
from tests.torch_cpu.small_training import images, network

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network(dropout=0.0)

    def forward(self, x):
        z = self.inner(x)
        return {"z": z, "again": (z, z)}

def both():
    return Both()

class Centred(nn.Module):
    def forward(self, z):
        return z - z.mean(0, keepdim=True)

def by_batch():
    return nn.Sequential(network(dropout=0.0), Centred())

def frozen():
    return network(dropout=0.0).requires_grad_(False)

def data(**_):
    return images()
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "factory.py").write_text(_FACTORY)
    lf.Solution(act_pos=(2,), merge_pos=(2,)).write(tmp_path / "solution.json")
    return tmp_path / "factory.py"


@pytest.mark.parametrize("command", ["compress", "importance", "finetune", "search"])
@pytest.mark.parametrize(
    ("model", "said"), [("both", "with a dict (z: [2, 3], again: tuple)"), ("frozen", "10 of 10 parameters are frozen")]
)
def test_commands_say_it_in_one_line(
    command: str, model: str, said: str, factory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "compress": ["--speedup", "1.5", "-o", "out"],
        "importance": ["-o", "i.csv", "--method", "distill"],
        "finetune": ["--solution", "solution.json", "-o", "f.safetensors"],
        "search": ["--keep-gates", "1", "-o", "s.json"],
    }[command]
    folder = factory.parent
    more = [str(folder / each) if each == "out" or each.endswith(_SUFFIXES) else each for each in more]
    code = main([command, f"{factory}:{model}", "--input", "3x8x8", "--data", f"{factory}:data", "--quiet", *more])
    shown = capsys.readouterr().err
    assert code == 2
    assert said in shown
    assert shown.count("\n") == 1
    assert sorted(each.name for each in folder.iterdir() if each.is_file()) == ["factory.py", "solution.json"]
