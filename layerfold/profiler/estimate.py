"""Before profiling: how much there is to measure, how much of it is known, and about how long it will take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from layerfold.files import JsonObject
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.options import ProfileOptions
from layerfold.profiler.backends import Backend
from layerfold.profiler.plans.timer import PLAN_POLICY
from layerfold.profiler.store.history import CacheHistory
from layerfold.profiler.store.kinds import SUFFIXES, Kind
from layerfold.profiler.table.fit import usual_num_plans
from layerfold.profiler.table.measured import KIND_ALONE, segment_profiler
from layerfold.profiler.table.neighbours import RATIO, neighbours_signature
from layerfold.profiler.table.segments import distinct

_LEAST_HISTORY = 8
_PROBES = 6


@dataclass(frozen=True, kw_only=True)
class ProfileEstimate:
    """Amount of work that profiling would be.

    Attributes:
        segments: entries of the table.
        segments_merged: of these, segments of two layers and more, or with dropped ones.
        distinct_shapes: signatures to measure alone, single layers included.
        cached: of these, known already (measured, or known to fail).
        in_context: distinct merged segments to measure in their surroundings at most: between their neighbours
            (``method="plans"``); 0 with ``"isolated"``.
        in_context_cached: of these, known already.
        whole_networks: networks merged by a plan to measure at most (``"plans"``).
        whole_networks_cached: of these, known already.
        estimate_s: about how long it will take.
        basis: ``history`` of this cache, a short ``probe`` of real segments, or ``nothing to do``.
    """

    segments: int
    segments_merged: int
    distinct_shapes: int
    cached: int
    in_context: int
    in_context_cached: int
    whole_networks: int
    whole_networks_cached: int
    estimate_s: float
    basis: str

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold."""
        return asdict(self)


def estimate_profile(net: Network, backend: Backend, history: CacheHistory, options: ProfileOptions) -> ProfileEstimate:
    """Say what :func:`profile_network` would do with the same options; nothing is written.

    Time is taken from what measurements took before in the same environment, else from measuring six of the segments
    now, spread over the range of their multiply-adds. Segments plainly too slow to be worth measuring are found out on
    the way, so that the estimate is rather too high.
    """
    candidates = net.candidates() if options.candidates is None else options.candidates
    singles = [net.segment(m, m + 1) for m in range(len(net.layers))]
    wanted = distinct([*(segment for segment in candidates if not segment.is_free), *singles])
    kind = KIND_ALONE[options.method]
    left = [segment for segment in wanted if not history.holds(segment.signature + SUFFIXES[kind])]
    merged = [segment for segment in candidates if segment.is_changed]
    estimate_s, basis = 0.0, "nothing to do"
    if left:
        past_s = history.seconds(kind)
        if len(past_s) >= _LEAST_HISTORY:
            each_s, basis = statistics.fmean(past_s), "history"
        else:
            each_s, basis = _probe_s(left, backend, options), "probe"
        estimate_s += each_s * len(left) / options.workers
    in_context, whole = _later_stages(net, merged, history, options)
    # Which of them will be worth measuring, only measuring tells: what is known may be all there is to know.
    for stage in (in_context, whole):
        if left or not stage.cached:
            estimate_s += stage.each_s * (stage.at_most - stage.cached)
    if not left and estimate_s:
        basis = "history"
    return ProfileEstimate(
        segments=len(candidates),
        segments_merged=len(merged),
        distinct_shapes=len(wanted),
        cached=len(wanted) - len(left),
        in_context=in_context.at_most,
        in_context_cached=in_context.cached,
        whole_networks=whole.at_most,
        whole_networks_cached=whole.cached,
        estimate_s=math.ceil(10 * estimate_s) / 10,
        basis=basis,
    )


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Stage after the segments alone: measurements at most, known ones, seconds of one."""

    at_most: int = 0
    cached: int = 0
    each_s: float = 0.0


def _later_stages(
    net: Network, merged: Sequence[Segment], history: CacheHistory, options: ProfileOptions
) -> tuple[_Stage, _Stage]:
    """Return the stage that measures segments in their surroundings, and the one that measures whole networks."""

    def stage(at_most: int, past_s: Sequence[float], assumed_s: float) -> _Stage:
        each_s = statistics.fmean(past_s) if len(past_s) >= _LEAST_HISTORY else assumed_s
        return _Stage(at_most=at_most, cached=min(len(past_s), at_most), each_s=each_s)

    if options.method == "plans":
        keys = {neighbours_signature(net, segment) + RATIO for segment in merged}
        known = sum(history.holds(key) for key in keys)
        beside = stage(len(keys), history.seconds(Kind.NEIGHBOURS_RATIO), 2 * options.cap_s)
        networks = usual_num_plans(merged) if merged else 0
        return replace(beside, cached=known), stage(networks, history.seconds(Kind.PLAN, net.hash), PLAN_POLICY.cap_s)
    return _Stage(), _Stage()


def _probe_s(left: Sequence[Segment], backend: Backend, options: ProfileOptions) -> float:
    """Measure some segments for real, into a cache that is thrown away; return the mean time of one."""
    count = min(_PROBES, len(left))
    places = {round(i * (len(left) - 1) / max(count - 1, 1)) for i in range(count)}
    # `left` is sorted by multiply-adds; the largest tenth is mostly skipped when it is for earnest
    some = [left[int(0.9 * place)] for place in sorted(places)]
    began = time.perf_counter()
    segment_profiler(backend, None, replace(options, workers=1)).measure(some)
    return (time.perf_counter() - began) / len(some)
