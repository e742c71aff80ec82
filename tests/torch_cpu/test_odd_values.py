"""Odd values of arguments: one line says which argument, its value, the rule, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.cli import main
from layerfold.data._image_cache import ImageCache
from layerfold.errors import UsageError
from layerfold.models import load_model

_NEVER_READ = ["--weights", "missing.pth", "--data", "folder:missing"]
_OUTPUTS = {
    "compress": ["compress", "timm:resnet18", *_NEVER_READ, "--speedup", "1.5"],
    "demo": ["demo"],
    "export": ["export", "missing.safetensors"],
    "importance": ["importance", "timm:resnet18", *_NEVER_READ],
    "finetune": ["finetune", "timm:resnet18", *_NEVER_READ, "--solution", "missing.json"],
    "search": ["search", "timm:resnet18", "--keep-gates", "1"],
    "merge": ["merge", "missing.safetensors"],
    "profile": ["profile", "timm:resnet18"],
    "solve": ["solve", "--time-path", "missing.csv", "--imp-path", "missing.csv", "--speedup", "1.5"],
}
_FOLDERS = ("compress", "demo", "export")


@pytest.mark.parametrize("command", _OUTPUTS)
def test_an_empty_output_is_named_before_anything_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*_OUTPUTS[command], "-o", ""]) == 2
    shown = capsys.readouterr().err
    assert "-o '': names nothing to write; give a name" in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", _FOLDERS)
@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_file_for_an_output_folder_is_named_before_anything_is_read(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    assert main([*_OUTPUTS[command], "-o", place]) == 2
    assert re.search(rf"-o {place}: .*is a file, expected a folder", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("place", ["", "/dev/null", "/dev/null/inside", "file", "file/inside"])
def test_an_image_cache_that_can_be_no_folder_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=f"^cache='{place}': is no folder; give a folder .*, or off$"):
        ImageCache(place, 1)
    for fine in ("off", "new/below", "."):
        ImageCache(fine, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("onnx,,onnx", "has a comma with no format"),
        ("onnx,", "has a comma"),
        ("onnx,onnx", "names onnx twice"),
        (",", "names no format"),
        ("", "names no format"),
    ],
)
def test_formats_are_named_once_each(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "missing.safetensors", "-o", "out", "--formats", text]) == 2
    shown = capsys.readouterr().err
    assert f"--formats {text!r}: {said}" in shown


@pytest.mark.parametrize("content", [b"just some text\n", b"import torch\n", b"{}", b"0.1 0.2\n", b"\x80\x02", b"i"])
def test_a_text_file_as_a_checkpoint_is_said_in_words(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^weights={path}: not a PyTorch checkpoint.*\(.*[a-z]{{3}}.*\); save it"):
        load_model("timm:resnet18", weights=path)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_model_has_no_nearest_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", name]) == 2
    shown = capsys.readouterr().err
    assert "names no model; give timm:NAME" in shown
    assert "nearest" not in shown


def test_nearest_names_go_by_the_name_and_not_by_the_family() -> None:
    with pytest.raises(UsageError, match="nearest: timm:resnet18, "):
        load_model("resnet18")
    with pytest.raises(UsageError) as caught:
        load_model("q")
    assert "nearest" not in str(caught.value)


def test_what_is_no_train_form_is_told_where_one_comes_from() -> None:
    for value in (None, 3):
        with pytest.raises(UsageError, match=r"^student is .*, not a torch.nn.Module; give what build_train_form"):
            lf.merge_network(value)  # type: ignore[arg-type]


def test_a_program_of_torch_export_is_named_as_that() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    program = torch.export.export(model, (torch.randn(1, 3, 8, 8),))
    with pytest.raises(lf.UnsupportedGraphError, match=r"is a program of torch.export.*give the torch.nn.Module"):
        lf.trace_network(program.module(), torch.randn(1, 3, 8, 8))
