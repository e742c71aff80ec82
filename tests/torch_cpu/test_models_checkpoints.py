"""Checkpoints of trainers: the right set of weights is taken and named, and nothing of the file runs."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import os
import pathlib
import pickle  # noqa: TID251 - to write files that must be refused
import struct
import subprocess
import typing
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from layerfold.errors import UsageError
from layerfold.models import load_model
from layerfold.models._weights import take_weights
from layerfold.torch_files import load_torch_file

State = dict[str, Tensor]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


RAW: State = small_model().state_dict()
TRAINED: State = {key: value + 1 for key, value in RAW.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


def saved(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


class Phase(enum.Enum):
    LAST = "last"


class Kind(enum.IntEnum):
    MEAN = 1


@dataclasses.dataclass
class Config:
    depth: int = 3


@dataclasses.dataclass(slots=True)
class SlottedConfig:
    depth: int = 3


class Attributes(dict[str, Any]):
    pass


class Point(collections.namedtuple("Point", "x y")):
    pass


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), at=np.float32(2)),
    "numpy scalars": [np.float64(1.5), np.int32(3), np.bool_(True), np.str_("a")],
    "numpy arrays": [np.eye(3), np.arange(4, dtype=">i2"), np.array([{1}], dtype=object), np.zeros((2, 0))],
    "numpy generator": [np.random.get_state(), np.random.RandomState(3), np.random.default_rng(3)],
    "dates": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(1), datetime.date(2026, 1, 2)],
    "collections": [collections.deque([1], 3), collections.defaultdict(list, a=[1]), collections.OrderedDict(a=1)],
    "enums": {"phase": Phase.LAST, "kind": Kind.MEAN},
    "dataclasses": [Config(), SlottedConfig()],
    "a dict of the trainer's own": Attributes(a=1, b=Attributes(c=2)),
    "a named tuple": Point(1, 2),
    "a whole module": nn.Linear(2, 2),
    "an optimizer's state": torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).state_dict(),
    "settings with types": {"any": typing.Any, "of": typing.Union, "make": functools.partial(Config, depth=2)},
    "a scheduler's class": torch.optim.lr_scheduler.LambdaLR,
}


@pytest.mark.parametrize("name", BESIDE)
def test_weights_load_beside_objects_of_the_trainer_of_which_nothing_runs(tmp_path: Path, name: str) -> None:
    model = small_model()
    take_weights(model, saved(tmp_path, {"args": BESIDE[name], "state_dict": TRAINED}))
    assert all(torch.equal(value, TRAINED[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["namespace", "numpy scalars", "numpy arrays", "dates", "collections"])
def test_files_of_before_zip_archives_load_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "old.pth"
    torch.save({"args": BESIDE[name], "state_dict": TRAINED}, path, _use_new_zipfile_serialization=False)
    model = small_model()
    take_weights(model, path)
    assert torch.equal(model.state_dict()["0.weight"], TRAINED["0.weight"])


def test_numpy_numbers_are_decoded_whatever_wrote_them(tmp_path: Path) -> None:
    values = [np.float64(0.1), np.int64(-7), np.arange(6.0).reshape(2, 3).T, np.array([1, 2], dtype=">i4")]
    path = saved(tmp_path, values)
    content = path.read_bytes()
    for core in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        with zipfile.ZipFile(path) as archive:
            pickled = archive.read("checkpoint/data.pkl").replace(b"numpy._core.multiarray", core)
        loaded = load_torch_file(_rewritten(tmp_path, content, pickled))
        assert loaded[:2] == values[:2]
        for found, wanted in zip(loaded[2:], values[2:], strict=True):
            assert np.array_equal(found.value, wanted)


def _rewritten(tmp_path: Path, content: bytes, pickled: bytes) -> Path:
    """Return a checkpoint with another pickle in it."""
    source, target = tmp_path / "source.zip", tmp_path / "rewritten.pth"
    source.write_bytes(content)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else old.read(entry))
    return target


@pytest.mark.parametrize(
    ("content", "key"),
    [
        pytest.param({"net": under("module.", TRAINED), "acc": 93.1}, "net", id="net"),
        pytest.param({"params": TRAINED}, "params", id="params"),
        pytest.param({"module": TRAINED}, "module", id="module"),
        pytest.param({"a": {"b": {"weights": TRAINED}}}, "a.b.weights", id="nested"),
        pytest.param(under("_orig_mod.module.", TRAINED), "", id="compiled in parallel"),
        pytest.param(under("module._orig_mod.", TRAINED), "", id="parallel in compiled"),
        pytest.param({"state_dict": under("model._orig_mod.module.", TRAINED)}, "state_dict.model", id="all three"),
        pytest.param(
            {"state_dict": {key.replace("0.", "0._orig_mod."): value for key, value in TRAINED.items()}},
            "state_dict",
            id="a part compiled",
        ),
        pytest.param(
            {"state_dict": {**under("net.", TRAINED), "loss.weight": torch.ones(3)}}, "state_dict.net", id="lightning"
        ),
        pytest.param({"n_averaged": torch.tensor(3), **under("module.", TRAINED)}, "", id="AveragedModel"),
        pytest.param({"model": RAW, "ema": TRAINED}, "ema", id="ema"),
        pytest.param({"model": RAW, "model_ema": under("module.", TRAINED)}, "model_ema", id="model_ema"),
        pytest.param({"state_dict": RAW, "state_dict_ema": TRAINED}, "state_dict_ema", id="state_dict_ema"),
        pytest.param({"params_ema": TRAINED, "params": RAW}, "params_ema", id="params_ema"),
        pytest.param(
            {"state_dict": {**under("model.", RAW), **under("ema_model.module.", TRAINED)}},
            "state_dict.ema_model",
            id="ema among lightning's",
        ),
        pytest.param({"model": TRAINED, "ema": {"0.weight": RAW["0.weight"]}}, "model", id="ema of parameters only"),
        pytest.param({**TRAINED, "epoch": 3, "0.total_ops": torch.zeros(1)}, "", id="numbers among the weights"),
        pytest.param({"state_dict": {key: value.numpy() for key, value in TRAINED.items()}}, "state_dict", id="numpy"),
        pytest.param(
            {"last": TRAINED, "best": {key: value.clone() for key, value in TRAINED.items()}},
            "last",
            id="twice the same",
        ),
        pytest.param({"schema": RAW, "model_swa": TRAINED}, "model_swa", id="swa, and a name that holds ema"),
    ],
)
def test_the_right_weights_are_taken_and_named(tmp_path: Path, content: Any, key: str) -> None:
    model = small_model()
    taken = take_weights(model, saved(tmp_path, content))
    assert all(torch.equal(value, TRAINED[name]) for name, value in model.state_dict().items())
    assert taken.key == key
    assert bool(taken.note) or not key
    assert "\n" not in taken.note


def test_averaged_weights_that_do_not_fit_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    taken = take_weights(small_model(), saved(tmp_path, {"model": TRAINED, "ema": {"0.weight": RAW["0.weight"]}}))
    assert "'ema' does not fit ('0.bias' is missing)" in taken.note


def test_other_sets_are_named_and_can_be_chosen(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": RAW, "ema": TRAINED})
    model = small_model()
    assert "'model' would fit, too" in take_weights(model, path).note
    assert take_weights(model, path, "model").key == "model"
    assert torch.equal(model.state_dict()["0.weight"], RAW["0.weight"])
    with pytest.raises(UsageError, match=r"has no set of weights 'modle', only 'model', 'ema'.*nearest: model$"):
        take_weights(model, path, "modle")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"student": RAW, "teacher": TRAINED}, "'student', 'teacher'"),
        ({"state_dict": RAW, "best_state_dict": TRAINED}, "'state_dict', 'best_state_dict'"),
        ({"state_dict": {**under("net1.", RAW), **under("net2.", TRAINED)}}, "'state_dict.net1', 'state_dict.net2'"),
        ({"ema": RAW, "ema_slow": TRAINED, "model": RAW}, "'ema', 'ema_slow'"),
        ({**RAW, "old": TRAINED}, "those at the top of the file, 'old'"),
    ],
)
def test_several_sets_that_fit_equally_are_named_not_guessed(tmp_path: Path, content: Any, names: str) -> None:
    with pytest.raises(UsageError, match=r"fit equally, .*--weights-key") as caught:
        take_weights(small_model(), saved(tmp_path, content))
    assert names in str(caught.value)


def one_changed(key: str, change: Callable[[Tensor], Tensor]) -> State:
    return {**TRAINED, key: change(TRAINED[key])}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("0.weight", lambda value: value.to(torch.int8), "is int8, the model's is float32; quantised"),
        ("3.weight", lambda value: value.to(torch.uint8), "is uint8"),
        ("3.bias", lambda value: value > 0, "is bool"),
        ("3.bias", lambda value: value.to(torch.complex64), "is complex64"),
        ("0.weight", lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is quantised"),
        ("3.weight", lambda value: value.to_sparse(), "is sparse"),
        ("3.weight", lambda value: value.to_sparse_csr(), "is sparse"),
        ("3.weight", lambda value: value.to("meta"), "meta device"),
        ("3.weight", lambda value: value / 0, "NaN or infinite"),
        ("1.running_mean", lambda value: value * float("nan"), "4 of 4 numbers that are NaN"),
        ("0.bias", lambda value: value.double() * 1e300, "infinite as float32"),
        ("1.running_var", lambda value: -value, "negative variance"),
        ("3.weight", lambda value: torch.zeros(1).expand(10**6, 10**6), "has shape (1000000, 1000000)"),
    ],
)
def test_tensors_that_are_no_plain_weights_are_refused_by_name(
    tmp_path: Path, key: str, change: Callable[[Tensor], Tensor], says: str
) -> None:
    model = small_model()
    with pytest.raises(UsageError, match=r"^weights=[^\n]*$") as caught:
        take_weights(model, saved(tmp_path, one_changed(key, change)))
    assert repr(key) in str(caught.value)
    assert says in str(caught.value)
    assert all(torch.equal(value, RAW[name]) for name, value in model.state_dict().items()), "nothing was loaded"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_other_floating_point_types_convert(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model()
    take_weights(
        model,
        saved(
            tmp_path, {key: value.to(dtype) if value.is_floating_point() else value for key, value in TRAINED.items()}
        ),
    )
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert torch.allclose(model.state_dict()["0.weight"], TRAINED["0.weight"], rtol=0.2)


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def helper() -> None:
    """A function of a module of the user's own."""


