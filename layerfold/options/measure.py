"""How segments and whole networks are measured. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from layerfold.settings import check_settings, setting

if TYPE_CHECKING:
    from layerfold.executor import Executor
    from layerfold.graph import Segment
    from layerfold.tables import ImportanceTable, LatencyTable

Method = Literal["plans", "isolated"]
MEASURING: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Settings of a profile: what the table is to hold, how well each entry is measured, and by whom.

    Attributes:
        batch: images in one forward pass.
        dtype: precision that every graph is run in: ``float32``, ``float16``, ``bfloat16`` or ``int8``, for which each
            is quantised with constant scales; of a backend that is named, while an open one has its own.
        threads: worker threads, for backends on the CPU; of a backend that is named.
        candidates: what to measure; None for ``net.candidates()``.
        method: ``plans`` screens the segments alone, times promising ones between their neighbours, then some tens of
            whole networks, each merged by a random plan, and fits the entries to them
            (``layerfold.profiler.plans.beliefs``): sums of entries then predict networks, and each entry says how sure
            it is. ``isolated`` takes the segments alone: shared between networks, and off by a tenth or more.
        num_plans: whole networks to time for ``plans``; None for one per promising shape, 16 at least and 40 at most.
        target: half-width of each 95 % interval at which it has settled, between 0 and 1, relative to the whole network
            (``plans``; None for 0.006) or to the entry (``isolated``; None for 0.02).
        cap_s: most seconds of timed running per entry, above 0.
        model_name: what the user calls the model, for the table's provenance.
        workers: processes that fill the cache together, if this is one of several.
        executor: who measures: ``local``, ``ray``, or an :class:`Executor` that says more. Several workers open a
            backend each, so that it must be named, and share what they measure through the cache.

    Example:
        >>> options = lf.ProfileOptions(batch=8, dtype="float16", cap_s=1)
        >>> options.method
        'plans'
    """

    batch: int = 1
    dtype: str = "float32"
    threads: int = 1
    candidates: Sequence[Segment] | None = None
    method: Method = setting(
        "plans",
        choices=MEASURING,
        help="fitted to whole networks under random plans, or segments alone: faster, less true",
    )
    num_plans: int | None = None
    target: float | None = setting(None, above=0, most=1, help="half-width of the 95 %% intervals to stop at, relative")
    cap_s: float = setting(0.25, above=0, metavar="S", help="most seconds of timed running per entry")
    model_name: str | None = None
    workers: int = 1
    executor: str | Executor = "local"

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Settings of a measurement of whole networks in turns.

    Attributes:
        device: a device of a backend that is named; None for its first.
        threads: worker threads, for backends on the CPU; of a backend that is named.
        target: half-width of the 95 % intervals, relative, at which to stop, between 0 and 1.
        cap_s: most seconds per network, above 0.
        is_patient: take up to three times as long while a neighbour slows the processor.

    Example:
        >>> options = lf.BenchmarkOptions(threads=2, cap_s=5)
        >>> options.target
        0.01
    """

    device: str | None = None
    threads: int = 1
    target: float = setting(0.01, above=0, most=1, help="half-width of the 95 %% intervals to stop at, relative")
    cap_s: float = setting(10.0, above=0, metavar="S", help="most seconds per network")
    is_patient: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(BenchmarkOptions):
    """Settings of a verification: what a merged network is measured against, and how.

    Attributes:
        device, threads, target, cap_s, is_patient: as of :class:`BenchmarkOptions`.
        batch: images in one forward pass.
        budget_ms: end-to-end budget, above 0; None for the solution's.
        speedup: speed-up over the original, above 0; it then decides, and not ``budget_ms``.
        predicted_ms: what the table predicts; None for what the solution says.
        predicted_interval_ms: 95 % interval of that (``layerfold.profiler.plans.fitted.predicted_interval_ms``).

    Example:
        >>> options = lf.VerifyOptions(speedup=1.5, is_patient=True)
        >>> options.batch
        1
    """

    batch: int = 1
    budget_ms: float | None = setting(None, above=0)
    speedup: float | None = setting(None, above=0)
    predicted_ms: float | None = None
    predicted_interval_ms: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class CompareOptions(BenchmarkOptions):
    """Settings of a comparison of solutions, and what is known of them beforehand.

    Attributes:
        device, threads, target, cap_s, is_patient: as of :class:`BenchmarkOptions`.
        batch: images in one forward pass.
        latency: table that predicts; without it a solution's own prediction is shown.
        importance: table that importances are summed from; without it a solution's own is shown.
        accuracies_pct: accuracies known beforehand by name, ``original`` for the original's; where images score a
            network, that counts.

    Example:
        >>> options = lf.CompareOptions(latency=latency, accuracies_pct={"original": 71.9})
        >>> options.batch
        1
    """

    batch: int = 1
    latency: LatencyTable | None = None
    importance: ImportanceTable | None = None
    accuracies_pct: Mapping[str, float] | None = None
