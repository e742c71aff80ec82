"""Merged kernels as text: what tells the options of one segment apart where layers are changed.

``3x3``, ``5x5 dw`` (depthwise), ``3x3 s2x2``, ``3x3 d2x2``, ``3x3 g32``; ``identity`` where nothing stays. The
word of a lever other than ``drop`` stands behind it: ``3x3 +nm:2of4``. LayerMerge's files have three columns for the
kernel, ``ker``, ``str`` and ``is_dw``, and 0 for that of the identity.
"""

from __future__ import annotations

import re

IDENTITY = "identity"
SegmentKey = tuple[int, int] | tuple[int, int, str]
"""(start, end), and the merged kernel where a lever changes some of the layers."""

_SIZE = r"([1-9]\d{0,5})x([1-9]\d{0,5})"
_TEXT = re.compile(rf"{_SIZE}(?: s{_SIZE})?(?: d{_SIZE})?(?: (dw)| g([1-9]\d{{0,7}}))?(?: \+[a-z][\w:.-]{{0,99}})?")
Pair = tuple[int, int]


def kernel_text(
    size: Pair, *, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1, is_depthwise: bool = False
) -> str:
    """Return a merged kernel as text; (height, width) each."""
    words = [f"{size[0]}x{size[1]}"]
    words += [f"{mark}{pair[0]}x{pair[1]}" for mark, pair in (("s", stride), ("d", dilation)) if pair != (1, 1)]
    if is_depthwise:
        words.append("dw")
    elif groups > 1:
        words.append(f"g{groups}")
    return " ".join(words)


def is_kernel_text(text: str) -> bool:
    """Say whether ``text`` is what :func:`kernel_text` returns."""
    return text == IDENTITY or _TEXT.fullmatch(text) is not None


def kernel_columns(text: str) -> tuple[str, str, str]:
    """Return LayerMerge's columns ``ker``, ``str``, ``is_dw``; a kernel or stride that is not square as HxW."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return "0", "1", "True"
    height, width, down, across, _, _, depthwise, _ = found.groups()
    return _square(height, width), _square(down or "1", across or "1"), str(depthwise is not None)


def kernel_sides(text: str) -> Pair:
    """Return (height, width) of a merged kernel; (0, 0) of the identity."""
    found = _TEXT.fullmatch(text)
    return (0, 0) if found is None else (int(found.group(1)), int(found.group(2)))


def kernel_of_columns(ker: str, stride: str, is_dw: str) -> str | None:
    """Return the text of LayerMerge's columns, or None where they are not what it writes."""
    sizes = [re.fullmatch(rf"{_SIZE}|(0|[1-9]\d{{0,5}})", text) for text in (ker, stride)]
    if is_dw not in ("True", "False", "1", "0") or not all(sizes):
        return None
    if ker == "0":
        return IDENTITY
    size, step = ((int(m[1] or m[3]), int(m[2] or m[3])) for m in sizes if m)
    if 0 in step:
        return None
    return kernel_text(size, stride=step, is_depthwise=is_dw in ("True", "1"))


def _square(height: str, width: str) -> str:
    return height if height == width else f"{height}x{width}"
