"""Where tasks are done: in this process, in several of this machine, or on a Ray cluster. No torch here."""

from __future__ import annotations

from layerfold.executor.executor import EXECUTORS, Executor, parse_resources
from layerfold.executor.places import Place, move_to, places_of, processors
from layerfold.executor.protocol import MakeWorker, Pool

__all__ = [
    "EXECUTORS",
    "Executor",
    "MakeWorker",
    "Place",
    "Pool",
    "move_to",
    "parse_resources",
    "places_of",
    "processors",
]
