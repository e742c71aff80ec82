"""A cache of schema 2 gives the answers that it gave: kinds stood in signatures, ratios in fields of milliseconds."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from layerfold.profiler.store import file
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.earlier import kind_of
from layerfold.profiler.store.history import CacheHistory
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.measurement import summarise_blocks
from layerfold.profiler.timing.ratio import MeasuredRatio, Ratio

SEGMENT = "8x24x24 conv:o8,k3x3,s1x1,p1.1.1.1,d1x1,g1 act:relu"
BESIDE = f"beside neighbours: {SEGMENT} | {SEGMENT}"
PLAN = "plan 4106a10158ef847845ab4767 of network:039507b899850fea"
NAMES: dict[str, tuple[Kind, str]] = {
    SEGMENT: (Kind.ALONE, ""),
    f"{SEGMENT} (screening)": (Kind.SCREENING, ""),
    "overhead inputs:1 (screening)": (Kind.SCREENING, ""),
    "overhead inputs:2": (Kind.ALONE, ""),
    "outside network:039507b899850fea (screening)": (Kind.OUTSIDE, "039507b899850fea"),
    "outside network:039507b899850fea": (Kind.OUTSIDE, "039507b899850fea"),
    "whole network:039507b899850fea": (Kind.NETWORK, "039507b899850fea"),
    f"{BESIDE} apart": (Kind.NEIGHBOURS, ""),
    f"{BESIDE} ratio": (Kind.NEIGHBOURS_RATIO, ""),
    PLAN: (Kind.PLAN, "039507b899850fea"),
    f"{PLAN} again": (Kind.PLAN_AGAIN, "039507b899850fea"),
}
MEASURED = summarise_blocks([1.0, 1.1, 1.2] * 4, runs=12, is_settled=True)
# As version 2 wrote it, with fields that it left at their defaults.
STORED_RATIO = {
    "median_ms": 0.8,
    "low_ms": 0.79,
    "high_ms": 0.84,
    "spread_ms": 0.0,
    "blocks": 15,
    "runs": 30,
    "is_settled": False,
    "disturbed": 184,
    "median_all_ms": None,
    "outliers": 0,
    "outlier_ms": None,
    "quantiles_ms": [],
    "trend": 0.0,
}
RATIO = MeasuredRatio(
    ratio=Ratio(estimate=0.8, low=0.79, high=0.84), rounds=15, contended=184, runs=30, is_settled=False
)
_SCHEMA_2 = """
CREATE TABLE measurement (
    environment TEXT NOT NULL, signature TEXT NOT NULL,
    median_ms REAL NOT NULL, low_ms REAL NOT NULL, high_ms REAL NOT NULL, is_settled INTEGER NOT NULL,
    measured_at REAL NOT NULL, took_s REAL NOT NULL, build_s REAL, summary TEXT NOT NULL, conditions TEXT NOT NULL,
    PRIMARY KEY (environment, signature)
);
CREATE TABLE failure (
    environment TEXT NOT NULL, signature TEXT NOT NULL, reason TEXT NOT NULL, failed_at REAL NOT NULL,
    PRIMARY KEY (environment, signature)
);
CREATE TABLE claim (
    environment TEXT NOT NULL, signature TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL,
    claimed_at REAL NOT NULL, PRIMARY KEY (environment, signature)
);
PRAGMA user_version = 2;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "c.sqlite"
    with sqlite3.connect(place) as old:
        old.executescript(_SCHEMA_2)
        for number, (name, (kind, _)) in enumerate(NAMES.items()):
            m: dict[str, Any] = STORED_RATIO if kind.is_ratio else MEASURED.to_json()
            numbers = m["median_ms"], m["low_ms"], m["high_ms"], int(m["is_settled"])
            row = "{}", name, *numbers, 1e9 + number, number + 0.5, 0.25, json.dumps(m), '{"warnings": []}'
            old.execute(f"INSERT INTO measurement VALUES ({', '.join('?' * len(row))})", row)
        old.execute("INSERT INTO failure VALUES ('{}', '5x5', 'no such kernel', 1e9)")
    old.close()
    return place


