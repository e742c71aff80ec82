"""Where tasks are done: in this process, in several of this machine, or on a Ray cluster. No torch here."""

from __future__ import annotations

from layerfold.executor.executor import EXECUTORS, Executor, parse_resources
from layerfold.executor.places import processors
from layerfold.executor.protocol import Pool

__all__ = [
    "EXECUTORS",
    "Executor",
    "Pool",
    "parse_resources",
    "processors",
]
