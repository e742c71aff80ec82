"""Claims: processes that fill one cache never measure the same, and outlive each other."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfold.profiler.store import claims
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.claims import born_at, fill
from layerfold.profiler.timing.measurement import summarise_blocks

ROOT = Path(__file__).resolve().parents[2]
MEASURED = summarise_blocks([1.0, 1.1, 1.2] * 4, runs=12, is_settled=True)

_FILL = """
import json, sys, time
from layerfold.profiler.store import claims
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.claims import fill
from layerfold.profiler.timing.measurement import summarise_blocks
measured = []
with MeasurementCache(sys.argv[1], {}) as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    def measure(signatures):
        for signature in signatures:
            measured.append(signature)
            time.sleep(0.05)
            cache.put(signature, summarise_blocks([1.0] * 10, runs=10, is_settled=True))
    fill(cache, [f"signature {i}" for i in range(40)], measure, 3)
print(json.dumps(measured))
"""
_CLAIM_AND_WAIT = """
import sys, time
from layerfold.profiler.store import claims
from layerfold.profiler.store.cache import MeasurementCache
cache = MeasurementCache(sys.argv[1], {})
print(cache.claim(["a", "b"], 2), flush=True)
time.sleep(60)
"""


def start(script: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(cache)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_two_processes_share_the_work_and_measure_nothing_twice(tmp_path):
    running = [start(_FILL, tmp_path / "c.sqlite") for _ in range(2)]
    for each in running:
        assert each.stdout.readline() == "ready\n"
    for each in running:
        each.stdin.write("go\n")
        each.stdin.flush()
    first, second = (json.loads(each.communicate(timeout=300)[0]) for each in running)
    assert first
    assert second
    assert sorted(first + second) == sorted(f"signature {i}" for i in range(40))


def test_the_claim_of_a_killed_process_lapses_and_that_of_a_living_one_does_not(tmp_path):
    path = tmp_path / "c.sqlite"
    other = start(_CLAIM_AND_WAIT, path)
    assert other.stdout.readline() == "['a', 'b']\n"
    with MeasurementCache(path, {}) as cache:
        assert cache.claim(["a", "b", "c"], 3) == ["c"]
        os.kill(other.pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while born_at(other.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cache.claim(["a", "b"], 2) == ["a", "b"]  # a zombie still, and dead all the same
    other.communicate()


def test_what_is_measured_or_failed_is_not_claimed(tmp_path):
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        cache.put("measured", MEASURED)
        cache.put_failure("refused", "no such kernel")
        assert cache.claim(["measured", "refused", "open"], 3) == ["open"]


def test_each_signature_is_said_to_be_there_once_whoever_measured_it(tmp_path):
    said = []
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        cache.put("known", MEASURED)
        cache.put_failure("refused", "no such kernel")

        def measure(signatures):
            for signature in signatures:
                cache.put(signature, MEASURED)

        fill(cache, ["a", "known", "b", "refused", "c"], measure, 2, said.append)
    assert said == ["known", "refused", "a", "b", "c"]


def test_filling_ends_at_an_error_and_gives_its_claims_up(tmp_path):
    def refuse(signatures):
        raise RuntimeError("broken")

    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache, MeasurementCache(tmp_path / "c.sqlite", {}) as other:
        with pytest.raises(RuntimeError, match="broken"):
            fill(cache, ["a"], refuse, 1)
        assert other.claim(["a"], 1) == ["a"]


def claim_of(path: Path, host: str, claimed_at: object, pid: object = 7) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT OR REPLACE INTO claim VALUES ('{}', 'a', ?, ?, '1', ?)", (host, pid, claimed_at))
    connection.close()


@pytest.mark.parametrize(
    ("host", "claimed_at", "pid"),
    [("restarted", 0.0, 7), ("restarted", 4e9, 7), ("", 1e300, 7), ("restarted", "soon", -1), ("x" * 999, 0.0, 2**62)],
)
def test_claim_of_a_dead_machine_is_named_and_taken_over_whatever_its_date(
    host: str, claimed_at: object, pid: int, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(claims, "LAPSE_S", 0.3)
    monkeypatch.setattr(claims, "_SAY_AFTER_S", 0.1)
    measured = []
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        claim_of(tmp_path / "c.sqlite", host, claimed_at, pid)

        def measure(signatures):
            measured.extend(signatures)
            for signature in signatures:
                cache.put(signature, MEASURED)

        fill(cache, ["a"], measure, 2)
    assert measured == ["a"]
    said = capsys.readouterr().err
    assert f"waiting for process {pid} on " in said
    assert max(map(len, said.splitlines())) < 400


def test_claim_that_is_renewed_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LAPSE_S", 0.2)
    path = tmp_path / "c.sqlite"
    with MeasurementCache(path, {}) as cache:
        for beat in range(8):
            claim_of(path, "elsewhere", float(beat))
            assert cache.claim(["a"], 1) == []
            time.sleep(0.1)
        time.sleep(0.3)
        assert cache.claim(["a"], 1) == ["a"]


def test_process_renews_its_claims_while_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    path = tmp_path / "c.sqlite"
    with MeasurementCache(path, {}) as cache:
        cache.claim(["a"], 1)
        seen = set()
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            with sqlite3.connect(path) as connection:
                seen.add(connection.execute("SELECT claimed_at FROM claim").fetchone()[0])
            connection.close()
            time.sleep(0.02)
    assert len(seen) >= 3
