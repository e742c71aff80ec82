"""A table is replaced without --overwrite by the run alone that wrote it, and was stopped before its journal went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfold.cli import main

_FACTORY = """
from tests.torch_cpu.small_training import images, network

def model():
    return network(dropout=0.0)

def other():
    return network(seed=1, dropout=0.0)

def data(**_):
    return images()
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a command whose table is there, and its journal still beside it."""
    monkeypatch.chdir(tmp_path)
    Path("factory.py").write_text(_FACTORY)
    given = [
        "importance",
        "factory.py:model",
        "--input",
        "3x8x8",
        "--data",
        "factory.py:data",
        "--method",
        "recalibrate",
        "-o",
        "imp.csv",
        "--quiet",
    ]
    monkeypatch.setattr("layerfold.importance.remove_journal", lambda _: None)
    assert main(given) == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert Path("imp.csv.journal").exists()
    return given


def test_the_same_run_ends_what_it_began(command: list[str]) -> None:
    before = Path("imp.csv").read_text()
    assert main(command) == 0
    assert Path("imp.csv").read_text() == before
    assert not Path("imp.csv.journal").exists()


@pytest.mark.parametrize("change", ["model", "seed", "images", "journal", "no journal of one", "table"])
def test_a_stale_journal_is_no_leave_to_replace_a_table(
    change: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    journal, sidecar = Path("imp.csv.journal"), Path("imp.csv.json")
    more = {"seed": ["--seed", "1"], "images": ["--holdout-images", "16"]}.get(change, [])
    if change == "model":
        command[1] = "factory.py:other"
    elif change == "journal":
        header, *lines = journal.read_text().splitlines(keepends=True)
        journal.write_text(json.dumps({**json.loads(header), "weights": "0" * 16}) + "\n" + "".join(lines))
    elif change == "no journal of one":
        journal.write_text("of something else\n")
    elif change == "table":
        sidecar.write_text(sidecar.read_text().replace('"model_hash": "', '"model_hash": "0'))
    kept = {path: path.read_text() for path in (Path("imp.csv"), sidecar, journal)}
    capsys.readouterr()
    assert main([*command, *more]) == 2
    assert "-o imp.csv: is there already; name another file, or add --overwrite" in capsys.readouterr().err
    assert {path: path.read_text() for path in kept} == kept
    assert main([*command, *more, "--overwrite"]) == 0
