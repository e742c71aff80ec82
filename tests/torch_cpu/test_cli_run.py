"""`layerfold export` and `layerfold run`: the files classify images as the network itself does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerfold.cli import main
from layerfold.graph import trace_network
from layerfold.merge import build_train_form, merge_network
from layerfold.merge.files import Recipe, load_form, save_form
from layerfold.models import load_model
from layerfold.solver import Solution

_MODEL = "timm:mobilenetv2_035"
_SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a merged network, its exported files, two images and labels."""
    made = tmp_path_factory.mktemp("run")
    loaded = load_model(_MODEL, num_classes=7)
    net = trace_network(loaded.module, torch.zeros(1, *_SHAPE))
    everything = [layer.index for layer in net.layers]
    solution = Solution(
        act_pos=[m for m in everything if net.has_activation(m) and m != 2], merge_pos=[m for m in everything if m != 2]
    )
    recipe = Recipe(model=_MODEL, num_classes=7, input_shape=_SHAPE, solution=solution)
    merged = merge_network(build_train_form(loaded.module, net, solution).eval())
    save_form(merged, made / "merged.safetensors", kind="deploy", recipe=recipe)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (100, 80)), ("b.jpg", (64, 64)), ("grey.png", (70, 90))):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if name == "grey.png" else "RGB").save(made / name)
    (made / "labels.txt").write_text("".join(f"name {index}\n" for index in range(7)))
    (made / "text.jpg").write_text("no image")
    assert main(["export", str(made / "merged.safetensors"), "-o", str(made / "out"), "--batch", "2"]) == 0
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["run", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("backend", ["onnxruntime", "torch", "openvino"])
def test_file_classifies_images_as_the_network_itself(folder, capsys, backend) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    # three images in a graph of batch 2: the last batch is not full
    images = [folder / name for name in ("a.png", "b.jpg", "grey.png")]
    code, out, err = run(
        capsys,
        folder / "out" / "merged.onnx",
        "--input",
        *images[:2],
        "--input",
        images[2],
        "--labels",
        folder / "labels.txt",
        "--top",
        3,
        "--backend",
        backend,
        "--json",
    )
    assert code == 0, err
    found = json.loads(out)
    assert [each["image"] for each in found["images"]] == [str(image) for image in images]

    from timm.data import create_transform

    loaded = load_model(_MODEL, num_classes=7)
    transform = create_transform(
        _SHAPE, mean=loaded.mean, std=loaded.std, interpolation=loaded.interpolation, crop_pct=loaded.crop_pct
    )
    module = load_form(folder / "merged.safetensors").module
    for image, each in zip(images, found["images"], strict=True):
        with torch.no_grad():
            expected = module(transform(Image.open(image).convert("RGB"))[None]).softmax(1)[0]
        best = expected.argsort(descending=True)[:3].tolist()
        assert [guess["index"] for guess in each["top"]] == best
        assert [guess["label"] for guess in each["top"]] == [f"name {index}" for index in best]
        np.testing.assert_allclose([guess["probability"] for guess in each["top"]], expected[best].numpy(), atol=1e-4)


def test_preparation_is_written_beside_the_file_and_can_be_replaced(folder, capsys) -> None:
    stored = json.loads((folder / "out" / "merged.onnx.json").read_text())["preprocessing"]
    loaded = load_model(_MODEL, num_classes=7)
    assert tuple(stored["mean"]) == loaded.mean
    assert stored["input_shape"] == list(_SHAPE)
    asked = [folder / "out" / "merged.onnx", "--input", folder / "a.png", "--json"]
    first, second = (
        json.loads(run(capsys, *asked, *more)[1])["images"] for more in ([], ["--mean", "0,0,0", "--std", "9,9,9"])
    )
    assert first != second


def test_table_names_classes(folder, capsys) -> None:
    code, out, err = run(
        capsys,
        folder / "out" / "merged.onnx",
        "--input",
        folder / "a.png",
        "--top",
        2,
        "--labels",
        folder / "labels.txt",
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["image", "class", "label", "probability"]
    assert len(lines) == 3
    assert "name " in lines[1]
    assert "(onnxruntime, float32)" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["out/merged.onnx", "--input", "none.png"], 2, "--image none.png: No such file or directory"),
        (["out/merged.onnx", "--input", "out"], 2, "--image out: is a folder; name the images in it, as in out/*.jpg"),
        (["out/merged.onnx", "--input", "text.jpg"], 2, "--image text.jpg: is no image that Pillow can read"),
        (["out/none.onnx", "--input", "a.png"], 2, "FILE out/none.onnx: no such file"),
        (["merged.safetensors", "--input", "a.png"], 2, "expected a name that ends in .onnx or .engine"),
        (["bare.onnx", "--input", "a.png"], 2, "no JSON beside it that says how images are prepared; give --mean"),
        (["bare.onnx", "--input", "a.png", "--mean", "0", "--std", "1"], 2, "the input has 3 channels; give 3 numbers"),
        (["broken.onnx", "--input", "a.png"], 2, "this is no ONNX model"),
        (
            ["out/merged.onnx", "--input", "a.png", "--labels", "two.txt"],
            2,
            "--labels: has 2 lines, the network 7 classes",
        ),
        (
            ["out/merged.onnx", "--input", "a.png", "--labels", "none.txt"],
            2,
            "--labels none.txt: cannot be read as text",
        ),
        (["out/merged.onnx", "--input", "a.png", "--backend", "nothing"], 2, "backend='nothing' is not known"),
        (
            ["out/merged.onnx", "--input", "a.png", "--backend", "torch", "--device", "cuda"],
            4,
            "finds no device 'cuda'",
        ),
        (["junk.engine", "--input", "a.png"], 2, "junk.engine: the engine has 4 bytes, less than its header"),
        (["built.engine", "--input", "a.png"], 4, "needs an NVIDIA GPU and its driver"),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_with_its_exit_code(folder, capsys, monkeypatch, arguments, code, words) -> None:
    if code == 4 and torch.cuda.is_available():
        pytest.skip("here the GPU is there")
    if arguments[0].endswith(".engine"):
        pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    monkeypatch.chdir(folder)
    Path("bare.onnx").write_bytes(Path("out/merged.onnx").read_bytes())
    Path("broken.onnx").write_text("junk")
    Path("junk.engine").write_text("junk")
    Path("two.txt").write_text("a\nb\n")
    if arguments[0] == "built.engine":
        from layerfold.export import build_engine

        build_engine(Path("out/merged.onnx").read_bytes(), "built.engine")
    found, out, err = run(capsys, *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert words in err


def test_export_builds_an_engine_with_log_cache_and_preparation(folder, capsys, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    capsys.readouterr()
    assert (
        main(
            [
                "export",
                str(folder / "merged.safetensors"),
                "-o",
                str(tmp_path),
                "--formats",
                "onnx,tensorrt",
                "--precision",
                "fp16",
                "--compute-capability",
                "8.6,8.9",
                "--compute-capability",
                "12.0",
                "--log",
                str(tmp_path / "build.log"),
                "--timing-cache",
                str(tmp_path / "timing"),
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)["engine"]
    facts = json.loads((tmp_path / "merged.engine.json").read_text())
    assert found == facts
    assert facts["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert facts["precision"] == "float16"
    assert facts["preprocessing"]["input_shape"] == list(_SHAPE)
    assert (tmp_path / "build.log").stat().st_size > 1000
    # An engine from the ONNX file itself, which knows how images are prepared from the JSON beside it.
    again = tmp_path / "again"
    assert main(["export", str(tmp_path / "merged.onnx"), "-o", str(again), "--formats", "tensorrt"]) == 0
    assert json.loads((again / "merged.engine.json").read_text())["preprocessing"] == facts["preprocessing"]
    assert "float32" in capsys.readouterr().out
    for arguments, words in (
        ([folder / "merged.safetensors", "--formats", "tensorrt", "--precision", "int8"], "needs images to calibrate"),
        ([tmp_path / "merged.onnx"], "is ONNX already; give --formats tensorrt"),
        ([tmp_path / "merged.onnx", "--formats", "tensorrt", "--precision", "int8"], "needs images to calibrate"),
        ([tmp_path / "merged.onnx", "--formats", "tensorrt", "--compute-capability", "9.9"], "is not supported by"),
    ):
        assert main(["export", *map(str, arguments), "-o", str(tmp_path / "bad")]) == 2
        assert words in capsys.readouterr().err
