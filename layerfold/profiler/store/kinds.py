"""What kind of measurement a row of the cache is of."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """A kind of measurement, as the column ``kind`` holds it."""

    ALONE = "alone"
    """A segment by itself, or what a call costs, as careful as an entry of a table needs it."""
    SCREENING = "screening"
    """The same, roughly: to see which segments are worth more."""
    OUTSIDE = "outside"
    """What lies outside the chains of a network."""
    NETWORK = "network"
    """A whole network, unmerged."""
    NEIGHBOURS = "neighbours"
    """Layers as they are, with one on either side."""
    NEIGHBOURS_RATIO = "neighbours ratio"
    """A segment merged / not merged, with a layer on either side."""
    PLAN = "plan"
    """A network merged by a plan / the network."""
    PLAN_AGAIN = "plan again"
    """A second reading of that."""

    @property
    def is_ratio(self) -> bool:
        """Whether it is a ratio, without a unit, and not milliseconds."""
        return self in (Kind.NEIGHBOURS_RATIO, Kind.PLAN, Kind.PLAN_AGAIN)


SUFFIXES = {Kind.ALONE: "", Kind.SCREENING: " (screening)"}
"""What stands behind the signature of a segment by itself: a rough measurement is not taken for a careful one."""
