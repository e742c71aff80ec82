"""What ``layerfold inspect`` prints: tables first, and the summary last, where a terminal shows it.

A network of 300 layers has hundreds of barriers and residuals, most of them alike: whatever repeats is one line with a
count and positions. Names and details of each are in ``--json``.
"""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from layerfold.cli._text import columns, facts, plural
from layerfold.graph.barrier_groups import group_barriers, item_label, why_not_more
from layerfold.graph.counts import count_merge_sets, count_plans, lean_candidates, mergeable_share
from layerfold.graph.squeeze_excitation import SqueezeExcitation, chains_outside, find_squeeze_excitations
from layerfold.report.columns import Items, columns_of
from layerfold.report.words import count_text, large_text, positions_text, share_text

if TYPE_CHECKING:
    from layerfold.graph import Network, Segment
    from layerfold.graph.description import Barrier, Layer, Residual
    from layerfold.solver import Solution

_Thing = TypeVar("_Thing")
_Key = TypeVar("_Key", bound=Hashable)


def inspect_text(
    net: Network,
    candidates: Sequence[Segment],
    solution: Solution | None,
    source: str,
    drops: Sequence[Segment] = (),
    *,
    brief: bool = False,
) -> str:
    """Return the whole text view.

    Args:
        net: the traced network.
        candidates: what may be merged in it.
        solution: what of it a solution merges; None to leave that out.
        source: what the user called the model.
        drops: options in which layers are dropped.
        brief: leave out the table of layers.
    """
    parts = [] if brief else [_layers(net)]
    parts += [_chains(net), *_residuals(net), *_barriers(net)]
    if net.notes:
        parts.append("notes\n" + "\n".join(_wrapped(note, indent=2) for note in net.notes))
    if solution is not None:
        parts.append(merged_text(net, solution))
    parts.append(summary_text(net, candidates, source, drops))
    return "\n\n".join(parts)


def summary_text(net: Network, candidates: Sequence[Segment], source: str, drops: Sequence[Segment] = ()) -> str:
    """Return the counts: of layers, of candidates and plans, and of the multiply-adds that they reach."""
    several = sum(segment.num_layers > 1 for segment in candidates)
    gated = sum(len(gate.layers) for gate in find_squeeze_excitations(net))
    longest = max((chain.end - chain.start for chain in chains_outside(net)), default=0)
    lean = lean_candidates(net, candidates)
    reach = (
        f"{share_text(mergeable_share(net, candidates))} of multiply-adds lie in such segments; "
        f"{share_text(mergeable_share(net, lean))} without adding any"
    )
    return facts(
        [
            ("model", source),
            ("input", "x".join(map(str, net.input_shapes[0][1:]))),
            ("parameters", count_text(net.num_params)),
            ("multiply-adds", f"{count_text(net.macs)} (one image)"),
            (
                "layers",
                f"{len(net.layers)} in {plural(len(net.chains), 'chain')}, the longest of {longest}"
                + (f"; {gated} of them inside squeeze-and-excitation" if gated else ""),
            ),
            ("candidates", f"{plural(several, 'segment')} of several layers"),
            ("with drops", drops_text(drops) if drops else None),
            (
                "plans",
                f"{large_text(count_merge_sets(net, candidates))} sets S of merge positions, "
                f"{large_text(count_plans(net, candidates))} pairs (A, S)",
            ),
            ("mergeable", reach),
            ("why not more", why_not_more(net) or None),
            ("network hash", net.hash),
        ]
    )


def drops_text(drops: Sequence[Segment]) -> str:
    """Return how many options leave layers out, and how many leave nothing."""
    nothing = sum(segment.is_identity for segment in drops)
    layers = len({index for segment in drops for index in segment.dropped})
    return f"{plural(len(drops), 'further option')} without some of {plural(layers, 'layer')}; {nothing} leave nothing"


def merged_text(net: Network, solution: Solution) -> str:
    """Return what a solution merges, and which of its segments raise multiply-adds."""
    from layerfold.report import merged_segments

    merged = merged_segments(net, solution)
    if not merged:
        return "merged by the solution: nothing"
    rows = []
    for each in merged:
        change = each.after_macs - each.before_macs
        ratio = f"×{each.after_macs / each.before_macs:.2f}" if each.before_macs else ""
        rows.append(
            (
                f"{each.start + 1}..{each.end}",
                each.conv,
                count_text(each.before_macs),
                count_text(each.after_macs),
                ratio,
                f"raises by {count_text(change)}" if change > 0 else "",
            )
        )
    raising = [each.after_macs - each.before_macs for each in merged if each.after_macs > each.before_macs]
    after = net.macs + sum(each.after_macs - each.before_macs for each in merged)
    last = f"{len(raising)} of {len(merged)} merged segments raise multiply-adds"
    last += f", by {count_text(sum(raising))} in all" if raising else ""
    last += f"; the whole network: {count_text(net.macs)} before, {count_text(after)} after"
    table = columns(
        ("layers", "merged conv", "multiply-adds", "after", "ratio", ""),
        rows,
        right="multiply-adds after ratio",
        indent="  ",
    )
    return f"merged by the solution\n{table}\n  {last}"


