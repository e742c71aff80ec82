"""The cache of measurements outlives kills, other versions and broken files."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from layerfold.errors import UsageError
from layerfold.profiler.cache import FILE_NAME, MeasurementCache, default_cache_path
from layerfold.profiler.measure import Measurement

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
from layerfold.profiler.cache import MeasurementCache
from layerfold.profiler.measure import Measurement
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
