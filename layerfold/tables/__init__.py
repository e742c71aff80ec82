"""Latency and importance tables: types, files, checks (docs/design.md). No torch."""

from layerfold.tables._several import TableDifference, check_coverage, diff_tables, merge_tables, read_table
from layerfold.tables.importance import ImportanceEntry, ImportanceTable
from layerfold.tables.latency import LatencyEntry, LatencyTable
from layerfold.tables.provenance import Provenance

__all__ = [
    "ImportanceEntry",
    "ImportanceTable",
    "LatencyEntry",
    "LatencyTable",
    "Provenance",
    "TableDifference",
    "check_coverage",
    "diff_tables",
    "merge_tables",
    "read_table",
]
