"""What a signature tells of a merged conv: kernel, parameters, multiply-adds.

The text is that of ``Segment.signature`` (layerfold/graph/description.py), for example
``16x32x32 conv:o24,k3x3,s1x1,p1.1.1.1,d1x1,g1 act:relu6 add:16x32x32:identity``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")
_CONV = re.compile(r"conv:o(\d+),k(\d+)x(\d+),s(\d+)x(\d+),p(\d+)\.(\d+)\.(\d+)\.(\d+),d(\d+)x(\d+),g(\d+)")


@dataclass(frozen=True, kw_only=True)
class ConvSizes:
    """Sizes of a segment's convs; None where the signature does not tell.

    Attributes:
        kernel: the larger of the merged kernel's height and width.
        params: weights and biases, shortcut convs that stay included.
        macs: multiply-adds of one image, shortcut convs that stay included.
    """

    kernel: int | None = None
    params: int | None = None
    macs: int | None = None


@lru_cache(maxsize=65536)
def conv_sizes(signature: str) -> ConvSizes:
    """Read a signature; whatever it does not say is None."""
    words = signature.split()
    if len(words) < 2:
        return ConvSizes()
    main = _conv(words[0], words[1])
    if main is None:
        return ConvSizes()
    kernel, params, macs, _ = main
    for word in words[2:]:
        if not word.startswith("add:"):
            continue
        _, shape, *convs = word.split(":", 2)
        if convs == ["identity"]:
            continue
        for conv in convs[0].split("+") if convs else []:
            added = _conv(shape, conv)
            if added is None:
                return ConvSizes(kernel=kernel)
            params, macs, shape = params + added[1], macs + added[2], added[3]
    return ConvSizes(kernel=kernel, params=params, macs=macs)


def _conv(shape_text: str, conv_text: str) -> tuple[int, int, int, str] | None:
    """Return (larger kernel side, params, macs, output shape as text)."""
    shape, conv = _SHAPE.fullmatch(shape_text), _CONV.fullmatch(conv_text)
    if shape is None or conv is None:
        return None
    channels, height, width = map(int, shape.groups())
    out, kh, kw, sh, sw, top, bottom, left, right, dh, dw, groups = map(int, conv.groups())
    if 0 in (sh, sw, groups):
        return None
    rows = (height + top + bottom - (kh - 1) * dh - 1) // sh + 1
    columns = (width + left + right - (kw - 1) * dw - 1) // sw + 1
    weights = out * (channels // groups) * kh * kw
    return max(kh, kw), weights + out, rows * columns * weights, f"{out}x{rows}x{columns}"
