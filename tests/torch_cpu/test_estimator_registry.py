"""Estimators of other packages are found by entry point; the example of docs/importance.md is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from layerfold.tables import ImportanceTable

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = (_ROOT / "docs" / "importance.md").read_text(encoding="utf-8").partition("## An estimator of your own")[2]
_ENTRY_POINTS = """
[layerfold.estimators]
as_it_is = my_package.estimators:AsItIs
none = my_package.others:NoEstimator
number = my_package.others:OneNumber
absent = acme_absent:Estimator
failing = my_package.failing:Estimator
recalibrate = my_package.others:NoEstimator
adaptive = my_package.others:NoEstimator
"""
_OTHERS = """
from layerfold.importance import EstimatorBase


class NoEstimator:
    pass


class OneNumber(EstimatorBase):
    def scores_of(self, request):
        return 0.5
"""
_OWN = """
import torch
from torch import nn


class Images(torch.utils.data.Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count, shape):
        self.targets, self.shape = [index % 2 for index in range(count)], shape

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        noise = torch.rand(self.shape, generator=torch.Generator().manual_seed(index))
        return noise + self.targets[index], self.targets[index]


def images(input_shape):
    return Images(80, input_shape), Images(16, input_shape)


def net():
    torch.manual_seed(0)
    layers = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
"""
_IN_PYTHON = """
import sys
import layerfold as lf
loaded = lf.load_model("own.py:net")
import torch
net = lf.trace_network(loaded.module, torch.zeros(1, 3, 8, 8))
data = lf.open_data("own.py:images", input_shape=(3, 8, 8), mean=loaded.mean, std=loaded.std)
lf.estimate_importance(loaded.module, net, data, method="as_it_is", score="kl", progress=False).write(sys.argv[1])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page's package installed, a model and images."""
    folder = tmp_path_factory.mktemp("site")
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "estimators.py").write_text(re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)[0])
    (package / "others.py").write_text(_OTHERS)
    (package / "failing.py").write_text("raise RuntimeError('no licence')\n")
    facts = folder / "my_package-2.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 2.1\n")
    (facts / "entry_points.txt").write_text(_ENTRY_POINTS)
    (folder / "own.py").write_text(_OWN)
    return folder


def _python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(_ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        check=False,
    )


def _importance(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "layerfold", "importance", "own.py:net", "--input", "3x8x8", "--data", "own.py:images"]
    return _python(site, *command, "--quiet", *arguments)


def test_the_page_registers_what_the_test_installs() -> None:
    (registered,) = re.findall(r"```toml\n(.*?)```", _PAGE, re.DOTALL)
    name, _, place = registered.strip().splitlines()[1].partition(" = ")
    assert 'entry-points."layerfold.estimators"' in registered
    assert f"{name} = {place.strip(chr(34))}" in _ENTRY_POINTS


def test_estimator_of_another_package_fills_a_table_alike_in_python_and_by_command(site: Path) -> None:
    done = _importance(site, "--method", "as_it_is", "--score", "kl", "-o", "by_command.csv")
    assert done.returncode == 0, done.stderr
    done = _python(site, "-c", _IN_PYTHON, "in_python.csv")
    assert done.returncode == 0, done.stderr
    by_command, in_python = (ImportanceTable.read(site / name) for name in ("by_command.csv", "in_python.csv"))
    assert by_command.provenance.options["method"] == "as_it_is"
    assert [each.importance for each in by_command.entries] == [each.importance for each in in_python.entries]
    merged = [each.importance for each in by_command.entries if each.end - each.start > 1]
    assert merged
    assert all(each < 0 for each in merged)


def test_help_lists_estimators_of_other_packages(site: Path) -> None:
    done = _python(site, "-m", "layerfold", "importance", "--help")
    assert done.returncode == 0, done.stderr
    names = "auto, shared, recalibrate, distill, finetune, taylor, absent, as_it_is, failing, none, number, adaptive"
    assert names in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [
        ("as_it_iz", 2, "nearest: as_it_is"),
        ("none", 1, "method='none' (my_package.others:NoEstimator) is no estimator: it lacks fills_slots"),
        ("number", 1, "method='number': its scores_of returned 0.5, expected numbers by name"),
        ("absent", 4, "install my-package again, with what it needs"),
        ("failing", 1, "fails at import: RuntimeError: no licence; tell the makers of my-package"),
    ],
)
def test_broken_or_unknown_estimator_is_one_line_with_its_exit_code(
    site: Path, method: str, code: int, words: str
) -> None:
    done = _importance(site, "--method", method, "-o", "none.csv")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert words in done.stderr


def test_names_of_our_own_methods_cannot_be_taken(site: Path) -> None:
    code = """
from layerfold.importance.estimators import ESTIMATORS
print(ESTIMATORS["recalibrate"].__module__, len(ESTIMATORS))
"""
    done = _python(site, "-c", code)
    assert done.stdout.split() == ["layerfold.importance.estimators.recalibrate", "10"], done.stderr
