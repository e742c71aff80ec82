"""A run folder whose files were damaged, edited, or are written by two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfold.errors import LayerfoldError, UsageError, WriteError
from layerfold.pipeline.run_folder import RunFolder

STEPS: dict[str, tuple[list[str], list[str]]] = {
    "trace": (["net.json"], []),
    "profile": (["latency.csv", "latency.csv.json"], ["net.json"]),
    "solve": (["solution.json"], ["latency.csv"]),
    "merge": (["merged.bin"], ["solution.json"]),
    "score": (["scores.json"], ["merged.bin"]),
    "bench": (["bench.json"], ["merged.bin", "net.json"]),
}
"""Name -> outputs, what it is made from."""


def run(path: Path, *, overwrite: bool = False, config: dict[str, Any] | None = None) -> list[str]:
    """Do all steps and return which of them were done now."""
    folder, done = RunFolder(path, config or {"a": 1}, overwrite=overwrite), []
    for name, (outputs, reads) in STEPS.items():

        def work(name: str = name, outputs: list[str] = outputs) -> dict[str, Any]:
            done.append(name)
            for output in outputs:
                folder.file(output).write_text(f"{output} as it should be\n")
            if name == "bench":
                folder.file("model.engine").write_text("only on some machines")
            return {"name": name, "value": 0.1}

        folder.step(
            name,
            outputs,
            work,
            reads=reads,
            perhaps=["model.engine"] if name == "bench" else (),
            is_repeatable=name == "trace",
        )
    folder.check_whole()
    return done


def damaged(text: bytes) -> dict[str, bytes]:
    return {
        "cut": text[: len(text) // 2],
        "empty": b"",
        "one bit": bytes([text[0] ^ 1]) + text[1:],
        "longer": text + b"\n",
    }


@pytest.mark.parametrize("kind", ["cut", "empty", "one bit", "longer"])
@pytest.mark.parametrize("output", [each for outputs, _ in STEPS.values() for each in outputs])
def test_damaged_output_is_made_again_with_all_that_depends_on_it(
    output: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == list(STEPS)
    assert run(tmp_path) == []
    good = (tmp_path / output).read_bytes()
    (tmp_path / output).write_bytes(damaged(good)[kind])
    first = next(name for name, (outputs, _) in STEPS.items() if output in outputs)
    # Tracing gives the same again, so that nothing else need be done.
    depends = {
        "trace": ["trace"],
        "profile": ["profile", "solve", "merge", "score", "bench"],
        "solve": ["solve", "merge", "score", "bench"],
        "merge": ["merge", "score", "bench"],
        "score": ["score"],
        "bench": ["bench"],
    }[first]
    assert run(tmp_path) == depends
    assert (tmp_path / output).read_bytes() == good
    said = capsys.readouterr().err
    assert f"{output} was changed since it was written: step {first!r} is done again" in said
    assert said.count("\n") == 1
    assert run(tmp_path) == []


@pytest.mark.parametrize("how", ["unlink", "folder", "link to nothing", "edited time alone"])
def test_output_that_is_no_file_is_made_again_and_a_new_date_is_no_change(how: str, tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "model.engine"
    if how == "edited time alone":
        os.utime(path, (1, 1))
        assert run(tmp_path) == []
        return
    path.unlink()
    if how == "link to nothing":
        path.symlink_to("nowhere")
    elif how == "folder":
        path.mkdir()
        with pytest.raises(WriteError, match=r"model\.engine: cannot be removed .*move it away"):
            run(tmp_path)
        path.rmdir()
    assert run(tmp_path) == ["bench"]
    assert path.read_text() == "only on some machines"


def as_old(manifest: dict[str, Any]) -> None:
    for step in manifest["steps"].values():
        for name in ("files", "reads", "check"):
            del step[name]


def test_step_whose_name_was_changed_is_done_again_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    manifest = tmp_path / "run.json"
    manifest.write_text(manifest.read_text().replace('"merge": {', '"mesge": {'))
    assert "merge" in run(tmp_path)
    assert "run.json: 'mesge' is no step of this run; forgotten" in capsys.readouterr().err
    assert "mesge" not in manifest.read_text()
    assert run(tmp_path) == []


def test_manifest_without_hashes_loads_and_gets_them(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "run.json"
    manifest = json.loads(path.read_text())
    as_old(manifest)
    path.write_text(json.dumps(manifest))
    assert run(tmp_path) == []
    assert set(json.loads(path.read_text())["steps"]["bench"]["files"]) == {"bench.json", "model.engine"}
    (tmp_path / "solution.json").write_text("edited")
    assert run(tmp_path) == ["solve", "merge", "score", "bench"]


@pytest.mark.parametrize("name", ["trace", "solve", "bench"])
def test_result_edited_in_the_manifest_is_made_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    path = tmp_path / "run.json"
    manifest = json.loads(path.read_text())
    manifest["steps"][name]["result"]["value"] = 0.2
    path.write_text(json.dumps(manifest))
    assert run(tmp_path)[0] == name
    assert "what run.json says of it was changed" in capsys.readouterr().err


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda m: [m],
    "no steps": lambda m: {"config": m["config"]},
    "steps as text": lambda m: m | {"steps": "all"},
    "seconds as text": lambda m: m["steps"]["solve"].update(seconds="12"),
    "seconds beyond float": lambda m: m["steps"]["solve"].update(seconds=10**400),
    "seconds below 0": lambda m: m["steps"]["solve"].update(seconds=-1),
    "not a number": lambda m: m["steps"]["solve"].update(seconds=float("nan")),
    "outputs of another type": lambda m: m["steps"]["solve"].update(outputs=[1]),
    "an output elsewhere": lambda m: m["steps"]["solve"].update(outputs=["../thesis.tex"]),
    "an output upwards": lambda m: m["steps"]["solve"].update(outputs=[".."]),
    "scratch elsewhere": lambda m: m.update(scratch=["/etc/passwd"]),
    "nothing for a result": lambda m: m["steps"]["solve"].update(result=None),
    "another schema": lambda m: m.update(schema=7),
    "huge size": lambda m: m["steps"]["solve"]["files"]["solution.json"].update(bytes=10**30),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_manifest_is_one_line_that_names_file_and_field(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / "run.json"
    run(path.parent)
    manifest = json.loads(path.read_text())
    changed = BROKEN[kind](manifest)
    path.write_text(json.dumps(manifest if changed is None else changed))
    with pytest.raises(UsageError, match=r"run\.json: .*; name another folder, or start again .*--overwrite") as error:
        run(path.parent)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert run(path.parent, overwrite=True) == list(STEPS)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nonsense", b'{"config": {}, "config":'])
def test_manifest_that_is_no_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"run\.json: is no JSON .*--overwrite"):
        run(tmp_path)


@pytest.mark.parametrize("what", ["folder", "run.json", "solution.json"])
def test_folder_removed_in_mid_run_is_not_called_done(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = RunFolder(out, {"a": 1})

    def write(*names: str) -> dict[str, Any]:
        for name in names:
            folder.write_json(name, {})
        return {}

    folder.step("solve", ["solution.json"], lambda: write("solution.json"))
    shutil.rmtree(out) if what == "folder" else (out / what).unlink()

    def go_on() -> None:
        folder.step("merge", ["merged.bin"], lambda: write("merged.bin"))
        folder.check_whole()

    with pytest.raises(WriteError, match=r"is gone; was the folder removed"):
        go_on()


def test_two_runs_in_one_folder_are_refused_while_the_first_lives(tmp_path: Path) -> None:
    with RunFolder.only_one(tmp_path / "out"):
        run(tmp_path / "out")
        with (
            pytest.raises(UsageError, match=rf"process {os.getpid()} on .* is writing it now; wait for it"),
            RunFolder.only_one(tmp_path / "out"),
        ):
            pass
    with RunFolder.only_one(tmp_path / "out"):
        assert run(tmp_path / "out") == []
    assert "run.lock" not in os.listdir(tmp_path / "out")


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom layerfold.files import held\n"
        "with held(sys.argv[1], subject='-o x', remedy='wait'):\n    print(flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run.lock")], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(UsageError, match=f"process {child.pid} on"), RunFolder.only_one(tmp_path):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert (tmp_path / "run.lock").exists()
    until = time.monotonic() + 10
    while True:
        try:
            with RunFolder.only_one(tmp_path):
                run(tmp_path)
            break
        except LayerfoldError:
            assert time.monotonic() < until
    assert run(tmp_path) == []


def test_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a file"), RunFolder.only_one(__file__):
        pass
    with pytest.raises(ZeroDivisionError), RunFolder.only_one(tmp_path / "new"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match=r"--output .*cannot be written \(Not a directory\); name another folder"),
        RunFolder.only_one(tmp_path / "file" / "out"),
    ):
        pass


SETTINGS = {"model": "m", "data": "d", "speedup": 2.0, "rate": 0.1, "formats": None}
FIRST_USES = {"data": "importance", "speedup": "solve", "rate": "solve", "formats": "export"}
SETTLED_BY = ("trace", "profile", "importance", "solve", "export")


@pytest.mark.parametrize(
    ("done", "may_change"),
    [
        (0, {"model", "data", "speedup", "rate", "formats"}),
        (1, {"data", "speedup", "rate", "formats"}),
        (2, {"data", "speedup", "rate", "formats"}),
        (3, {"speedup", "rate", "formats"}),
        (4, {"formats"}),
        (5, set()),
    ],
)
def test_setting_may_change_until_something_that_depends_on_it_is_done(
    done: int, may_change: set[str], tmp_path: Path
) -> None:
    first = RunFolder(tmp_path / "out", SETTINGS, first_uses=FIRST_USES)
    for name in SETTLED_BY[:done]:
        first.step(name, [f"{name}.txt"], lambda name=name: (tmp_path / f"out/{name}.txt").write_text(name) and {})
    for name in SETTINGS:
        other = {**SETTINGS, name: "other"}
        if name not in may_change:
            with pytest.raises(UsageError, match=f"holds another run \\({name} was"):
                RunFolder(tmp_path / "out", other, first_uses=FIRST_USES)
            continue
        again = RunFolder(tmp_path / "out", other, first_uses=FIRST_USES)
        resumed = [again.step(each, [f"{each}.txt"], dict).is_resumed for each in SETTLED_BY[:done]]
        assert resumed == [True] * done
        RunFolder(tmp_path / "out", SETTINGS, first_uses=FIRST_USES)
    assert all((tmp_path / f"out/{name}.txt").read_text() == name for name in SETTLED_BY[:done])
