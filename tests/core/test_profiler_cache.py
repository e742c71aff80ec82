"""The cache of measurements outlives kills, other versions and broken files."""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from layerfold.errors import UsageError
from layerfold.profiler.store.cache import FILE_NAME, MeasurementCache, default_cache_path
from layerfold.profiler.store.history import CacheHistory
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.measurement import Measurement, summarise_blocks

MEASURED = Measurement(median_ms=1.5, low_ms=1.4, high_ms=1.7, spread_ms=0.1, blocks=20, runs=200, is_settled=True)


def test_a_stored_measurement_comes_back_after_reopening(tmp_path):
    with MeasurementCache(tmp_path / "new" / "c.sqlite", {"device": "cpu"}) as cache:
        assert cache.get("3x3") is None
        cache.put("3x3", MEASURED)
    with MeasurementCache(tmp_path / "new" / "c.sqlite", {"device": "cpu"}) as cache:
        assert cache.get("3x3") == MEASURED


def test_environments_do_not_share_measurements(tmp_path):
    path = tmp_path / "c.sqlite"
    with MeasurementCache(path, {"device": "cpu", "threads": 1}) as cache:
        cache.put("3x3", MEASURED)
    with MeasurementCache(path, {"device": "cpu", "threads": 2}) as cache:
        assert cache.get("3x3") is None
    with MeasurementCache(path, {"threads": 1, "device": "cpu"}) as cache:
        assert cache.get("3x3") == MEASURED


