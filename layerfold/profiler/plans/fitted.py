"""Between latency tables and beliefs: a table remembers the plans that it was fitted on.

In a fitted table an entry is the expected latency of its segment inside the network and ``spread_ms`` how sure that
is. What it came from, the segments alone and the measured plans, stands in its provenance (``options``), so that
further plans can be added later: by the budget loop, or on another day.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

from layerfold.errors import TableError
from layerfold.files import Count, Finite, JsonObject, parse_json
from layerfold.profiler.plans.beliefs import Beliefs, SegmentFacts
from layerfold.profiler.plans.plan import MeasuredPlan, pooled_plans
from layerfold.tables import LatencyEntry, LatencyTable
from layerfold.tables.kernel import IDENTITY, SegmentKey
from layerfold.tables.levers import Change

T = TypeVar("T")
_FLOOR = 0.05
_SINGLES_SHARE = 0.05
ISOLATED, PLANS, SCALES, ALONE = "isolated_ms", "plans", "fit", "alone_ms"
"""Keys of ``Provenance.options`` in a fitted table; ``isolated_ms`` is what was known of each entry before whole
networks were timed, ``alone_ms`` what was known before neighbours came in."""


def beliefs_of(table: LatencyTable, more: Iterable[MeasuredPlan] = ()) -> Beliefs:
    """Return what a table lets one believe of its changed segments: merged ones, and those with dropped layers.

    A fitted table gives back the beliefs that it was written from. Of any other, also a published one, the entries
    themselves are the expectation, with the usual uncertainty. Entries of LayerMerge's tables do not say which
    layers stay; those with dropped ones are passed over.

    Args:
        table: any latency table.
        more: plans measured since.

    Raises:
        TableError: the provenance of a fitted table is damaged.
    """
    options = table.provenance.options
    isolated = _isolated_ms(table, options)
    original_ms = table.original_ms
    singles = math.fsum(isolated[m, m + 1] for start, end in table.chains for m in range(start, end))
    share = max(original_ms - table.provenance.fixed_ms, _SINGLES_SHARE * original_ms) / original_ms / singles
    segments = []
    signatures = {entry.key: entry.signature for entry in table.entries}
    for entry in table.entries:
        if _is_changed(entry):
            layers = [(m, m + 1) for m in range(entry.start, entry.end)]
            shape = " from ".join([entry.signature or repr(entry.key), *(signatures[m] for m in layers)])
            segments.append(
                SegmentFacts(
                    start=entry.start,
                    end=entry.end,
                    merged=share * isolated[entry.key],
                    replaced=share * math.fsum(isolated[each] for each in layers),
                    shape=shape,
                    change=entry.change,
                    kernel="" if entry.change is None else entry.merged,
                )
            )
    return Beliefs(segments, table.chains, pooled_plans([*plans_of(table), *more]))


def plans_of(table: LatencyTable) -> list[MeasuredPlan]:
    """Return the plans that a table was fitted on; none where it was not.

    Raises:
        TableError: they are not what this version writes.
    """
    found = _checked(table, PLANS, table.provenance.options.get(PLANS, []), list[_StoredPlan])
    return [MeasuredPlan(**vars(each)) for each in found]


def fitted_table(table: LatencyTable, beliefs: Beliefs, *, original_ms: float | None = None) -> LatencyTable:
    """Return a table whose entries add up to what was measured.

    Single layers share the original's latency in proportion to what they take alone (each plan holds each layer
    once, alone or in a segment, so only their sum counts). A changed segment is its layers plus the change it makes,
    and ``spread_ms`` the standard deviation of that change.

    Args:
        table: any latency table of the network.
        beliefs: about its changed segments.
        original_ms: measured latency of the original; None for the table's.
    """
    isolated = _isolated_ms(table, table.provenance.options)
    original_ms = table.original_ms if original_ms is None else original_ms
    singles = math.fsum(isolated[m, m + 1] for start, end in table.chains for m in range(start, end))
    fixed_ms = min(table.provenance.fixed_ms, (1 - _SINGLES_SHARE) * original_ms)
    scale = (original_ms - fixed_ms) / singles
    entries = []
    for entry in table.entries:
        layers_ms = scale * math.fsum(isolated[m, m + 1] for m in range(entry.start, entry.end))
        latency_ms, spread_ms = layers_ms, 0.0
        if _is_changed(entry):
            change, deviation = beliefs.changes[entry.key]
            least_ms = 0.0 if entry.merged == IDENTITY else _FLOOR * layers_ms
            latency_ms = max(layers_ms + original_ms * change, least_ms)
            spread_ms = original_ms * deviation
        elif entry.change is not None:
            latency_ms, spread_ms = scale * isolated[entry.key], scale * entry.spread_ms
        entries.append(replace(entry, latency_ms=latency_ms, spread_ms=spread_ms))
    facts: JsonObject = {
        ISOLATED: [isolated[entry.key] for entry in table.entries],
        SCALES: {name: float(value) for name, value in beliefs.scales.items()},
        PLANS: [
            {
                "act_pos": list(each.act_pos),
                "merge_pos": list(each.merge_pos),
                "ratio": each.ratio,
                "low": each.low,
                "high": each.high,
                "rounds": each.rounds,
                **({"dropped": list(each.dropped)} if each.dropped else {}),
                **({"changes": [[word, list(layers or ())] for word, layers in each.changes]} if each.changes else {}),
                **({"is_slowed": True} if each.is_slowed else {}),
            }
            for each in beliefs.measured
        ],
    }
    provenance = replace(table.provenance, fixed_ms=fixed_ms, scale=1.0, options={**table.provenance.options, **facts})
    return LatencyTable(entries, provenance=provenance, source=table.source)


def predicted_interval_ms(
    table: LatencyTable, merge_pos: Iterable[int], dropped: Iterable[int] = (), changes: Iterable[Change] = ()
) -> tuple[float, float]:
    """Return the 95 % interval of a plan's end-to-end latency, relative to the original as the table knows it.

    Raises:
        MissingEntryError: a segment without an entry.
    """
    found = beliefs_of(table).predict(merge_pos, dropped, changes)
    return table.original_ms * found.low, table.original_ms * found.high


def growth_of(entries: Sequence[LatencyEntry]) -> dict[SegmentKey, float]:
    """Return each changed segment's latency relative to the layers that it replaces."""
    known: dict[SegmentKey, float] = {entry.key: entry.latency_ms for entry in entries}
    return {
        entry.key: entry.latency_ms / math.fsum(known[m, m + 1] for m in range(entry.start, entry.end))
        for entry in entries
        if _is_changed(entry)
    }


