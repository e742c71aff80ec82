"""Rows of a cache file as schema 2 had them: the kind stood in the signature, and ratios in fields of milliseconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from sqlite3 import Connection
from typing import Any

from layerfold.profiler.store.kinds import Kind

SCHEMA = 2
COLUMNS = (
    "environment",
    "signature",
    "median_ms",
    "low_ms",
    "high_ms",
    "is_settled",
    "measured_at",
    "took_s",
    "build_s",
    "summary",
    "conditions",
)
_PLAN = re.compile(r"plan [0-9a-f]+ of network:(\S+)( again)?")
_NETWORK = re.compile(r"(whole|outside) network:(\S+)( \(screening\))?")


def rows_of(connection: Connection) -> Iterator[tuple[Any, ...]]:
    """Give the measurements as this version stores them, in the order of its columns."""
    query = "SELECT environment, signature, measured_at, took_s, build_s, summary, conditions FROM measurement"
    for environment, signature, *times, summary, conditions in connection.execute(query):
        kind, network = kind_of(str(signature))
        if kind.is_ratio:
            summary = _ratio_of(summary)
        yield environment, signature, kind.value, network, *times, summary, conditions


def kind_of(signature: str) -> tuple[Kind, str]:
    """Return what a signature is of, and the hash of the network that it belongs to alone, or an empty text."""
    if signature.startswith("beside neighbours: "):
        return (Kind.NEIGHBOURS_RATIO if signature.endswith(" ratio") else Kind.NEIGHBOURS), ""
    if plan := _PLAN.fullmatch(signature):
        return (Kind.PLAN_AGAIN if plan[2] else Kind.PLAN), plan[1]
    if network := _NETWORK.fullmatch(signature):
        return (Kind.NETWORK if network[1] == "whole" else Kind.OUTSIDE), network[2]
    return (Kind.SCREENING if signature.endswith(" (screening)") else Kind.ALONE), ""


def _ratio_of(summary: Any) -> Any:
    """Return the text with the fields of a ratio; one that is damaged as it is, to be found and measured again."""
    try:
        was = json.loads(summary)
        return json.dumps(
            {
                "estimate": was["median_ms"],
                "low": was["low_ms"],
                "high": was["high_ms"],
                "rounds": was["blocks"],
                "contended": was["disturbed"],
                "runs": was["runs"],
                "is_settled": was["is_settled"],
            }
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return summary