def test_rows_are_there_after_the_process_is_killed(tmp_path):
    path = tmp_path / "c.sqlite"
    script = f"""
import os, signal
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.timing.measurement import Measurement
cache = MeasurementCache({str(path)!r}, {{}})
for index in range(5):
    cache.put(f"signature {{index}}", Measurement(median_ms=index + 1.0, low_ms=1.0, high_ms=9.0, spread_ms=0.1,
                                                  blocks=1, runs=1, is_settled=False))
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL
    with MeasurementCache(path, {}) as cache:
        assert [cache.get(f"signature {index}").median_ms for index in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_corrupt_file_is_kept_aside_and_begun_anew_with_one_line(tmp_path, capsys):
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with MeasurementCache(path, {}) as cache:
        cache.put("3x3", MEASURED)
        assert cache.get("3x3") == MEASURED
    aside = list(tmp_path.glob("c.sqlite.broken-*"))
    assert len(aside) == 1
    assert aside[0].read_bytes().startswith(b"this is no database")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_of_another_schema_is_kept_aside(tmp_path, capsys):
    path = tmp_path / "c.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE something (a INTEGER)")
        other.execute("PRAGMA user_version = 99")
    other.close()
    with MeasurementCache(path, {}) as cache:
        assert cache.get("3x3") is None
    assert "schema is 99" in capsys.readouterr().err
    assert list(tmp_path.glob("c.sqlite.broken-*"))


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cache=.*cannot be written.*LAYERFOLD_CACHE"):
        MeasurementCache(tmp_path / "file" / "c.sqlite", {})
    with pytest.raises(UsageError, match="cannot be written"):
        MeasurementCache(tmp_path, {})


def test_default_place_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERFOLD_CACHE", str(tmp_path))
    assert default_cache_path() == tmp_path / FILE_NAME
    monkeypatch.delenv("LAYERFOLD_CACHE")
    assert default_cache_path().name == FILE_NAME


def test_a_row_keeps_the_summary_of_its_blocks_and_the_conditions(tmp_path):
    found = summarise_blocks([1.0, 1.1, 1.2, 9.0] * 5, runs=20, is_settled=False, disturbed=2, disturbed_ms=[3.0, 4.0])
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        cache.put("3x3", found, build_s=0.25)
        assert cache.get("3x3") == found
        (summary,) = cache.summaries(["3x3", "never measured"]).values()
    assert summary["quantiles_ms"][-1] == 9.0
    assert (summary["disturbed"], summary["build_s"]) == (2, 0.25)
    assert summary["conditions"]["seconds"] >= 0
    assert "warnings" in summary["conditions"]
    history = CacheHistory(tmp_path / "c.sqlite", {})
    assert history.summaries(["3x3"]) == {"3x3": summary}
    history.close()


def test_a_failed_build_is_remembered_with_its_reason_until_it_is_forgotten(tmp_path):
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        cache.put_failure("3x3", "no such kernel")
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        assert cache.failure("3x3") == "no such kernel"
        assert cache.failure("5x5") is None
        assert cache.open_among(["3x3"]) == []
        cache.forget_failures()
        assert cache.open_among(["3x3"]) == ["3x3"]


def test_the_report_counts_what_did_not_settle_and_the_log_has_a_line_each(tmp_path):
    unsettled = summarise_blocks([1.0, 1.1, 1.2, 9.0] * 5, runs=20, is_settled=False)
    log = io.StringIO()
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        cache.put("before", MEASURED)
    with MeasurementCache(tmp_path / "c.sqlite", {}, log=log) as cache:
        cache.get("before")
        cache.put("3x3", unsettled, build_s=0.5)
        cache.put_failure("5x5", "no such kernel")
        counts = cache.report.counts()
    assert (counts["measured"], counts["cached"], counts["failed"], counts["unsettled"]) == (1, 1, 1, 1)
    first, second = log.getvalue().splitlines()
    assert re.search(r"UNSETTLED median 1.15 ms \[.*\] .*20 blocks of 1 passes.*build 0.5 s \| 3x3$", first)
    assert second.endswith("FAILED no such kernel | 5x5")


def test_a_cache_of_schema_1_is_kept_aside_with_all_it_holds(tmp_path, capsys):
    path = tmp_path / "c.sqlite"
    with sqlite3.connect(path) as old:  # as schema 1 was written
        old.execute("CREATE TABLE measurement (environment TEXT, signature TEXT, median_ms REAL)")
        old.execute("INSERT INTO measurement VALUES ('{}', '3x3', 1.5)")
        old.execute("PRAGMA user_version = 1")
    old.close()
    for _ in range(2):  # the second finds the new one
        with MeasurementCache(path, {}) as cache:
            assert cache.get("3x3") is None
    (aside,) = tmp_path.glob("c.sqlite.broken-*")
    with sqlite3.connect(aside) as kept:
        assert kept.execute("SELECT median_ms FROM measurement").fetchall() == [(1.5,)]
    kept.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "its schema is 1, this version of layerfold writes 3" in err


def test_broken_caches_of_one_second_are_all_kept(tmp_path):
    path = tmp_path / "c.sqlite"
    for text in (b"first", b"second", b"third"):
        path.write_bytes(text * 100)
        MeasurementCache(path, {}).close()
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert {each.read_bytes()[:5] for each in tmp_path.glob("c.sqlite.broken-*")} == {b"first", b"secon", b"third"}


def test_a_history_never_makes_a_file(tmp_path):
    history = CacheHistory(tmp_path / "none" / "c.sqlite", {})
    assert not history.holds("3x3")
    assert history.seconds(Kind.ALONE) == []
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    """The kernel's own limit on the size of files stands in for the disk: the writes fail for real."""
    path = tmp_path / "c.sqlite"
    script = f"""
import resource, signal, sys
from layerfold.errors import ProfilerError
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.timing.measurement import summarise_blocks
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with MeasurementCache({str(path)!r}, {{}}) as cache:
    for index in range(2000):
        try:
            cache.put(f"signature {{index}}", summarise_blocks([index + 1.0] * 10, runs=10, is_settled=True))
        except ProfilerError as error:
            print(error, file=sys.stderr)
            print(index)
            break
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    stored = int(done.stdout)
    assert stored > 10
    assert re.fullmatch(r"cache='.*' cannot be written: .*; earlier measurements are kept: .*\n", done.stderr)
    with MeasurementCache(path, {}) as cache:
        assert [cache.get(f"signature {i}").median_ms for i in range(stored)] == [i + 1.0 for i in range(stored)]
        cache.put("with room again", MEASURED)
        assert cache.get("with room again") == MEASURED