@pytest.mark.parametrize(
    "what", ["os.mkdir", "eval", "subprocess.Popen", "getattr", "a function of the user's", "a name of a function"]
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_beside_good_weights_is_refused_and_never_runs(tmp_path: Path, what: str, is_zip: bool) -> None:
    made = tmp_path / "made-by-the-pickle"
    intruder = {
        "os.mkdir": Calls(os.mkdir, str(made)),
        "eval": Calls(eval, f"__import__('os').mkdir({str(made)!r})"),
        "subprocess.Popen": Calls(subprocess.Popen, ["mkdir", str(made)]),
        "getattr": Calls(getattr, "a", "upper"),
        "a function of the user's": Calls(helper),
        "a name of a function": helper,
    }[what]
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": TRAINED, "extra": intruder}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UsageError, match=r"^weights=[^\n]*would run code[^\n]*$"):
        take_weights(small_model(), path)
    assert not made.exists()


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def cut_in_half(path: Path) -> None:
    torch.save(TRAINED, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint/data/0", b"\0" * 99)


def a_zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint/data.pkl", b"\0" * 30_000_000)


def a_damaged_zip(path: Path) -> None:
    torch.save(TRAINED, path)
    content = bytearray(path.read_bytes())
    content[-60:-30] = b"\xff" * 30
    path.write_bytes(bytes(content))


def a_pickle_bomb(path: Path) -> None:
    torch.save({"w": torch.zeros(1), "b": Calls(bytearray, 10**15)}, path)


def a_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": TRAINED["0.weight"]}))


def deep_nesting(path: Path) -> None:
    value: Any = {}
    for _ in range(300):
        value = {"a": value}
    torch.save(value, path)


def onnx_bytes(path: Path) -> None:
    path.write_bytes(b"\x08\x07\x12\x07pytorch")


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + b'{"a":1}')


def header_longer_than_the_file(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 90_000_000) + b'{"a":1}')


