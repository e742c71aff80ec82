"""Profiling a real (small) network: complete, resumable, and adding up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerfold.budget import Budget
from layerfold.errors import UsageError
from layerfold.graph import layer_norms, trace_network
from layerfold.profiler import benchmark_networks, profile_network, verify_solution
from layerfold.profiler.backends.onnxruntime import OnnxRuntimeBackend
from layerfold.profiler.benchmark import BenchmarkReport, NetworkLatency
from layerfold.profiler.graphs.assemble import assemble_network
from layerfold.profiler.graphs.outside import outside_graph
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.verify import judge
from layerfold.solver import Solution
from tests.quick_onnx import quick_onnx


class Small(nn.Module):
    """Five convs with a residual, a pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
        self.a = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU6())
        self.b = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU6())
        self.c = nn.Conv2d(32, 16, 1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.c(self.b(self.a(x)))
        return self.head(self.last(x).mean((2, 3)))


class CountingBackend(OnnxRuntimeBackend):
    """The real backend, which counts graphs and can be stopped after some."""

    compiled = 0
    stop_after = 10**9

    def compile(self, onnx_bytes: bytes):
        if self.compiled >= self.stop_after:
            raise KeyboardInterrupt
        self.compiled += 1
        return super().compile(onnx_bytes)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def net(model):
    return trace_network(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("method", ["isolated", "plans"])
def test_table_holds_every_candidate_once_with_its_provenance(model, net, method):
    table = profile_network(model, net, cache=False, progress=False, method=method, cap_s=0.02, model_name="small")
    candidates = net.candidates()
    assert [(entry.start, entry.end) for entry in table.entries] == [(s.start, s.end) for s in candidates]
    assert all(entry.latency_ms > 0 and entry.spread_ms >= 0 for entry in table.entries)
    by_segment = {(entry.start, entry.end): entry for entry in table.entries}
    assert (by_segment[0, 1].start_act, by_segment[0, 1].end_act) == (1, 1)
    assert by_segment[3, 4].end_act == 0
    facts = table.provenance
    assert facts.model == "small"
    assert facts.network_hash == net.hash
    assert facts.input_shape == (1, 3, 32, 32)
    assert facts.backend == "onnxruntime"
    assert "onnxruntime" in facts.versions
    assert facts.chains == tuple((chain.start, chain.end) for chain in net.chains)
    assert facts.options["method"] == method
    assert facts.fixed_ms > 0


def test_entries_add_up_to_the_original_as_it_was_measured(model, net):
    with MeasurementCache(False, {}) as cache:
        table = profile_network(model, net, cache=cache, progress=False, cap_s=0.05)
        measured = cache.get(f"whole network:{net.hash}")
    singles_ms = [table.entry(m, m + 1).latency_ms for m in range(len(net.layers))]
    assert sum(singles_ms) + table.provenance.fixed_ms == pytest.approx(measured.median_ms)
    assert table.original_ms == pytest.approx(measured.median_ms)


def test_graph_that_is_timed_takes_as_long_as_the_network(model, net):
    timed = assemble_network(net, outside_graph(model, net), net.original_act_pos, range(1, len(net.layers) + 1))
    report = benchmark_networks({"original": model, "timed": timed}, torch.randn(1, 3, 32, 32), cap_s=0.5)
    assert report["timed"].ratio == pytest.approx(1.0, rel=0.5)


def test_finished_measurements_are_not_repeated(model, net, tmp_path):
    first, second = CountingBackend(), CountingBackend()
    arguments = {"cache": tmp_path / "c.sqlite", "progress": False, "cap_s": 0.02}
    one = profile_network(model, net, first, **arguments)
    two = profile_network(model, net, second, **arguments)
    assert first.compiled > 5
    assert second.compiled == 0
    assert [entry.latency_ms for entry in one.entries] == [entry.latency_ms for entry in two.entries]


def test_an_interrupted_run_goes_on_where_it_stopped(model, net, tmp_path):
    arguments = {"cache": tmp_path / "c.sqlite", "progress": False, "cap_s": 0.02, "method": "isolated"}
    whole = CountingBackend()
    profile_network(model, net, whole, **{**arguments, "cache": False})
    stopped, resumed = CountingBackend(), CountingBackend()
    stopped.stop_after = whole.compiled - 2
    with pytest.raises(KeyboardInterrupt):
        profile_network(model, net, stopped, **arguments)
    profile_network(model, net, resumed, **arguments)
    assert 2 <= resumed.compiled < whole.compiled


def test_equal_segments_are_measured_once(tmp_path):
    layers = [part for _ in range(4) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers).eval()
    net = trace_network(model, torch.randn(1, 8, 16, 16))
    backend = CountingBackend()
    table = profile_network(model, net, backend, cache=False, progress=False, cap_s=0.02, method="isolated")
    singles = {entry.latency_ms for entry in table.entries if entry.end == entry.start + 1}
    assert len(singles) == 1
    assert backend.compiled == len({segment.signature for segment in net.candidates()}) + 1  # + the empty call


def test_a_hopeless_candidate_is_bounded_and_not_measured():
    depthwise = [nn.Conv2d(64, 64, 9, padding=4, groups=64) for _ in range(3)]
    layers = [nn.Conv2d(64, 64, 1), *depthwise, nn.Conv2d(64, 64, 1)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).eval()
    net = trace_network(model, torch.randn(1, 64, 16, 16))
    table = profile_network(
        model, net, cache=False, progress=False, cap_s=0.02, method="isolated", candidates=net.candidates(max_kernel=99)
    )
    worst = table.entry(0, 5)
    assert worst.runs <= 3
    assert worst.latency_ms > 1.5 * sum(table.entry(m, m + 1).latency_ms for m in range(5))
    assert (0, 5) not in table.useful_segments()


def test_unknown_method_is_refused(model, net):
    with pytest.raises(UsageError, match="method='guess'"):
        profile_network(model, net, method="guess")  # type: ignore[arg-type]


def test_original_and_merged_are_compared_and_judged(model, net):
    solution = Solution(act_pos=[1, 4], merge_pos=[1, 4, 5])
    found = verify_solution(model, net, solution, budget_ms=1e6, predicted_ms=0.1, cap_s=0.5)
    assert found.is_within_budget is True
    assert found.low_ms <= found.measured_ms <= found.high_ms
    assert found.predicted_ms == 0.1
    assert found.to_json()["prediction_error"] == pytest.approx(0.1 / found.measured_ms - 1)
    assert verify_solution(model, net, solution, speedup=1e6, cap_s=0.2).is_within_budget is False
    assert verify_solution(model, net, solution, cap_s=0.2).is_within_budget is None
    with pytest.raises(UsageError, match="speedup=0"):
        verify_solution(model, net, solution, speedup=0)


def latency(name: str, median_ms: float, high_ms: float, ratio: float, ratio_high: float) -> NetworkLatency:
    return NetworkLatency(
        name=name,
        median_ms=median_ms,
        low_ms=median_ms,
        high_ms=high_ms,
        spread_ms=0.0,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio_high,
        runs=1,
        is_settled=True,
    )


@pytest.mark.parametrize(
    ("high_ms", "ratio_high", "is_within"),
    [
        (0.49, 0.49, True),
        (0.51, 0.49, False),
        (0.49, 0.51, False),
    ],
)
def test_a_speedup_needs_both_the_ratio_and_the_latency_below(high_ms, ratio_high, is_within):
    networks = (latency("original", 1.0, 1.1, 1.0, 1.0), latency("merged", 0.48, high_ms, 0.48, ratio_high))
    report = BenchmarkReport(networks=networks, provenance={})
    found = judge(report, Budget(speedup=2.0))
    assert found.is_within_budget is is_within
    assert found.budget_ms == 0.5


def test_a_budget_needs_the_upper_end_of_the_interval_below():
    networks = (latency("original", 1.0, 1.1, 1.0, 1.0), latency("merged", 0.48, 0.52, 0.48, 0.5))
    report = BenchmarkReport(networks=networks, provenance={})
    assert judge(report, Budget(budget_ms=0.53)).is_within_budget is True
    assert judge(report, Budget(budget_ms=0.50)).is_within_budget is False
    unlimited = judge(report, Budget())
    assert (unlimited.budget_ms, unlimited.is_within_budget) == (None, None)


def test_benchmark_takes_modules_files_and_bytes(model, tmp_path):
    x = torch.randn(1, 3, 32, 32)
    onnx_bytes = quick_onnx(model, x)
    (tmp_path / "m.onnx").write_bytes(onnx_bytes)
    report = benchmark_networks({"module": model, "file": tmp_path / "m.onnx", "bytes": onnx_bytes}, x, cap_s=0.3)
    rows = report.rows()
    assert [row["name"] for row in rows] == ["module", "file", "bytes"]
    assert all(0.5 < row["ratio"] < 2 for row in rows)
    assert report.to_json()["provenance"]["backend"] == "onnxruntime"
    with pytest.raises(UsageError, match="no such file"):
        benchmark_networks({"a": tmp_path / "none.onnx"})
    with pytest.raises(UsageError, match="example_input=None"):
        benchmark_networks({"a": model})
    with pytest.raises(UsageError, match="networks is empty"):
        benchmark_networks({})


def test_progress_ends_at_its_total(capsys):
    """A block that lost a layer merges into a conv like the one that it stands beside: it is counted in both lists."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model = Shortcut(block).eval()
    net = trace_network(model, torch.randn(1, 3, 16, 16))
    candidates = net.candidates(layer_norms=layer_norms(model, net))
    singles = {net.segment(layer.index - 1, layer.index).signature for layer in net.layers}
    assert any(each.dropped and each.signature in singles for each in candidates)

    profile_network(model, net, cache=False, cap_s=0.02, candidates=candidates, method="isolated")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("profile: segments alone:")]
    done, total = told[-1].split(": ")[2].split(",")[0].split("/")
    assert done == total


class Shortcut(nn.Module):
    """A stem, a block with a shortcut around it, a head."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3, padding=1), block, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))