def readings(cache: MeasurementCache) -> dict[str, object]:
    return {name: cache.get_ratio(name) if kind.is_ratio else cache.get(name) for name, (kind, _) in NAMES.items()}


EXPECTED = {name: RATIO if kind.is_ratio else MEASURED for name, (kind, _) in NAMES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_kind_is_read_off_an_earlier_signature(name: str) -> None:
    assert kind_of(name) == NAMES[name]


def test_earlier_cache_is_brought_up_to_date_in_place(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second finds it up to date
        with MeasurementCache(path, {}) as cache:
            assert cache.open_among([*NAMES, "5x5"]) == []
            assert readings(cache) == EXPECTED
            assert cache.failure("5x5") == "no such kernel"
            assert cache.summaries([PLAN])[PLAN]["took_s"] == list(NAMES).index(PLAN) + 0.5
    assert capsys.readouterr().err == ""
    assert not list(path.parent.glob("*.broken-*"))
    with sqlite3.connect(path) as now:
        kinds = dict.fromkeys(NAMES)
        for name, kind, network in now.execute("SELECT signature, kind, network FROM measurement"):
            kinds[name] = (kind, network)
    now.close()
    assert kinds == NAMES


def test_history_of_an_earlier_cache_knows_all_and_writes_nothing(path: Path) -> None:
    before = path.read_bytes()
    history = CacheHistory(path, {})
    assert all(history.holds(name) for name in (*NAMES, "5x5"))
    seconds = {name: number + 0.5 for number, name in enumerate(NAMES)}
    assert history.seconds(Kind.SCREENING) == [seconds[f"{SEGMENT} (screening)"], 2.5]
    assert history.seconds(Kind.ALONE) == [seconds[SEGMENT], 3.5]
    assert history.seconds(Kind.NEIGHBOURS_RATIO) == [seconds[f"{BESIDE} ratio"]]
    assert history.seconds(Kind.PLAN, "039507b899850fea") == [seconds[PLAN]]
    assert history.seconds(Kind.PLAN, "another") == []
    assert history.summaries([PLAN])[PLAN]["estimate"] == 0.8
    history.close()
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("summary", ["{", "[1]", "null", "[" * 100_000, json.dumps(STORED_RATIO | {"median_ms": "x"})])
def test_damaged_ratio_of_an_earlier_cache_is_made_again(
    summary: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(path) as old:
        old.execute("UPDATE measurement SET summary = ? WHERE signature = ?", (summary, PLAN))
    old.close()
    with MeasurementCache(path, {}) as cache:
        assert cache.open_among(list(NAMES)) == [PLAN]
        assert readings(cache) == EXPECTED | {PLAN: None}
    assert "1 measurement in it is damaged and made again; the others are kept" in capsys.readouterr().err


def test_what_can_be_read_of_a_damaged_earlier_cache_is_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE claim DROP COLUMN born")
    old.close()
    with MeasurementCache(path, {}) as cache:
        assert readings(cache) == EXPECTED
    assert f"started over with {len(NAMES)} measurements that could be read" in capsys.readouterr().err


def test_a_ratio_is_stored_and_counted_as_one(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, MeasurementCache(tmp_path / "c.sqlite", {}, log=log) as cache:
        cache.put(PLAN, RATIO, kind=Kind.PLAN, network="039507b899850fea")
        assert cache.get_ratio(PLAN) == RATIO
        assert cache.get(PLAN) is None
        counts = cache.report.counts()
    assert (counts["measured"], counts["unsettled"], counts["blocks"], counts["disturbed_blocks"]) == (1, 1, 15, 184)
    line = (tmp_path / "log").read_text()
    assert f"UNSETTLED ratio 0.8 [0.79, 0.84] +-3.12%, 15 rounds, 184 set aside | {PLAN}" in line
    assert " ms" not in line


def test_file_that_another_process_brings_up_to_date_meanwhile_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns, others = file._columns, []

    def after_another_process(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
        if not others:
            others.append(True)
            file._connect(path).close()
        return columns(connection, table)

    monkeypatch.setattr(file, "_columns", after_another_process)
    file.open_cache_file(path).close()
    assert others
    assert capsys.readouterr().err == ""
    assert not list(path.parent.glob("*broken*"))
