"""Backends are found by entry point, ours and others'; what is missing is named with the line that installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.errors import DeviceUnavailableError, UsageError
from layerfold.profiler import backend_names, get_backend

_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("onnxruntime", "openvino", "tensorrt", "torch", "torch_tensorrt")

_PACKAGE = '''
import time
import numpy as np
from layerfold.profiler.backends import BackendBase


class SleepyBackend(BackendBase):
    """Sleeps for as long as it is told, whatever the graph."""

    name = "sleepy"
    requires = {"numpy": "numpy"}

    def __init__(self, *, sleep_ms: int = 1, **options):
        super().__init__(**options)
        self.sleep_ms = sleep_ms

    @property
    def options(self):
        return {**super().options, "sleep_ms": self.sleep_ms}

    def _compile(self, onnx_bytes):
        return Sleeper(self.sleep_ms / 1e3)


class Sleeper:
    def __init__(self, seconds):
        self.seconds = seconds

    def run(self):
        time.sleep(self.seconds)

    def infer(self, inputs):
        return [np.zeros((1, 3))]

    def close(self):
        pass


class Lacking(BackendBase):
    name = "lacking"
    requires = {"not_a_module_at_all": "some-package"}


class NoBackend:
    pass
'''
_ENTRY_POINTS = """
[layerfold.backends]
sleepy = acme_backends:SleepyBackend
lacking = acme_backends:Lacking
none = acme_backends:NoBackend
absent = acme_absent:Backend
failing = acme_failing:Backend
torch = acme_backends:SleepyBackend
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which another package that brings backends is installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "acme_backends.py").write_text(_PACKAGE)
    (folder / "acme_failing.py").write_text("raise RuntimeError('no licence')\n")
    facts = folder / "acme_backends-2.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backends\nVersion: 2.1\n")
    (facts / "entry_points.txt").write_text(_ENTRY_POINTS)
    return folder


