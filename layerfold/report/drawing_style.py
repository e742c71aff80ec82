"""Colours, shapes and legend of the network's drawing.

The colours are from the Okabe-Ito palette, and every state differs in shape as well, so that the picture reads
without colour vision and on a black-and-white printer.
"""

from __future__ import annotations

from collections.abc import Collection

STYLE = """<style>
.lf-network { --lf-paper: #ffffff; --lf-ink: #1c2430; --lf-soft: #5d6875; --lf-wire: #9aa4b0; --lf-fill: #e9ecf0;
  --lf-edge: #8d97a3; --lf-band: #d6e8f6; --lf-blue: #0072b2; --lf-bluefill: #f4f9fd; --lf-bluetext: #ffffff;
  --lf-red: #c24a00; --lf-green: #00795a; --lf-barrier: #f1efe9;
  --lf-gate: #fbe3b4; --lf-gateedge: #c98500; --lf-gatetext: #6b4600; --lf-link: #c3cad2; }
@media (prefers-color-scheme: dark) { .lf-network { --lf-paper: #14181d; --lf-ink: #e8ecf1; --lf-soft: #a2adba;
  --lf-wire: #66717e; --lf-fill: #2a313a; --lf-edge: #717d8b; --lf-band: #12354f; --lf-blue: #56b4e9;
  --lf-bluefill: #1c4a6c; --lf-bluetext: #08131c; --lf-red: #ff8a4a; --lf-green: #2fd0a0; --lf-barrier: #22262b;
  --lf-gate: #4d3808; --lf-gateedge: #e69f00; --lf-gatetext: #ffd98a; --lf-link: #4a545f; } }
@media print { .lf-network { --lf-paper: #ffffff; --lf-ink: #1c2430; --lf-soft: #5d6875; --lf-wire: #9aa4b0;
  --lf-fill: #e9ecf0; --lf-edge: #8d97a3; --lf-band: #d6e8f6; --lf-blue: #0072b2; --lf-bluefill: #f4f9fd;
  --lf-bluetext: #ffffff; --lf-red: #c24a00; --lf-green: #00795a; --lf-barrier: #f1efe9;
  --lf-gate: #fbe3b4; --lf-gateedge: #c98500; --lf-gatetext: #6b4600; --lf-link: #c3cad2; } }
.lf-paper { fill: var(--lf-paper); }
.lf-network text { fill: var(--lf-ink); }
.lf-title { font-size: 19px; font-weight: 650; }
.lf-network .lf-summary { font-size: 13px; fill: var(--lf-soft); }
.lf-wire { stroke: var(--lf-wire); stroke-width: 1.6; }
.lf-link { stroke: var(--lf-link); stroke-width: 1.4; fill: none; stroke-linejoin: round; }
.lf-layer { fill: var(--lf-fill); stroke: var(--lf-edge); stroke-width: 1; }
.lf-layer.lf-merged { fill: var(--lf-bluefill); stroke: var(--lf-blue); }
.lf-layer.lf-dropped { fill: none; stroke-dasharray: 3 2; }
.lf-depthwise { fill: url(#lf-stripes); pointer-events: none; }
.lf-stripe { stroke: var(--lf-edge); stroke-width: 1.1; opacity: .55; }
.lf-kernel { font-size: 9.5px; text-anchor: middle; paint-order: stroke; stroke: var(--lf-fill); stroke-width: 2px; }
.lf-merged ~ .lf-kernel { stroke: var(--lf-bluefill); }
.lf-network .lf-number { font-size: 8.5px; text-anchor: middle; fill: var(--lf-soft); }
.lf-network .lf-stride { fill: var(--lf-ink); font-weight: 700; }
.lf-band { fill: var(--lf-band); }
.lf-conv { fill: var(--lf-blue); }
.lf-costly { fill: var(--lf-blue); stroke: var(--lf-red); stroke-width: 2; }
.lf-network .lf-convtext { font-size: 10.5px; font-weight: 650; text-anchor: middle; fill: var(--lf-bluetext); }
.lf-stroke { fill: none; stroke: var(--lf-soft); stroke-width: 1.4; }
.lf-head { fill: var(--lf-soft); }
.lf-shortcut .lf-stroke { stroke-dasharray: 6 3; }
.lf-inside .lf-stroke { stroke: var(--lf-blue); }
.lf-inside .lf-head { fill: var(--lf-blue); }
.lf-kept { fill: var(--lf-ink); stroke: var(--lf-paper); stroke-width: 1.2; }
.lf-empty { fill: var(--lf-paper); stroke: var(--lf-wire); stroke-width: 1.4; }
.lf-removed { fill: var(--lf-paper); stroke: var(--lf-red); stroke-width: 1.5; }
.lf-added { fill: var(--lf-green); stroke: var(--lf-paper); stroke-width: 1.2; }
.lf-cross { stroke: var(--lf-red); stroke-width: 1.5; }
.lf-plus { stroke: var(--lf-paper); stroke-width: 1.6; }
.lf-barrier { fill: var(--lf-barrier); stroke: var(--lf-edge); stroke-dasharray: 3 2; }
.lf-network .lf-barriertext { font-size: 9.5px; text-anchor: middle; fill: var(--lf-soft); }
.lf-gate { fill: var(--lf-gate); stroke: var(--lf-gateedge); stroke-width: 1.2; }
.lf-network .lf-gatetext { font-size: 9.5px; text-anchor: middle; fill: var(--lf-gatetext); font-weight: 650; }
.lf-network .lf-legend { font-size: 11.5px; fill: var(--lf-soft); }
</style>
<defs><pattern id="lf-stripes" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<line class="lf-stripe" x1="0" y1="0" x2="0" y2="5"/></pattern></defs>"""


