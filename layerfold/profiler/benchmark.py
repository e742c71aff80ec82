"""Measure whole networks against each other, end to end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerfold.errors import UsageError
from layerfold.export.onnx import export_onnx
from layerfold.files import JsonObject, as_json, read_bytes
from layerfold.modules import public_call
from layerfold.options import BenchmarkOptions
from layerfold.profiler.backends import Backend, Runner, compile_to_time, get_backend
from layerfold.profiler.backends.protocol import BackendFacts
from layerfold.profiler.machine.conditions import Watch
from layerfold.profiler.timing.block_statistics import is_narrow
from layerfold.profiler.timing.measurement import MeasurePolicy, summarise_blocks
from layerfold.profiler.timing.ratio import Ratio
from layerfold.profiler.timing.turns import Turns, time_in_turns
from layerfold.settings import takes_settings

Benchmarkable = nn.Module | bytes | str | os.PathLike[str]


class MeasuredOn(BackendFacts):
    """Device, backend and settings that networks were measured with.

    Attributes:
        batch: images in one forward pass; None where only the networks know it.
        conditions: of the machine meanwhile, with warnings.
    """

    batch: int | None
    conditions: JsonObject


def warnings_in(provenance: MeasuredOn) -> tuple[str, ...]:
    """Return what was odd about the machine while networks were measured, each in one sentence."""
    found = provenance.get("conditions", {}).get("warnings")
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()


@dataclass(frozen=True, kw_only=True)
class NetworkLatency:
    """One network's end-to-end latency.

    Attributes:
        name: as given.
        median_ms, low_ms, high_ms: median of one forward pass and its 95 % interval.
        spread_ms: robust standard deviation over rounds.
        ratio, ratio_low, ratio_high: latency relative to the first network, paired round by round, with its interval.
        runs: timed forward passes.
        is_settled: whether the interval reached its target within the time cap.
        contended: rounds that were set aside because something else slowed the whole machine meanwhile.
    """

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    spread_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    runs: int
    is_settled: bool
    contended: int = 0

    @property
    def speedup(self) -> float:
        """Speed-up over the first network."""
        return 1 / self.ratio


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Networks measured interleaved, in the order given; the first is the reference.

    Attributes:
        networks: one entry per network.
        provenance: backend, versions, device, driver, options, batch; the conditions of the machine meanwhile, with
            warnings.
    """

    networks: tuple[NetworkLatency, ...]
    provenance: MeasuredOn

    def __getitem__(self, name: str) -> NetworkLatency:
        return next(each for each in self.networks if each.name == name)

    def rows(self) -> list[JsonObject]:
        """Return one flat dict per network, for a table."""
        return [{**asdict(each), "speedup": each.speedup} for each in self.networks]

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold."""
        return {"networks": self.rows(), "provenance": as_json(self.provenance)}


@takes_settings(options=BenchmarkOptions)
@public_call
def benchmark_networks(
    networks: Mapping[str, Benchmarkable],
    example_input: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
    backend: str | Backend = "onnxruntime",
    options: BenchmarkOptions | None = None,
    **settings: Any,
) -> BenchmarkReport:
    """Measure networks end to end, in turns, round by round (``layerfold.profiler.timing.turns``).

    Args:
        networks: name -> module, ONNX file or ONNX bytes; the first is the reference of the ratios.
        example_input: [N, C, H, W] for exporting modules; not needed for ONNX.
        backend: a backend's name, or one made with :func:`layerfold.profiler.get_backend` (then ``device`` and
            ``threads`` are its own).
        options, settings: see :class:`BenchmarkOptions`; a setting given by name takes the place of that of
            ``options``.

    Raises:
        UsageError: no networks, a missing file, or a module without ``example_input``.
        ExportError: a module that cannot be exported.

    Example:
        >>> report = lf.benchmark_networks({"original": "original.onnx", "merged": "merged.onnx"})
        >>> f"{report['merged'].median_ms:.3f} ms, {report['merged'].speedup:.2f} times as fast"
        '... ms, ... times as fast'
    """
    if not networks:
        raise UsageError("networks is empty; give at least one, as name -> module or ONNX file")
    options = options or BenchmarkOptions()
    chosen = (
        get_backend(backend, device=options.device, threads=options.threads) if isinstance(backend, str) else backend
    )
    runners: dict[str, Runner] = {}
    try:
        for name, network in networks.items():
            runners[name] = compile_to_time(chosen, onnx_of(name, network, example_input))
        policy = MeasurePolicy(target=options.target, cap_s=options.cap_s)
        watch = Watch()
        turns = time_in_turns(
            [runner.run for runner in runners.values()],
            policy,
            are_latencies_wanted=True,
            is_patient=options.is_patient,
            between_rounds=watch.sample,
        )
    finally:
        for runner in runners.values():
            runner.close()
    batch = None
    if example_input is not None:
        batch = int((example_input[0] if isinstance(example_input, tuple) else example_input).shape[0])
    networks_found = _latencies(list(runners), turns, policy)
    facts: MeasuredOn = {**chosen.provenance(), "batch": batch, "conditions": watch.conditions().to_json()}
    return BenchmarkReport(networks=networks_found, provenance=facts)


def onnx_of(name: str, network: Benchmarkable, example_input: torch.Tensor | tuple[torch.Tensor, ...] | None) -> bytes:
    """Return a network's ONNX bytes: exported, read, or as given."""
    if isinstance(network, bytes):
        return network
    if isinstance(network, nn.Module):
        if example_input is None:
            raise UsageError(f"network {name!r} is a module, so example_input=None must be a tensor to export it with")
        return export_onnx(network, example_input)
    return read_bytes(Path(network), remedy=f"network {name!r}: name an ONNX file")


def _latencies(names: list[str], turns: Turns, policy: MeasurePolicy) -> tuple[NetworkLatency, ...]:
    found = []
    for index, name in enumerate(names):
        values_ms = turns.values_ms[index]
        m = summarise_blocks(values_ms, runs=turns.runs[index], is_settled=is_narrow(values_ms, policy.target))
        ratio = turns.ratios[index - 1] if index else Ratio(estimate=1.0, low=1.0, high=1.0)
        found.append(
            NetworkLatency(
                name=name,
                median_ms=m.median_ms,
                low_ms=m.low_ms,
                high_ms=m.high_ms,
                spread_ms=m.spread_ms,
                ratio=ratio.estimate,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                runs=m.runs,
                is_settled=m.is_settled,
                contended=turns.contended,
            )
        )
    return tuple(found)
