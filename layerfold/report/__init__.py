"""What people look at: the network's drawing, the frontier's plot, the result table and the report page."""

from __future__ import annotations

from layerfold.report.captions import conv_text
from layerfold.report.data import MergedSegment, ReportData, ResultRow, StepTime, VerifyRound
from layerfold.report.drawing import network_svg
from layerfold.report.frontier import MeasuredPoint, frontier_png
from layerfold.report.page import write_report
from layerfold.report.savings import merged_segments
from layerfold.report.terminal import result_table_text

__all__ = [
    "MeasuredPoint",
    "MergedSegment",
    "ReportData",
    "ResultRow",
    "StepTime",
    "VerifyRound",
    "conv_text",
    "frontier_png",
    "merged_segments",
    "network_svg",
    "result_table_text",
    "write_report",
]
