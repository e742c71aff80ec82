"""What one run of measuring did: counts for the user, and one line per measurement for a log."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TextIO

from layerfold.files import JsonObject
from layerfold.profiler.store.checked import Reading
from layerfold.profiler.timing.measurement import Measurement
from layerfold.profiler.timing.ratio import MeasuredRatio


@dataclass
class RunReport:
    """Measurements of one run by signature, as a cache hands them out and takes them in.

    Args:
        log: a text file that gets a line for each new measurement and each failed build.
    """

    log: TextIO | None = None
    new: dict[str, Reading] = field(default_factory=dict)
    cached: dict[str, Reading] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def found(self, signature: str, measurement: Reading) -> None:
        """Take note of one that was there already."""
        if signature not in self.new:
            self.cached[signature] = measurement

    def measured(self, signature: str, measurement: Reading, build_s: float | None) -> None:
        """Take note of a new one."""
        self.cached.pop(signature, None)
        self.new[signature] = measurement
        self._write(log_line(signature, measurement, build_s))

    def failed(self, signature: str, reason: str, *, is_new: bool) -> None:
        """Take note of one that cannot be built."""
        self.failures[signature] = reason
        if is_new:
            self._write(f"FAILED {reason} | {signature}")

    def counts(self) -> dict[str, int]:
        """Return how many were measured and found, and what is to be known of them.

        ``rough`` ones are plainly slower than what they replace and were timed in three passes; ``unsettled`` ones hit
        the time cap before their interval was narrow enough, and are used with the interval that they have.
        """
        every = [*self.new.values(), *self.cached.values()]
        latencies = [each for each in every if isinstance(each, Measurement)]
        ratios = [each for each in every if isinstance(each, MeasuredRatio)]
        return {
            "measured": len(self.new),
            "cached": len(self.cached),
            "failed": len(self.failures),
            "rough": sum(each.blocks <= 3 for each in latencies) + sum(each.rounds <= 3 for each in ratios),
            "unsettled": sum(not each.is_settled and each.blocks > 3 for each in latencies)
            + sum(not each.is_settled and each.rounds > 3 for each in ratios),
            "drifting": sum(each.trend != 0 for each in latencies),
            "blocks": sum(each.blocks for each in latencies) + sum(each.rounds for each in ratios),
            "outlying_blocks": sum(each.outliers for each in latencies),
            "disturbed_blocks": sum(each.disturbed for each in latencies) + sum(each.contended for each in ratios),
        }

    def to_json(self) -> JsonObject:
        """Return what a sidecar would hold."""
        return {**self.counts(), "failures": dict(self.failures)}

    def _write(self, line: str) -> None:
        if self.log is not None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            print(f"{now} {line}", file=self.log, flush=True)


def log_line(signature: str, m: Reading, build_s: float | None) -> str:
    """Return a measurement on one line: median, interval, blocks, build time, whether it settled."""
    if isinstance(m, MeasuredRatio):
        found = m.ratio
        return (
            f"{'settled' if m.is_settled else 'UNSETTLED'} ratio {found.estimate:.6g} [{found.low:.6g}, "
            f"{found.high:.6g}] +-{found.half_width:.2%}, {m.rounds} rounds, {m.contended} set aside | {signature}"
        )
    state = "settled" if m.is_settled else "rough" if m.blocks <= 3 else "UNSETTLED"
    build = "" if build_s is None else f", build {build_s:.3g} s"
    odd = f", {m.outliers} outlying up to {m.outlier_ms:.6g} ms" if m.outlier_ms is not None else ""
    disturbed = f", {m.disturbed} disturbed (median with them {m.median_all_ms:.6g} ms)" if m.median_all_ms else ""
    drift = f", drifted {m.trend:+.1%}" if m.trend else ""
    return (
        f"{state} median {m.median_ms:.6g} ms [{m.low_ms:.6g}, {m.high_ms:.6g}] +-{m.half_width:.2%}, "
        f"{m.blocks} blocks of {m.runs // max(m.blocks, 1)} passes{odd}{disturbed}{drift}{build} | {signature}"
    )
