"""``layerfold profile`` end to end on a small real network: reports, bad caches, failed builds, several processes."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.errors import ProfilerError
from layerfold.profiler.backends.onnxruntime import OnnxRuntimeBackend
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.tables import LatencyTable

ROOT = Path(__file__).resolve().parents[2]
_FILE = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    layers, width = [], 3
    for out in (8, 12, 16, 20):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)).eval()
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "own.py").write_text(_FILE)
    return [
        "profile",
        f"{tmp_path / 'own.py'}:net",
        "--input",
        "3x16x16",
        "--method",
        "isolated",
        "--cap-s",
        "0.02",
        "--quiet",
        "--cache",
        str(tmp_path / "c.sqlite"),
        "--json",
    ]


def test_report_counts_measurements_and_the_second_run_measures_none(arguments, tmp_path, capsys):
    log, summaries = tmp_path / "run.log", tmp_path / "s.json"
    assert main([*arguments, "-o", str(tmp_path / "a.csv"), "--log", str(log), "--summaries", str(summaries)]) == 0
    first = json.loads(capsys.readouterr().out)["measurement"]
    assert first["measured"] > 5
    assert first["cached"] == 0
    assert first["conditions"]["seconds"] > 0
    assert len(log.read_text().splitlines()) == first["measured"]
    kept = json.loads(summaries.read_text())
    assert len(kept) == first["measured"]
    assert all(len(each["quantiles_ms"]) == 7 and each["conditions"] for each in kept.values())
    assert main([*arguments, "-o", str(tmp_path / "b.csv")]) == 0
    second = json.loads(capsys.readouterr().out)["measurement"]
    assert (second["measured"], second["cached"]) == (0, first["measured"])
    one, two = LatencyTable.read(tmp_path / "a.csv"), LatencyTable.read(tmp_path / "b.csv")
    assert [each.latency_ms for each in one.entries] == [each.latency_ms for each in two.entries]
    assert one.provenance.measurement["measured"] == first["measured"]  # the sidecar says it too


def test_measurements_that_never_settle_are_used_and_counted(arguments, tmp_path, capsys):
    assert main([*arguments, "--target", "1e-9", "-o", str(tmp_path / "a.csv")]) == 0
    seen = json.loads(capsys.readouterr().out)["measurement"]
    assert seen["unsettled"] == seen["measured"] - seen["rough"] > 0
    assert main([*arguments[:-1], "--target", "1e-9", "-o", str(tmp_path / "b.csv")]) == 0  # without --json
    assert f"{seen['unsettled']} of {seen['measured']} within --cap-s; used with" in capsys.readouterr().out


def test_dry_run_says_how_much_is_known_and_writes_nothing(arguments, tmp_path, capsys):
    assert main([*arguments, "--dry-run"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "c.sqlite").exists()
    assert (before["cached"], before["basis"]) == (0, "probe")
    assert 0 < before["estimate_s"] < 1000
    assert main([*arguments, "-o", str(tmp_path / "a.csv")]) == 0
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert (after["cached"], after["estimate_s"], after["basis"]) == (after["distinct_shapes"], 0, "nothing to do")
    assert before["segments"] == len(LatencyTable.read(tmp_path / "a.csv"))


def test_dry_run_counts_every_stage_of_the_default_method(arguments, tmp_path, capsys):
    default = [each for each in arguments if each not in ("--method", "isolated")]
    assert main([*default, "--dry-run"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert (before["in_context_cached"], before["whole_networks_cached"]) == (0, 0)
    assert main([*default, "-o", str(tmp_path / "a.csv")]) == 0
    capsys.readouterr()
    plans = LatencyTable.read(tmp_path / "a.csv").provenance.options["plans"]
    assert 0 < len(plans) <= before["whole_networks"]
    assert main([*default, "--dry-run"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert (after["whole_networks_cached"], after["estimate_s"]) == (len(plans), 0)
    assert 0 < after["in_context_cached"] <= after["in_context"] == before["in_context"]


def test_a_segment_that_cannot_be_built_is_left_out_with_its_reason(arguments, tmp_path, capsys, monkeypatch):
    built = OnnxRuntimeBackend.compile

    def compile_small(self, onnx_bytes: bytes):
        if len(onnx_bytes) > 12_000:  # the real backend, short of memory for large weights
            raise ProfilerError("onnxruntime refused the graph: out of memory")
        return built(self, onnx_bytes)

    monkeypatch.setattr(OnnxRuntimeBackend, "compile", compile_small)
    assert main([*arguments, "-o", str(tmp_path / "a.csv")]) == 0
    failed = json.loads(capsys.readouterr().out)["measurement"]["not_built"]
    table = LatencyTable.read(tmp_path / "a.csv")
    assert failed
    for each in failed:
        assert (each["st"], each["end"]) not in table
        assert each["reason"] == "onnxruntime refused the graph: out of memory"
    assert all((at, at + 1) in table for at in range(4))
    # Not tried again, until it is asked for.
    monkeypatch.undo()
    assert main([*arguments, "-o", str(tmp_path / "b.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["measurement"]["not_built"] == failed
    assert main([*arguments, "--retry-failed", "-o", str(tmp_path / "c.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["measurement"]["not_built"] == []
    assert len(LatencyTable.read(tmp_path / "c.csv")) == len(table) + len(failed)


def test_a_layer_that_cannot_be_built_is_an_error_that_names_it(arguments, tmp_path, capsys, monkeypatch):
    def refuse(self, onnx_bytes: bytes):
        raise ProfilerError("no")

    monkeypatch.setattr(OnnxRuntimeBackend, "compile", refuse)
    monkeypatch.setattr("layerfold.profiler.table.segments.SegmentProfiler.overhead_ms", lambda *_: 0.0)
    assert main([*arguments, "-o", str(tmp_path / "a.csv")]) == 1
    assert "layer 1 cannot be built: no; exclude its module" in capsys.readouterr().err


def test_a_corrupt_cache_is_said_once_and_the_table_is_filled(arguments, tmp_path, capsys):
    (tmp_path / "c.sqlite").write_bytes(b"no database" * 500)
    assert main([*arguments, "-o", str(tmp_path / "a.csv")]) == 0
    err = capsys.readouterr().err
    assert err.count("is not usable") == 1
    (aside,) = tmp_path.glob("c.sqlite.broken-*")
    assert aside.read_bytes() == b"no database" * 500


def _layerfold(arguments: list[str], prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "layerfold", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=prepare,
    )


def _bow_to_permissions() -> None:
    """Give up root's right to write what its mode forbids (CAP_DAC_OVERRIDE, from the next program on)."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


