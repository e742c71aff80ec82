"""The network's drawing says what the solution says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from layerfold.graph import ActivationSpec, Barrier, Chain, ConvSpec, Layer, Network, Residual
from layerfold.graph.specs import Kind
from layerfold.report import conv_text, layout, network_svg
from layerfold.report.box_sizes import box_text
from layerfold.report.drawing import slot_state
from layerfold.report.drawing_style import legend
from layerfold.report.placing import place

RELU = ActivationSpec(kind="relu")


@dataclass(frozen=True)
class Positions:
    act_pos: tuple[int, ...]
    merge_pos: tuple[int, ...]


def _conv(kernel: int, groups: int = 1) -> ConvSpec:
    pad = (kernel // 2, kernel // 2)
    return ConvSpec(in_channels=8, out_channels=8, kernel_size=(kernel, kernel), padding=(pad, pad), groups=groups)


def _network(chain_lengths: tuple[int, ...] = (4, 3), residuals: tuple[Residual, ...] = ()) -> Network:
    """Return chains of layers 3x3, depthwise 3x3, 1x1, 3x3, ... with an activation behind all but each third."""
    layers, chains, barriers = [], [], []
    for number, length in enumerate(chain_lengths):
        start = len(layers)
        for _ in range(length):
            index = len(layers) + 1
            conv = (_conv(3), _conv(3, groups=8), _conv(1))[(index - 1) % 3]
            activation = None if index % 3 == 0 else RELU
            shape = (8, 32 >> number, 32 >> number)
            layers.append(
                Layer(
                    index=index,
                    name=f"body.{index}",
                    conv=conv,
                    norm=None,
                    activation=activation,
                    input_shape=shape,
                    output_shape=shape,
                )
            )
        chains.append(Chain(start=start, end=len(layers), activation=RELU))
        barriers.append(Barrier(name=f"pool{number}", kind="MaxPool2d", reason="takes a maximum", after=len(layers)))
    return Network(
        name="Sample",
        layers=tuple(layers),
        chains=tuple(chains),
        residuals=residuals,
        barriers=tuple(barriers),
        input_shapes=((1, 8, 32, 32),),
        macs=1000,
        num_params=100,
    )


def _texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def _count(svg: str, kind: str) -> int:
    """Return how many shapes of a class the picture holds, its legend left out."""
    root = ET.fromstring(svg)
    legend = {id(shape) for group in root if "transform" in group.attrib for shape in group.iter()}
    return sum(kind in element.attrib.get("class", "").split() for element in root.iter() if id(element) not in legend)


def test_original_has_a_box_a_layer_and_no_band() -> None:
    svg = network_svg(_network())
    assert _count(svg, "lf-layer") == 7
    assert _count(svg, "lf-band") == 0
    assert _count(svg, "lf-kept") == 5
    assert _count(svg, "lf-empty") == 2


def test_merged_segments_are_bands_with_the_merged_kernel() -> None:
    svg = network_svg(_network(), Positions(act_pos=(4, 7), merge_pos=(2, 4, 5, 7)))
    assert _count(svg, "lf-band") == _count(svg, "lf-conv") == 3
    texts = _texts(svg)
    assert "one 5×5 conv" in texts  # layers 1, 2: 3x3 and depthwise 3x3
    assert texts.count("one 3×3 conv") == 2  # layers 3, 4: 1x1 and 3x3; layers 6, 7: 1x1 and 3x3
    assert _count(svg, "lf-merged") == 6


def test_every_segment_is_named_in_its_hover_title() -> None:
    svg = network_svg(_network(), Positions(act_pos=(4,), merge_pos=(4,)))
    assert "layers 1 to 4 merged into one conv: 7×7, 8→8" in svg
    assert "body.3" in svg


def test_summary_counts_what_was_done() -> None:
    svg = network_svg(_network(), Positions(act_pos=(2, 3, 4, 5), merge_pos=(2, 3, 4, 5)))
    assert "7 layers → 5: 2 merged convs in place of 4 layers; 1 activation removed, 1 added" in svg


@pytest.mark.parametrize(
    ("index", "act_pos", "state"),
    [
        (1, {1}, "kept"),
        (1, set(), "removed"),
        (3, {3}, "added"),
        (3, set(), "empty"),
        (4, set(), "kept"),  # a chain's end keeps what it has
        (6, {6}, "added"),
    ],
)
def test_slot_state(index: int, act_pos: set[int], state: str) -> None:
    assert slot_state(_network(), index, frozenset(act_pos)) == state


def test_dots_show_each_state() -> None:
    svg = network_svg(_network(), Positions(act_pos=(2, 3, 4, 5), merge_pos=(2, 3, 4, 5)))
    assert [_count(svg, f"lf-{state}") for state in ("kept", "removed", "added", "empty")] == [4, 1, 1, 1]


def test_barrier_stands_between_its_chains() -> None:
    placed = place(_network())
    between, behind = placed.marks
    assert placed.slots[4][1] < between.x < placed.boxes[5].x
    assert behind.x > placed.slots[7][1]
    assert "max pool" in _texts(network_svg(_network()))


def test_residual_taken_into_a_segment_is_told_from_one_that_stays() -> None:
    net = _network(residuals=(Residual(src=0, dst=2, source_shape=(8, 32, 32)),))
    assert _count(network_svg(net, Positions(act_pos=(2, 4), merge_pos=(2, 3, 4))), "lf-inside") == 1
    open_svg = network_svg(net, Positions(act_pos=(1, 2, 4), merge_pos=(1, 2, 3, 4)))
    assert (_count(open_svg, "lf-arc"), _count(open_svg, "lf-inside")) == (1, 0)


def test_nested_residuals_have_arcs_one_above_the_other() -> None:
    inner, outer, next_one = Residual(src=1, dst=2), Residual(src=0, dst=3), Residual(src=3, dst=4)
    assert layout.arc_levels((outer, inner, next_one)) == [2, 1, 1]
    assert layout.arc_levels((inner, inner)) == [1, 2]  # two additions into one position
    net = _network(residuals=(outer, inner))
    assert place(net).tracks[0].arcs > place(_network(residuals=(inner,))).tracks[0].arcs
    assert _count(network_svg(net), "lf-arc") == 2


def test_merged_conv_with_more_multiply_adds_is_marked() -> None:
    net = _network()
    # A 3x3 and a depthwise 3x3 become one dense 5x5.
    dense = network_svg(net, Positions(act_pos=(2, 4, 7), merge_pos=(2, 4, 5, 6, 7)))
    assert _count(dense, "lf-costly") == 1
    assert "with more multiply-adds" in _texts(dense)
    assert _count(network_svg(net, Positions(act_pos=(1,), merge_pos=(1, 2, 4, 5, 6, 7))), "lf-costly") == 0


@pytest.mark.parametrize("kind", ["norm", "scale", "add", "pool", "slice"])
def test_layer_that_is_no_conv_is_shown_as_what_it_is(kind: Kind) -> None:
    layer = _network().layer(2)
    shown = replace(layer, conv=replace(layer.conv, kind=kind))
    names = {
        "norm": "batch norm, 8",
        "scale": "channel scale, 8",
        "add": "addition, 8",
        "pool": "average pool 3×3, 8",
        "slice": "strided slice, 8",
    }
    assert conv_text(shown) == names[kind]
    assert box_text(shown) == {"norm": "BN", "scale": "×", "add": "+", "pool": "avg 3×3", "slice": "slice"}[kind]
    net = _network((2,))
    assert _count(network_svg(net), "lf-depthwise") == 1
    assert _count(network_svg(replace(net, layers=(net.layer(1), shown))), "lf-depthwise") == 0


def test_segment_moves_to_the_next_row_in_one_piece() -> None:
    net = _network((60,))
    merge_pos = [*range(1, 60, 4), 60]
    placed = place(net, merge_pos)
    assert len(placed.tracks) > 1
    for found in layout.segment_ranges(0, 60, merge_pos):
        assert len({placed.boxes[index].track for index in found}) == 1


def test_segment_longer_than_a_row_has_a_band_in_each_row() -> None:
    net = _network((60,))
    svg = network_svg(net, Positions(act_pos=(60,), merge_pos=(60,)))
    assert _count(svg, "lf-band") == len(place(net, (60,)).tracks)
    assert sum("60 layers → one" in text for text in _texts(svg)) == 1


@pytest.mark.parametrize("length", [1, 2, 29, 61, 200])
def test_boxes_neither_overlap_nor_leave_the_page(length: int) -> None:
    placed = place(_network((length, 2)))
    rows: dict[int, list[layout.Box]] = {}
    for box in placed.boxes.values():
        rows.setdefault(box.track, []).append(box)
        assert box.right <= layout.MARGIN + layout.ROW_WIDTH
    for found in rows.values():
        for left, right in pairwise(found):
            assert left.right < right.x


def test_names_are_escaped() -> None:
    svg = network_svg(_network(), title='a <b> & "c"')
    assert "".join(_texts(svg)[0]) == 'a <b> & "c"'


def test_legend_stays_on_the_page() -> None:
    keys = "layer merged costly depthwise kept empty removed added residual shortcut barrier gate"
    explained, num_lines = legend(24, 0, layout.ROW_WIDTH, set(keys.split()))
    assert num_lines == 2
    starts = [float(x) for x in re.findall(r"translate\(([\d.]+)", explained)]
    assert len(starts) == 12
    assert max(starts) < layout.ROW_WIDTH


def test_picture_needs_nothing_from_outside() -> None:
    svg = network_svg(_network())
    assert "<script" not in svg
    assert svg.count("http") == 1  # the name of the SVG format