def tensor_longer_than_the_file(path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000000,1000000],"data_offsets":[0,4000000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def unknown_dtype(path: Path) -> None:
    header = b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")


def gzipped(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b\x08" + b"\0" * 40)


@pytest.mark.parametrize(
    "make",
    [
        a_folder,
        a_pipe,
        a_device,
        a_loop,
        cut_in_half,
        without_its_pickle,
        a_zip_bomb,
        a_damaged_zip,
        a_pickle_bomb,
        a_plain_pickle,
        deep_nesting,
        onnx_bytes,
        huge_header,
        header_longer_than_the_file,
        tensor_longer_than_the_file,
        unknown_dtype,
        gzipped,
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.onnx"])
def test_files_that_are_no_weights_are_one_bounded_line(tmp_path: Path, make: Any, name: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UsageError, match=r"^weights=[^\n]*$") as caught:
        take_weights(small_model(), tmp_path / name)
    assert len(str(caught.value)) < len(str(tmp_path)) + 500


@pytest.mark.parametrize("part", ["data.pkl", "data/0", "data/1", "data/2", "data/3", "version"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_no_weight(tmp_path: Path, part: str, is_nested: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": TRAINED, "epoch": 3} if is_nested else TRAINED, path)
    take_weights(small_model(), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"w/{part}")
        with archive.open(entry):
            start = archive.fp.tell()  # type: ignore[union-attr]
    content[start + entry.file_size // 2] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match=f"damaged checkpoint: its part {part} is not what was written"):
        take_weights(small_model(), path)


def test_a_checkpoint_without_checksums_loads(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TRAINED, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    take_weights(small_model(), tmp_path / "w.pth")


def test_what_a_file_is_counts_not_what_it_is_called(tmp_path: Path) -> None:
    save_file(TRAINED, tmp_path / "weights.bin")
    torch.save(TRAINED, tmp_path / "weights.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        model = small_model()
        take_weights(model, tmp_path / name)
        assert torch.equal(model.state_dict()["0.weight"], TRAINED["0.weight"])


@pytest.mark.parametrize(("key", "advice"), [("3.weight", "pass num_classes=7"), ("0.weight", "another model")])
def test_number_of_classes_is_advised_for_the_classifier_only(tmp_path: Path, key: str, advice: str) -> None:
    state = {**TRAINED, key: torch.zeros(7, *TRAINED[key].shape[1:])}
    with pytest.raises(UsageError, match=advice):
        take_weights(small_model(), saved(tmp_path, state))


def test_number_of_classes_is_not_advised_where_the_factory_takes_none(tmp_path: Path) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 4)\n")
    path = saved(tmp_path, nn.Linear(3, 9).state_dict())
    with pytest.raises(UsageError, match="for a classifier of 9 classes let the factory build one"):
        load_model(f"{nets}:make", weights=path)


def test_loaded_model_says_which_weights_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from layerfold.cli import main

    nets = tmp_path / "nets.py"
    nets.write_text(
        "from torch import nn\ndef make():\n    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
        "    net.pretrained_cfg = {'input_size': (3, 8, 8)}\n    return net\n"
    )
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).state_dict()
    path = saved(tmp_path, {"model": state, "ema": {key: value + 1 for key, value in state.items()}})
    loaded = load_model(f"{nets}:make", weights=path, weights_key="model")
    assert loaded.weights_key == "model"
    assert torch.equal(loaded.module.state_dict()["0.weight"], state["0.weight"])
    assert main(["inspect", f"{nets}:make", "--weights", str(path)]) == 0
    said = capsys.readouterr().err
    assert "took 'ema'; 'model' would fit, too: --weights-key chooses" in said
    assert main(["inspect", f"{nets}:make", "--weights", str(path), "--weights-key", "model"]) == 0
    with pytest.raises(UsageError, match=r"^weights_key='ema': names a set in a weights file; give weights, too"):
        load_model(f"{nets}:make", weights_key="ema")