def _layerfold(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(_ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "layerfold", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_layerfolds_own_backends_are_registered_as_pyproject_says() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["entry-points"]["layerfold.backends"]
    assert tuple(sorted(declared)) == _OURS
    registered = {entry.name: entry.value for entry in entry_points(group="layerfold.backends")}
    assert {name: registered[name] for name in declared} == declared, "install layerfold again: pip install -e ."
    assert set(_OURS) <= set(backend_names())


def test_backends_of_another_package_are_listed_with_what_is_wrong_with_them(site: Path) -> None:
    done = _layerfold(site, "backends", "--json")
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["backends"]}
    assert (found["sleepy"]["status"], found["sleepy"]["package"]) == ("ready", "acme-backends")
    assert found["sleepy"]["options"]["sleep_ms"] == 1
    assert found["torch"]["package"] == "layerfold"  # nobody replaces one of ours
    assert found["lacking"]["status"] == "not installed"
    assert "pip install some-package" in found["lacking"]["remedy"]
    assert found["none"]["status"] == "broken"
    assert "lacks name, requires" in found["none"]["remedy"]
    assert found["absent"]["status"] == "not installed"
    assert "acme_absent" in found["absent"]["remedy"]
    assert found["failing"]["status"] == "broken"
    assert "RuntimeError: no licence; tell the makers of acme-backends" in found["failing"]["remedy"]


def test_network_is_measured_by_a_backend_of_another_package(site: Path, tmp_path: Path) -> None:
    _write_onnx(tmp_path / "small.onnx")
    done = _layerfold(
        site,
        "bench",
        str(tmp_path / "small.onnx"),
        "--backend",
        "sleepy",
        "--backend-option",
        "sleep_ms=7",
        "--cap-s",
        "0.3",
        "--quiet",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["provenance"]["options"]["sleep_ms"] == 7
    assert found["networks"][0]["median_ms"] >= 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--backend", "lacking"], 4, "needs the package some-package; install it with: pip install some-package"),
        (["--backend", "failing"], 1, "fails at import: RuntimeError: no licence"),
        (["--backend", "sleepi"], 2, "backend='sleepi' is not known; choose from absent, failing, lacking"),
        (["--backend", "sleepy", "--backend-option", "sleep=7"], 2, "does not take these options ['sleep']"),
        (["--backend", "sleepy", "--backend-option", "sleep"], 2, "give NAME=VALUE"),
        (["--backend", "sleepy", "--layout", "channels_last"], 2, "device 'cpu' of backend 'sleepy' lacks it"),
    ],
    ids=lambda value: "-".join(value[1:]) if isinstance(value, list) else None,
)
def test_bad_choice_is_one_line_with_its_exit_code(
    site: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = _layerfold(site, "bench", str(tmp_path / "none.onnx"), *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert words in done.stderr


def test_stale_installation_says_so() -> None:
    code = textwrap.dedent("""
        from layerfold import plugins
        plugins.entry_points = lambda group: ()
        from layerfold.cli import main
        raise SystemExit(main(["bench", "x.onnx"]))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "install it again, for example with: pip install -e ." in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "onnxruntme"}, "nearest: onnxruntime"),
        ({"name": "onnxruntime", "device": "gpu"}, "device='gpu' is not one of backend 'onnxruntime'; choose from cpu"),
        ({"name": "onnxruntime", "threads": 0}, r"threads=0 must be a whole number from 1 to \d+, the processors here"),
        ({"name": "onnxruntime", "threads": 4096}, r"threads=4096 must be a whole number from 1 to \d+"),
        ({"name": "onnxruntime", "thread": 1}, r"\['thread'\]"),
        ({"name": "onnxruntime", "precision": "int4"}, "precision='int4' is not known.*nearest: int8"),
        ({"name": "onnxruntime", "layout": "nhwc"}, "layout='nhwc' is not known; choose from nchw, channels_last"),
        ({"name": "onnxruntime", "layout": "channels_last"}, "device 'cpu' of backend 'onnxruntime' lacks it"),
        ({"name": "torch", "precision": "int8"}, "precision='int8': device 'cpu' of backend 'torch' lacks it"),
        ({"name": "torch", "device": "cuda", "threads": 2}, "does not compute on the processors; leave threads out"),
        ({"name": "torch", "compile_mode": "defualt"}, "nearest: default"),
    ],
)
def test_option_that_cannot_be_is_named_with_what_can(options: dict[str, object], words: str) -> None:
    options = {
        name: value for name, value in options.items() if not (name == "threads" and value == 2 and os.cpu_count() == 1)
    }
    with pytest.raises(UsageError, match=words):
        get_backend(**options)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.mark.skipif("_has_gpu()", reason="here the GPU is there")
@pytest.mark.parametrize(
    ("name", "device"), [("onnxruntime", "cuda"), ("onnxruntime", "tensorrt"), ("torch", "cuda"), ("tensorrt", None)]
)
def test_device_that_is_not_there_is_one_line_and_exit_4(
    name: str, device: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "tensorrt":
        pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    with pytest.raises(DeviceUnavailableError):
        get_backend(name, device=device)
    asked = [] if device is None else ["--device", device]
    assert main(["bench", "x.onnx", "--backend", name, *asked]) == 4
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"backend='{name}' finds no device '{device or 'cuda'}' on this machine" in captured.err


def test_missing_package_is_one_line_and_exit_4_for_each_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    for name, module, install in (
        ("openvino", "openvino", "pip install 'layerfold[openvino]'"),
        ("onnxruntime", "onnxruntime", "pip install onnxruntime"),
        ("torch_tensorrt", "torch_tensorrt", "pip install 'layerfold[torch-tensorrt]'"),
    ):
        code = (
            f"import sys\nsys.modules[{module!r}] = None\nfrom layerfold.cli import main\n"
            f"sys.exit(main(['bench', 'x.onnx', '--backend', {name!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
        assert install in done.stderr


def _write_onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    put = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [put], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