def _is_changed(entry: LatencyEntry) -> bool:
    """Say whether an entry is of several layers merged, or of some changed that are known."""
    return entry.end - entry.start > 1 if entry.change is None else entry.change.layers is not None


def _isolated_ms(table: LatencyTable, options: Mapping[str, Any]) -> dict[SegmentKey, float]:
    values = options.get(ISOLATED)
    if values is None:
        return {entry.key: entry.latency_ms for entry in table.entries}
    values = _checked(table, ISOLATED, values, list[_StoredMs])
    if len(values) != len(table.entries):
        raise TableError(
            f"{table.source}: options.{ISOLATED} of its sidecar does not go with its {len(table.entries)} rows; "
            "profile the network again"
        )
    found = {entry.key: float(value) for entry, value in zip(table.entries, values, strict=True)}
    for start, end, *rest in found:
        if not rest and end - start == 1 and not found[start, end]:
            raise TableError(
                f"{table.source}: options.{ISOLATED} of its sidecar: layer {end} takes 0 ms, expected "
                "more; profile the network again"
            )
    return found


_StoredMs = Annotated[float, Ge(0), Le(1e9)]
_Ratio = Annotated[float, Gt(0), Le(1e6)]
_Positions = tuple[Annotated[int, Ge(0), Le(1_000_000)], ...]


@dataclass(frozen=True, kw_only=True)
class _StoredPlan:
    """A ``MeasuredPlan`` as a sidecar holds it."""

    act_pos: _Positions
    merge_pos: _Positions
    ratio: _Ratio
    low: Finite
    high: Finite
    rounds: Count
    dropped: _Positions = ()
    changes: tuple[Change, ...] = ()
    is_slowed: bool = False


def _checked(table: LatencyTable, name: str, value: object, shape: type[T]) -> T:
    """Return what an option of the provenance holds, typed; it may come from a file or from this process."""
    text = json.dumps(value, default=str)
    return parse_json(
        text,
        shape,
        source=f"{table.source}: options.{name} of its sidecar is damaged",
        remedy="profile the network again",
        error=TableError,
    )
