"""Every way to a merged network gives the same one, and what is shipped computes what the model does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import layerfold as lf
from layerfold.cli import main
from layerfold.errors import EquivalenceError
from layerfold.merge.files import load_form
from layerfold.pipeline.equality import batches_of, check_same, probe_images
from tests.torch_cpu.small_training import images, network

pytestmark = pytest.mark.usefixtures("measured_in_a_hurry")

_FACTORY = """
from torch import nn
from tests.torch_cpu.small_training import images, network

class Answers(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = network(dropout=0.0), change

    def forward(self, x):
        return self.change(self.inner(x))

def plain():
    return network(dropout=0.0)

def several():
    return Answers(lambda z: (z, z + 1))

def named():
    return Answers(lambda z: {"z": z, "more": [z * 2, z]})

def row():
    return Answers(lambda z: z[:, 0])

def tokens():
    return Answers(lambda z: z[:, None].expand(-1, 5, -1) * 2)

def field():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

def data(**_):
    return images()
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "factory.py").write_text(_FACTORY)
    lf.Solution(act_pos=(2,), merge_pos=(2,)).write(tmp_path / "solution.json")
    return tmp_path / "factory.py"


def test_steps_one_by_one_give_the_network_of_compress(factory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = factory.parent
    model = [f"{factory}:plain", "--input", "3x8x8"]
    data = ["--data", f"{factory}:data", "--batch-size", "16"]
    out = folder / "out"
    assert (
        main(
            [
                "compress",
                *model,
                *data,
                "--fastest",
                "--no-finetune",
                "--importance-images",
                "16",
                "--quiet",
                "--formats",
                "onnx",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    solution = ["--solution", str(out / "solution.json")]
    merge = ["merge", "--model", *model, *solution, "--json"]
    capsys.readouterr()
    assert main([*merge, *data, "-o", str(folder / "with.safetensors")]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["batch_norm"] == "recalibrated"
    assert "note: BatchNorm" not in shown.err
    whole, steps = load_file(out / "merged.safetensors"), load_file(folder / "with.safetensors")
    assert whole.keys() == steps.keys()
    assert all(torch.allclose(whole[name], steps[name], rtol=1e-5, atol=1e-6) for name in whole)
    assert load_form(out / "merged.safetensors").batch_norm == "recalibrated"

    assert main([*merge, "-o", str(folder / "without.safetensors")]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["batch_norm"] == "original"
    assert "BatchNorm statistics are the original's" in shown.err
    assert "--data" in shown.err
    left = load_file(folder / "without.safetensors")
    assert not all(torch.allclose(whole[name], left[name], rtol=1e-5, atol=1e-6) for name in whole)
    assert main(["export", str(folder / "without.safetensors"), "-o", str(folder / "exported"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["batch_norm"] == "original"
    assert "BatchNorm statistics are the original's" in shown.err

    loaded = lf.load_model(f"{factory}:plain").module.eval()
    form = lf.build_train_form(
        loaded, lf.trace_network(loaded, torch.randn(1, 3, 8, 8)), lf.Solution.read(out / "solution.json")
    )
    assert lf.recalibrate_batch_norm(form, images(), batch_size=16) > 0
    library = lf.merge_network(form.eval()).state_dict()
    assert all(torch.allclose(whole[name], library[name], rtol=1e-5, atol=1e-6) for name in whole)


@pytest.mark.parametrize("answer", ["several", "named", "row", "tokens", "field"])
def test_steps_without_scores_work_for_any_answer(
    answer: str, factory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = factory.parent
    model, solution = [f"{factory}:{answer}", "--input", "3x8x8"], ["--solution", str(folder / "solution.json")]
    merged = folder / "merged.safetensors"
    if answer in ("named", "field"):  # the others are measured in the same way
        assert main(["verify", *model, *solution, "--budget", "1000ms", "--cap-s", "0.2", "--quiet"]) == 0
    assert main(["merge", "--model", *model, *solution, "--data", f"{factory}:data", "-o", str(merged)]) == 0
    assert main(["export", str(merged), "-o", str(folder / "exported")]) == 0
    assert (folder / "exported/merged.onnx").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_budget_that_nothing_meets_may_be_changed_as_advised(factory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = factory.parent / "out"
    command = [
        "compress",
        f"{factory}:plain",
        "--input",
        "3x8x8",
        "--data",
        f"{factory}:data",
        "--batch-size",
        "16",
        "--no-finetune",
        "--importance-images",
        "16",
        "--formats",
        "onnx",
        "-o",
        str(out),
    ]
    assert main([*command, "--speedup", "50"]) == 3
    said = capsys.readouterr().err
    advised = re.search(r"--speedup (\S+) or less", said)
    asked = float(advised[1]) if advised else 0.9  # what lies outside the chains may take it all
    table = (out / "latency.csv").read_bytes()
    # A busy machine may not repeat what it measured: what is refused is then not the folder.
    assert main([*command, "--speedup", str(min(asked, 0.9))]) in (0, 3)
    said = capsys.readouterr().err
    assert "holds another run" not in said
    assert "profile: done before" in said
    assert (out / "latency.csv").read_bytes() == table
    assert json.loads((out / "run.json").read_text())["config"]["speedup"] == min(asked, 0.9)
    assert main([*command, "--speedup", "0.8"]) == 2, "now something depends on it"
    assert "holds another run (speedup was" in capsys.readouterr().err


def _scaled(change: Callable[[Tensor], Tensor], after: Callable[[Any], Any] = lambda z: z) -> nn.Module:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(dropout=0.0)

        def forward(self, x: Tensor) -> Any:
            return after(self.inner(change(x)))

    return Changed().eval()


@pytest.mark.parametrize(
    "other",
    [
        _scaled(lambda x: x / 255),
        _scaled(lambda x: x.clamp(max=1.0)),
        _scaled(lambda x: x.flip(-1)),
        _scaled(lambda x: x.relu()),
        _scaled(lambda x: x, lambda z: z * 1.01),
        _scaled(lambda x: x, lambda z: z[:, :2]),
        _scaled(lambda x: x, lambda z: z / 0),
        _scaled(lambda x: x, lambda z: (z, z)),
    ],
    ids=["scaled", "clamped", "mirrored", "one sign", "a hundredth", "fewer", "infinite", "twice"],
)
def test_another_function_is_refused_with_the_numbers(other: nn.Module) -> None:
    with pytest.raises(EquivalenceError, match=r"^it and its model: .* differ by \S+ of the largest \(at most 0.001"):
        check_same(other, network(dropout=0.0), probe_images(images()), "it and its model")


def test_rounding_is_no_other_function() -> None:
    class Cancels(nn.Module):
        """Loses all but a few digits in float32, and none that count in float64."""

        def __init__(self, order: bool) -> None:
            super().__init__()
            self.inner, self.order = network(dropout=0.0), order

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.inner(x)
            return (z + 30000.0) - 30000.0 if self.order else z

    assert check_same(Cancels(True), Cancels(False), probe_images(images()), "one and the other") > 1e-3


def test_images_compared_are_real_ones_and_noise_in_their_range() -> None:
    found = probe_images(images())
    real = torch.stack([images().split("holdout")[row][0] for row in range(3)])
    assert torch.equal(found[:3], real)
    assert float(found.min()) >= float(real.min())
    assert float(found.max()) <= float(real.max())
    assert [len(each) for each in batches_of(found, 4)] == [4, 4]
    assert torch.equal(torch.cat(list(batches_of(found, 4)))[:6], found)