def rect(kind: str, x: float, y: float, width: float, height: float, radius: float) -> str:
    """Return a rectangle of a class, with rounded corners."""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}"/>'


def dot(state: str, x: float, y: float) -> str:
    """Return the mark of an activation slot: ``kept``, ``empty``, ``removed`` (a cross) or ``added`` (a plus)."""
    radius = {"kept": 4.2, "empty": 3.6, "removed": 5.2, "added": 5.6}[state]
    mark = f'<circle class="lf-{state}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
    if state == "removed":
        mark += f'<path class="lf-cross" d="M{x - 2.6:.1f} {y - 2.6:.1f}l5.2 5.2m0 -5.2l-5.2 5.2"/>'
    elif state == "added":
        mark += f'<path class="lf-plus" d="M{x - 3.2:.1f} {y:.1f}h6.4m-3.2 -3.2v6.4"/>'
    return mark


LEGEND_LINE = 24.0


def legend(x: float, y: float, width: float, shown: Collection[str]) -> tuple[str, int]:
    """Return the legend, whose first line begins at (x, y), and its number of lines.

    Args:
        width: of a line, at most.
        shown: what the picture holds, of the keys below; only that is explained.
    """
    layer, arc = rect("lf-layer", 0, -13, 17, 17, 3), '<path class="lf-stroke" d="M0 1v-6q0 -6 6 -6h12q6 0 6 6v6"/>'
    merged = rect("lf-band", 0, -15, 30, 21, 4) + rect("lf-layer lf-merged", 3, -13, 10, 11, 2)
    merged += rect("lf-layer lf-merged", 17, -13, 10, 11, 2) + rect("lf-conv", 0, 0, 30, 6, 3)
    items = {
        "layer": (22.0, layer, "layer left as it is" if "merged" in shown else "layer"),
        "merged": (35.0, merged, "merged into one conv"),
        "dropped": (22.0, rect("lf-layer lf-merged lf-dropped", 0, -13, 17, 17, 3), "dropped"),
        "costly": (35.0, rect("lf-conv lf-costly", 0, -10, 30, 9, 4), "with more multiply-adds"),
        "depthwise": (22.0, layer + rect("lf-depthwise", 0, -13, 17, 17, 3), "depthwise"),
        "kept": (11.0, dot("kept", 3, -4), "activation"),
        "empty": (11.0, dot("empty", 3, -4), "no activation"),
        "removed": (12.0, dot("removed", 3, -4), "removed"),
        "added": (12.0, dot("added", 3, -4), "added"),
        "residual": (30.0, arc, "residual"),
        "shortcut": (30.0, f'<g class="lf-shortcut">{arc}</g>', "through a conv"),
        "barrier": (23.0, rect("lf-barrier", 0, -14, 17, 19, 8), "barrier"),
        "gate": (23.0, rect("lf-gate", 0, -14, 17, 19, 8), "squeeze-and-excitation"),
    }
    parts, at, line = [], 0.0, 0
    for key, (shape_width, shape, text) in items.items():
        if key in shown:
            if at + shape_width + 6.5 * len(text) > width:
                at, line = 0.0, line + 1
            words = f'<text class="lf-legend" x="{shape_width:g}">{text}</text>'
            place = f"translate({x + at:.1f} {y + line * LEGEND_LINE:.1f})"
            parts.append(f'<g transform="{place}">{shape}{words}</g>')
            at += shape_width + 6.3 * len(text) + 15
    return "".join(parts), line + 1
