"""Profiling that is killed at random moments keeps what it finished, and repeats none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
_RUN = """
import json, sys
sys.path.insert(0, "benchmarks/robustness")
from profile_kill import kill_and_restart
found = kill_and_restart(sys.argv[1], "3x16x16", method=sys.argv[2], kills=3, seed=int(sys.argv[3]))
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each life is forked from one process")
@pytest.mark.parametrize(("method", "seed"), [("isolated", 0), ("plans", 1)])
def test_profiling_killed_up_to_three_times_keeps_every_measurement_and_repeats_none(tmp_path, method, seed):
    (tmp_path / "own.py").write_text(_FILE)
    command = [sys.executable, "-c", _RUN, f"{tmp_path / 'own.py'}:net", method, str(seed)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kept_measurements_lost_or_changed"] == 0
    assert found["measurements_made_twice"] == 0
    assert found["same_rows_as_undisturbed"]
    assert found["same_table_when_read_again"]
    assert found["kills"] >= 1  # so little is left near the end that a life may be over before its kill
    assert found["finished_before_a_kill"] > 0
