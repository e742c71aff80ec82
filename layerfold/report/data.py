"""What a report says, as plain data: the page and the terminal table are two views of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One network in the result table.

    Attributes:
        name: for example ``original`` or ``compressed``.
        accuracy_pct: top-1 accuracy on the test split; None where it was not measured.
        agreement_pct: share of test images on which it answers as the original does; None where not measured.
        latency_ms: measured end-to-end median of one forward pass; None where it was not measured.
        low_ms, high_ms: its 95 % interval.
        predicted_ms: end-to-end latency predicted from the tables; None for a network that nothing predicted.
        num_layers: convs in the chains.
        num_params: parameters of the whole network.
        macs: multiply-adds of one image.
    """

    name: str
    accuracy_pct: float | None = None
    agreement_pct: float | None = None
    latency_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    predicted_ms: float | None = None
    num_layers: int
    num_params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class VerifyRound:
    """One round of predict, build, measure.

    Attributes:
        number: 1 for the first.
        predicted_ms: end-to-end latency that the tables promised.
        measured_ms, low_ms, high_ms: median measured end to end, and its 95 % interval.
        is_within: whether the interval's upper end meets the budget.
        verdict: what followed, in a few words.
    """

    number: int
    predicted_ms: float
    measured_ms: float
    low_ms: float
    high_ms: float
    is_within: bool
    verdict: str


@dataclass(frozen=True, kw_only=True)
class MergedSegment:
    """One merged segment and what it saved.

    Attributes:
        start, end: positions; layers start+1..end became one conv.
        layers: qualified names of the layers replaced.
        dropped: those of them that are left out.
        conv: the merged conv for people, for example ``5×5, 32→64, stride 2``.
        before_ms, after_ms: table latency of the layers one by one, and of the merged conv; None where unknown.
        before_macs, after_macs: multiply-adds of one image.
    """

    start: int
    end: int
    layers: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    conv: str
    before_ms: float | None = None
    after_ms: float | None = None
    before_macs: int
    after_macs: int


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Wall time of one step; ``is_resumed`` where an earlier run had done it (the time is that run's)."""

    name: str
    seconds: float
    is_resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report page shows.

    Attributes:
        title: the page's heading.
        model, data, device: each in one line for people.
        command: the command line that made this, or empty.
        budget_ms: the end-to-end budget; None where no budget was set.
        is_budget_met: None where no budget was set.
        verdict: the outcome in one sentence.
        rows: the result table; the first is the original, the last what came out.
        rounds, segments, steps: see their classes.
        network_svg: the drawing of what was merged, an SVG document.
        frontier_path: the frontier's plot (PNG), or None.
        pictures: further pictures: (heading, PNG file, what it shows in a sentence).
        files: (name in the output folder, what it holds).
        provenance: (fact, value): backend, versions, threads, date, seeds, options.
        notes: warnings and remarks, each a sentence.
    """

    title: str
    model: str
    data: str
    device: str
    command: str = ""
    budget_ms: float | None = None
    is_budget_met: bool | None = None
    verdict: str
    rows: tuple[ResultRow, ...]
    rounds: tuple[VerifyRound, ...] = ()
    segments: tuple[MergedSegment, ...] = ()
    steps: tuple[StepTime, ...] = ()
    network_svg: str = ""
    frontier_path: Path | None = None
    pictures: tuple[tuple[str, Path, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
