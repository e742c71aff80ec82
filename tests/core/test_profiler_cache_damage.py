"""A damaged cache of measurements: what is good stays, what is not is made again, and a line says so."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from layerfold.errors import UsageError
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.history import CacheHistory
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.measurement import summarise_blocks

MEASURED = summarise_blocks([1.0, 1.1, 1.2] * 4, runs=12, is_settled=True)
GOOD = MEASURED.to_json()
NAMES = [f"signature {number}" for number in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        for name in NAMES:
            cache.put(name, MEASURED)
    return tmp_path / "c.sqlite"


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


ROWS: dict[str, tuple[str, object]] = {
    "no JSON": ("summary", "{"),
    "empty": ("summary", ""),
    "a list": ("summary", "[1]"),
    "null": ("summary", "null"),
    "bytes": ("summary", b"\xff\xfe"),
    "a number": ("summary", 3),
    "a field is missing": ("summary", json.dumps({name: GOOD[name] for name in GOOD if name != "runs"})),
    "NaN": ("summary", json.dumps(GOOD | {"median_ms": float("nan")})),
    "no end": ("summary", json.dumps(GOOD).replace('"median_ms": 1.1', '"median_ms": 1e400')),
    "below 0": ("summary", json.dumps(GOOD | {"median_ms": -1.0})),
    "text": ("summary", json.dumps(GOOD | {"low_ms": "1.0"})),
    "huge": ("summary", json.dumps(GOOD | {"blocks": 10**30})),
    "outside its interval": ("summary", json.dumps(GOOD | {"median_ms": 99.0})),
    "nested": ("summary", "[" * 100_000),
    "conditions": ("conditions", "{"),
    "conditions of another type": ("conditions", "7"),
    "a date as text": ("measured_at", "yesterday"),
    "seconds without end": ("took_s", 1e300),
    "no kind": ("kind", "nonsense"),
    "of a ratio": ("kind", "plan"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_damaged_row_is_made_again_and_the_others_are_kept(
    kind: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column, value = ROWS[kind]
    change(path, f"UPDATE measurement SET {column} = ? WHERE signature = ?", value, NAMES[2])
    history = CacheHistory(path, {})
    assert len(history.summaries(NAMES)) == len(NAMES) - 1
    assert all(seconds < 1e9 for seconds in history.seconds(Kind.ALONE))
    history.close()
    with MeasurementCache(path, {}) as cache:
        assert cache.open_among(NAMES) == [NAMES[2]]
        assert cache.get(NAMES[2]) is None
        assert cache.get(NAMES[3]) == MEASURED
        assert len(cache.summaries(NAMES)) == len(NAMES) - 1
    said = capsys.readouterr().err
    assert "1 measurement in it is damaged and made again; the others are kept" in said
    assert said.count("\n") == 1
    with MeasurementCache(path, {}):
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("table", ["measurement", "failure", "claim"])
def test_missing_table_is_made(table: str, path: Path) -> None:
    change(path, f"DROP TABLE {table}")
    with MeasurementCache(path, {}) as cache:
        assert cache.open_among(NAMES) == (NAMES if table == "measurement" else [])
        cache.put("new", MEASURED)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE claim DROP COLUMN born",
        "ALTER TABLE failure RENAME COLUMN reason TO cause",
        "ALTER TABLE measurement ADD COLUMN more TEXT",
        "ALTER TABLE claim ADD COLUMN more TEXT",
    ],
)
def test_table_of_other_columns_is_set_aside_and_what_can_be_read_is_kept(
    statement: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(path, statement)
    with MeasurementCache(path, {}) as cache:
        assert cache.open_among(NAMES) == []
        assert cache.get(NAMES[0]) == MEASURED
    assert f"started over with {len(NAMES)} measurements that could be read" in capsys.readouterr().err
    assert list(path.parent.glob("c.sqlite.broken-*"))


@pytest.mark.parametrize("kind", ["cut", "noise", "the head", "a page", "text"])
def test_damaged_file_is_set_aside(kind: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut":
        del content[len(content) // 2 :]
    elif kind == "noise":
        content = bytearray(os.urandom(5000))
    elif kind == "the head":
        content[:16] = b"not the database"
    elif kind == "a page":
        content[4096:8192] = os.urandom(4096)
    else:
        content = bytearray(b"hello\n" * 1000)
    path.write_bytes(content)
    history = CacheHistory(path, {})
    history.seconds(Kind.ALONE), history.summaries(NAMES), history.holds(NAMES[0])
    history.close()
    with MeasurementCache(path, {}) as cache:
        for name in cache.open_among(NAMES):
            cache.put(name, MEASURED)
        assert [cache.get(name) for name in NAMES] == [MEASURED] * len(NAMES)
    said = capsys.readouterr().err
    assert said.startswith(f"layerfold: the cache {path} is not usable (")
    assert said.count("\n") == 1
    aside = min(path.parent.glob("c.sqlite.broken-*"), key=lambda each: len(each.name))
    assert aside.read_bytes() == bytes(content)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device", "loop", "folder above is a file"])
def test_place_that_is_no_file_is_one_line(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "c.sqlite"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "link to a device":
        place.symlink_to("/dev/zero")
    elif kind == "loop":
        place.symlink_to(place.name)
    else:
        (tmp_path / "file").write_text("")
        place = tmp_path / "file" / "c.sqlite"
    with pytest.raises(UsageError, match=r"cache=.*cannot be written") as error:
        MeasurementCache(place, {})
    assert "\n" not in str(error.value)


def test_empty_file_is_a_new_cache(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"")
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        cache.put("a", MEASURED)
        assert cache.get("a") == MEASURED


@pytest.mark.parametrize("name", ["latency.csv", "solution.json", "model.onnx", "weights.safetensors", "notes.txt"])
def test_somebody_elses_file_is_no_damaged_cache(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("id,st,end,time\n" * 50)
    with pytest.raises(UsageError, match="is no cache, by name and content; name another file"):
        MeasurementCache(tmp_path / name, {})
    assert (tmp_path / name).read_text().startswith("id,st")
    assert os.listdir(tmp_path) == [name]
