"""An importance table does not depend on where its entries were estimated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.tables import ImportanceTable

_FILE = """
import torch
from torch import nn


class Images(torch.utils.data.Dataset):
    def __init__(self, count, shape):
        self.targets, self.shape = [index % 2 for index in range(count)], shape

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        noise = torch.rand(self.shape, generator=torch.Generator().manual_seed(index))
        return noise + 0.1 * self.targets[index], self.targets[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        widths = [3, 8, 8, 8, 8]
        self.body = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:])
        ))
        self.head = nn.Linear(8, 2)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def images(input_shape):
    return Images(64, input_shape), Images(48, input_shape)


def net():
    return Net()
"""


@pytest.fixture(scope="module", params=["distill", "shared"])
def arguments(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a command on a user's own file, without output."""
    own = tmp_path_factory.mktemp("user") / "own.py"
    own.write_text(_FILE)
    return [
        "importance",
        f"{own}:net",
        "--input",
        "3x8x8",
        "--data",
        f"{own}:images",
        "--batch-size",
        "16",
        "--method",
        str(request.param),
        "--steps",
        "4",
        "--score",
        "loss",
        "--max-kernel",
        "7",
        "--threads",
        "1",
        "--max-growth",
        "20",
    ]


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> ImportanceTable:
    out = tmp_path_factory.mktemp("expected") / "importance.csv"
    assert main([*arguments, "-o", str(out)]) == 0
    table = ImportanceTable.read(out)
    assert len({entry.importance for entry in table.entries}) > 3
    return table


def _assert_equal(path: Path, expected: ImportanceTable) -> None:
    found = ImportanceTable.read(path)
    assert found.entries == expected.entries
    assert found.provenance.options["original"] == expected.provenance.options["original"]
    assert not path.with_name(f"{path.name}.journal").exists()


@pytest.mark.parametrize("which", [["--workers", "2"], ["--devices", "cpu,cpu"]], ids=lambda each: each[0])
def test_two_processes_give_the_table_of_one(
    which: list[str], arguments: list[str], expected: ImportanceTable, tmp_path: Path
) -> None:
    out = tmp_path / "importance.csv"
    assert main([*arguments, *which, "-o", str(out)]) == 0
    _assert_equal(out, expected)


@pytest.mark.slow  # the mechanism has a quick test in tests/core/test_executor_ray.py
def test_a_ray_cluster_of_two_workers_gives_the_table_of_one_process(
    arguments: list[str], expected: ImportanceTable, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "importance.csv"
    # A process of its own, as a user's: what Ray sets up in one stays with it.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "layerfold",
            *arguments,
            "--executor",
            "ray",
            "--workers",
            "2",
            "--json",
            "-o",
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == len(expected.entries)
    _assert_equal(out, expected)