def _fill_the_disk() -> None:
    """Let files grow to 85 kB only: the writes beyond fail in the kernel."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (85_000, 85_000))


def test_a_full_disk_ends_profiling_with_one_line_and_the_next_run_goes_on(arguments, tmp_path, capsys):
    full = _layerfold([*arguments, "-o", str(tmp_path / "a.csv")], _fill_the_disk)
    assert full.returncode == 1, full.stderr
    lines = [line for line in full.stderr.splitlines() if line.startswith("layerfold: error")]
    assert len(lines) == 1
    assert "earlier measurements are kept" in lines[0]
    assert not (tmp_path / "a.csv").exists()
    assert main([*arguments, "-o", str(tmp_path / "a.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["measurement"]["cached"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="gives up root's rights as Linux has it")
def test_a_read_only_cache_is_one_line_before_anything_is_measured(arguments, tmp_path):
    path = tmp_path / "c.sqlite"
    with MeasurementCache(path, {}):
        pass
    content = path.read_bytes()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    out = tmp_path.parent / f"{tmp_path.name}-table.csv"
    try:
        done = _layerfold([*arguments, "-o", str(out)], prepare=_bow_to_permissions)
    finally:
        tmp_path.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert "cannot be written: attempt to write a readonly database" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == content
    assert not out.exists()


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="one processor only")
def test_two_processes_fill_one_table_and_measure_nothing_twice(arguments, tmp_path):
    arguments[arguments.index("isolated")] = "plans"  # which begins with what `isolated` does
    _assert_shared_work_is_that_of_one(arguments, tmp_path, ["--workers", "2"])


@pytest.mark.slow  # Ray and two workers that load torch
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_ray_cluster_fills_one_table_and_measures_nothing_twice(arguments, tmp_path):
    _assert_shared_work_is_that_of_one(arguments, tmp_path, ["--executor", "ray", "--workers", "2"])


def _assert_shared_work_is_that_of_one(arguments, tmp_path, shared):
    log = tmp_path / "run.log"
    both = _layerfold([*arguments, *shared, "--log", str(log), "-o", str(tmp_path / "a.csv")])
    assert both.returncode == 0, both.stderr
    signatures = [line.partition(" | ")[2] for line in log.read_text().splitlines()]
    assert len(signatures) == len(set(signatures))
    seen = json.loads(both.stdout)["measurement"]
    assert (seen["measured"], seen["cached"]) == (len(signatures), 0)
    alone = _layerfold([*arguments[:-2], str(tmp_path / "other.sqlite"), "--json", "-o", str(tmp_path / "b.csv")])
    assert alone.returncode == 0, alone.stderr
    one, two = LatencyTable.read(tmp_path / "a.csv"), LatencyTable.read(tmp_path / "b.csv")
    assert [(e.start, e.end, e.signature) for e in one.entries] == [(e.start, e.end, e.signature) for e in two.entries]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--workers", "1000"], "1000 processors"),
        (["--devices", "cuda:0,cuda:0"], "names one twice"),
        (["--devices", "cuda:0,,"], "names with commas"),
        (["--devices", "cpu", "--device", "cpu"], "give one of the two"),
        (["--summaries", "x.txt"], "ends in .json"),
    ],
)
def test_bad_arguments_are_one_line_each(arguments, tmp_path, capsys, more, says):
    assert main([*arguments, "-o", str(tmp_path / "a.csv"), *more]) == 2
    assert says in capsys.readouterr().err
