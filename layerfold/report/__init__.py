"""What people look at: the network's drawing, the frontier's plot, the result table and the report page."""

from __future__ import annotations

from layerfold.report.drawing import network_svg

__all__ = ["network_svg"]
