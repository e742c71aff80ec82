"""No command replaces a result unasked, nor ever its own input, whatever the name by which it is reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.cli._output_files import only_writer
from layerfold.errors import UsageError

TIME = "id,st,end,time,stdev\n0,0,1,1.0,0\n1,1,2,1.0,0\n2,0,2,1.2,0\n"
IMP = (
    "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc\n0,0,1,1,1,0,0,0,0\n1,1,2,1,1,0,0,0,0\n"
    "2,0,2,1,1,0,0,0,-1.0\n3,0,1,1,0,0,0,0,-0.5\n4,1,2,0,1,0,0,0,-0.5\n"
)
SOLVE = ["solve", "--time-path", "time.csv", "--imp-path", "imp.csv", "--budget", "2.5"]
OUTPUTS = {
    "solution": [*SOLVE, "-o", "RESULT.json"],
    "one of several": [*SOLVE, "--budget", "1.5", "-o", "RESULT.json"],
    "frontier": [*SOLVE, "--frontier", "RESULT.csv"],
    "plot": [*SOLVE, "--plot", "RESULT.png"],
    "merged table": ["tables", "merge", "time.csv", "-o", "RESULT.csv"],
    "sidecar of a merged table": ["tables", "merge", "time.csv", "-o", "RESULT.csv"],
    "drawn table": ["tables", "plot", "time.csv", "-o", "RESULT.svg"],
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("time.csv").write_text(TIME)
    Path("imp.csv").write_text(IMP)
    return tmp_path


def there() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_result_that_is_there_stays_without_overwrite(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = OUTPUTS[kind]
    name = next(each for each in arguments if each.startswith("RESULT"))
    if kind == "one of several":
        name = "RESULT-2.json"
    if kind.startswith("sidecar"):
        name += ".json"
    Path(name).write_text("the work of weeks")
    before = there()
    assert main(arguments) == 2
    assert f"{name}: is there already; name another file, or add --overwrite" in capsys.readouterr().err
    assert there() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert Path(name).read_bytes() != b"the work of weeks"


def _symbolic(target: str, name: str) -> str:
    os.symlink(target, name)
    return name


def _hard(target: str, name: str) -> str:
    os.link(target, name)
    return name


def _roundabout(target: str, name: str) -> str:
    os.mkdir("folder")
    return f"folder/../{target}"


def _through_a_folder(target: str, name: str) -> str:
    os.symlink(".", "elsewhere")
    return f"elsewhere/{target}"


NAMES: dict[str, Callable[[str, str], str]] = {
    "itself": lambda target, name: target,
    "symbolic link": _symbolic,
    "hard link": _hard,
    "roundabout": _roundabout,
    "linked folder": _through_a_folder,
    "absolute": lambda target, name: str(Path(target).absolute()),
}


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("command", ["solve", "frontier", "merge", "drawing"])
def test_input_is_never_replaced_even_to_overwrite(command: str, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = NAMES[way]("time.csv", "alias.csv")
    arguments = {
        "solve": [*SOLVE, "-o", target],
        "frontier": [*SOLVE, "--frontier", target],
        "merge": ["tables", "merge", "time.csv", "-o", target],
        "drawing": ["tables", "plot", "time.csv", "--kind", "time", "--solution", "s.svg", "-o", "s.svg"],
    }[command]
    Path("s.svg").write_text("{}")
    assert main([*arguments, "--overwrite"]) == 2
    assert "which this command reads; name another file" in capsys.readouterr().err
    assert Path("time.csv").read_text() == TIME
    assert Path("s.svg").read_text() == "{}"


def test_sidecar_of_an_input_is_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("time.csv.json").write_text("{}")
    assert main([*SOLVE, "-o", "time.csv.json", "--overwrite"]) == 2
    assert "which this command reads" in capsys.readouterr().err
    assert Path("time.csv.json").read_text() == "{}"


@pytest.mark.parametrize(
    "outputs",
    [
        ["-o", "a.json", "--frontier", "a.json"],
        ["--plot", "a.png", "--pth", "a.png"],
        ["-o", "x.json", "--pth", "./x.json"],
        ["--pth", "f.csv", "--frontier", "sub/../f.csv"],
        ["--budget", "1.5", "-o", "s.json", "--frontier", "s-2.json"],
    ],
)
def test_two_outputs_of_one_name_are_refused(outputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("sub").mkdir()
    before = there()
    assert main([*SOLVE, *outputs]) == 2
    assert "names as well; name another file" in capsys.readouterr().err
    assert there() == before


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_output_that_is_no_file_is_refused_at_once(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    if what == "pipe":
        os.mkfifo("out.json")
    elif what == "folder":
        os.mkdir("out.json")
    else:
        os.symlink("/dev/null", "out.json")
    assert main([*SOLVE, "-o", "out.json", "--overwrite"]) == 2
    assert "-o out.json: is " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.csv", "deep/er/a.csv", "./a.csv", "a b.csv", "=a.csv"])
def test_result_is_made_by_one_process_at_a_time(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_writer(name):
        with (
            pytest.raises(UsageError, match=rf"process {os.getpid()} on .* is writing it now; wait for it"),
            only_writer(str(Path(name).absolute())),
        ):
            pass
        monkeypatch.setenv("RANK", "1")
        with only_writer(name):  # another process of the same training
            pass
        monkeypatch.delenv("RANK")
    with only_writer(name):
        pass
    assert sorted(os.listdir(here)) == ["imp.csv", "time.csv"]