def _layers(net: Network) -> str:
    """Return the table of layers; what stands between chains has a line between theirs, a gate one in all."""
    table = columns(
        ("#", "layer", "kind", "norm", "activation", "output", "multiply-adds"),
        [_layer_row(layer) for layer in net.layers],
        right="# output multiply-adds",
    )
    header, *rows = table.split("\n")
    found, margin = [header], len(str(len(net.layers))) + 2
    placed, behind = columns_of(net)
    for number, column in enumerate(placed):
        side_by_side = len(column.lanes)
        if column.items:
            found.append(_between(column.items, "", margin))
        elif side_by_side == 1 and number and not column.lanes[0].items:
            found.append(_between((), "a map that is read more than once", margin))
        for branch, lane in enumerate(column.lanes, start=1):
            if side_by_side > 1 or lane.items:
                note = f"branch {branch} of {side_by_side}" if side_by_side > 1 else ""
                found.append(_between(lane.items, note, margin))
            found += rows[lane.chain.start : lane.chain.end]
    return "\n".join([*found, *([_between(behind, "", margin)] if behind else ())])


def _between(items: Items, note: str, margin: int) -> str:
    """Return a line between two chains: what stands there, the same things counted."""
    counts = Counter(_item_text(item) for item in items)
    names = ", ".join(name + (f" ×{count}" if count > 1 else "") for name, count in counts.items())
    return _wrapped(f"── {note}{': ' if note and names else ''}{names}", indent=margin)


def _item_text(item: Barrier | SqueezeExcitation) -> str:
    if not isinstance(item, SqueezeExcitation):
        return item_label(item)
    what = f"layers {positions_text(item.layers)}: 1×1 convs on 1×1 maps" if item.layers else "linear layers"
    return f"{item_label(item)} {item.name} ({what})"


def _layer_row(layer: Layer) -> tuple[object, ...]:
    from layerfold.report import conv_text

    norm = "" if layer.norm is None else layer.norm.rpartition(".")[2]
    macs = count_text(layer.conv.macs(layer.input_shape))
    return (
        layer.index,
        layer.name,
        conv_text(layer),
        norm,
        layer.activation,
        "x".join(map(str, layer.output_shape)),
        macs,
    )


def _chains(net: Network) -> str:
    groups: dict[tuple[bool, int, str], list[int]] = {}
    outside = {chain.start for chain in chains_outside(net)}
    for chain in net.chains:
        key = chain.start not in outside, chain.end - chain.start, str(chain.activation or "none")
        groups.setdefault(key, []).append(chain.start)
    rows = []
    for (is_gate, length, activation), starts in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1])):
        ranges = ", ".join(f"{start + 1}..{start + length}" if length > 1 else str(start + 1) for start in starts)
        rows.append((len(starts), length, activation, ranges + (" (inside squeeze-and-excitation)" if is_gate else "")))
    return "chains: layers merge within one only\n" + _grouped(
        ("count", "length", "commonest activation", "layers"), rows, right="count length"
    )


def _residuals(net: Network) -> Iterator[str]:
    if not net.residuals:
        return
    groups = _group(net.residuals, lambda residual: (residual.dst - residual.src, _way(residual)))
    rows = [
        (len(found), span, way, ", ".join(f"{each.src}→{each.dst}" for each in found)) for (span, way), found in groups
    ]
    yield "residuals: the map at one position is added at another\n" + _grouped(
        ("count", "layers", "way", "positions"), rows, right="count layers"
    )


def _way(residual: Residual) -> str:
    if residual.is_identity:
        return "identity"
    convs = " and ".join(f"{conv.kernel_size[0]}×{conv.kernel_size[1]}" for conv in residual.shortcut)
    strides = max(stride for conv in residual.shortcut for stride in conv.stride)
    return f"through a {convs} conv" + (f", stride {strides}" if strides > 1 else "")


def _barriers(net: Network) -> Iterator[str]:
    if not net.barriers:
        return
    rows = []
    for group in group_barriers(net):
        names = f" ({', '.join(item.name for item in group.items)})" if len(group.items) < 3 else ""
        where = "the input" if group.positions == (0,) else positions_text(group.positions)
        rows.append((len(group.items), group.label, group.reason, where + names))
    yield "barriers: nothing merges across them\n" + _grouped(
        ("count", "what", "why", "behind layers"), rows, right="count"
    )


def _group(things: Sequence[_Thing], key_of: Callable[[_Thing], _Key]) -> list[tuple[_Key, list[_Thing]]]:
    """Return things by key, in the order in which each key comes first."""
    groups: dict[_Key, list[_Thing]] = {}
    for thing in things:
        groups.setdefault(key_of(thing), []).append(thing)
    return list(groups.items())


def _grouped(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: str) -> str:
    """Return columns of which the last, a list of positions, goes on under itself where the line is too short."""
    narrow = columns(header[:-1], [row[:-1] for row in rows], right=right, indent="  ").split("\n")
    width = max(map(len, narrow)) + 2
    lists = [header[-1], *(str(row[-1]) for row in rows)]
    if width > _line_width() - 30:  # no room beside the other columns
        return "\n".join(f"{head}\n{_wrapped(text, indent=8)}" for head, text in zip(narrow, lists, strict=True))
    return "\n".join(
        head.ljust(width) + _wrapped(text, indent=width).lstrip() for head, text in zip(narrow, lists, strict=True)
    )


def _wrapped(text: str, *, indent: int) -> str:
    return textwrap.fill(
        text,
        max(_line_width(), indent + 20),
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _line_width() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, 160)
