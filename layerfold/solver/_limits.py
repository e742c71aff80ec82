"""Limits beside the budget, and decisions that are fixed beforehand."""

from __future__ import annotations

from dataclasses import dataclass, fields

from layerfold.arguments import flag, number, shown
from layerfold.errors import TableError, UsageError
from layerfold.tables import LatencyEntry
from layerfold.tables.fields import positions
from layerfold.tables.kernel import kernel_sides
from layerfold.tables.signature import conv_sizes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a solution must keep to, beside the budget.

    Attributes:
        max_params: most parameters of the merged convs of all chains (what lies outside chains does not count).
        max_macs: most multiply-adds of the merged convs of all chains, for one image.
        max_merged: most segments of more than one layer; those of which nothing stays do not count.
        keep_activations: positions whose activation stays (an empty slot named here is filled).
        drop_activations: positions that get no activation; what the original has there is merged over.
        never_merge: layers that stay convs of their own, as they are.
        max_kernel: largest kernel height or width of a merged segment; single layers may be larger.
        allow_bare_stops: whether merging may stop where an activation was removed, as the published solver allows.
            By default nothing is removed for nothing: an activation stays where its removal frees no merge, and a
            segment that is not faster than its parts is no option.

    Example:
        >>> limits = lf.Limits(max_merged=1, keep_activations={2})
        >>> [point.act_pos for point in lf.solve_frontier(latency, importance, limits=limits)]
        [(2, 3), (1, 2, 3)]
    """

    max_params: float | None = None
    max_macs: float | None = None
    max_merged: int | None = None
    keep_activations: frozenset[int] = frozenset()
    drop_activations: frozenset[int] = frozenset()
    never_merge: frozenset[int] = frozenset()
    max_kernel: int | None = None
    allow_bare_stops: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.startswith("max_"):
                if value is not None and not 0 <= number(each.name, value) < 1e18:
                    raise UsageError(f"{each.name}={shown(value)}: expected a number of at least 0 and below 1e18")
            elif each.name.startswith("allow_"):
                object.__setattr__(self, each.name, flag(each.name, value))
            else:
                object.__setattr__(self, each.name, frozenset(positions(each.name, value)))
        both = sorted(self.keep_activations & self.drop_activations)
        if both:
            raise UsageError(f"positions {shown(both)}: an activation cannot be both kept and dropped; name each once")

    @property
    def has_segment_rules(self) -> bool:
        """Whether some segments may not be used."""
        return bool(self.never_merge) or self.max_kernel is not None

    def allows(self, entry: LatencyEntry, source: str) -> bool:
        """Say whether an entry's segment may be used.

        Raises:
            TableError: a kernel limit on a table that does not say how large its merged kernels are.
        """
        if entry.end == entry.start + 1 and entry.change is None:
            return True
        if any(entry.start < layer <= entry.end for layer in self.never_merge):
            return False
        if self.max_kernel is None:
            return True
        if entry.merged:
            return max(kernel_sides(entry.merged)) <= self.max_kernel
        kernel = conv_sizes(entry.signature).kernel if entry.signature else None
        if kernel is None:
            raise TableError(
                f"{source}: segment ({entry.start},{entry.end}) has no signature that tells its kernel, "
                "so max_kernel cannot be checked; profile the network with layerfold"
            )
        return kernel <= self.max_kernel

    def check_positions(self, chains: tuple[tuple[int, int], ...], source: str) -> None:
        """Refuse positions and layers that lie in no chain."""
        for name in ("keep_activations", "drop_activations", "never_merge"):
            for position in sorted(getattr(self, name)):
                if not any(start < position <= end for start, end in chains):
                    raise UsageError(
                        f"{name}={position}: not in {source}, expected one in "
                        f"{', '.join(f'{start + 1}..{end}' for start, end in chains)}"
                    )
