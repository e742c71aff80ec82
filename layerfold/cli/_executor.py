"""Arguments that say where the entries of a table are worked out: in this process, in several, or on a cluster."""

from __future__ import annotations

import argparse

from layerfold.cli._options import THREADS, whole
from layerfold.errors import UsageError
from layerfold.executor import EXECUTORS, Executor, parse_resources


def add_executor_arguments(parser: argparse.ArgumentParser, *, has_threads: bool) -> None:
    """Add ``--executor`` and what goes with it; read them with ``executor_of``.

    Args:
        parser: of the command.
        has_threads: whether ``--threads`` is among them; otherwise the command has one of its own.
    """
    group = parser.add_argument_group(
        "where",
        "entries go to several processes at once, each finished one is kept at "
        "once, and one whose process dies is tried again",
    )
    group.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="this machine, or a Ray cluster (default: %(default)s)"
    )
    several = group.add_mutually_exclusive_group()
    several.add_argument(
        "--workers",
        type=whole(1, THREADS),
        metavar="N",
        help="processes, on a CPU each pinned to processors of its own (default: 1; with ray: all "
        "that the cluster has room for)",
    )
    several.add_argument(
        "--devices",
        type=_names,
        default=[],
        metavar="A,B",
        help="one process each, for example cuda:0,cuda:1; all of the same kind"
        + ("; a GPU that one does not fill may be named twice" if has_threads else ""),
    )
    if has_threads:
        group.add_argument(
            "--threads",
            type=whole(1, THREADS),
            metavar="N",
            help="of each process (default: the processors divided; with ray: its CPUs)",
        )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="a running cluster (default: RAY_ADDRESS, or one of this machine that ends with the command)",
    )
    group.add_argument(
        "--ray-resources",
        type=parse_resources,
        metavar="NAME:N,...",
        help="what each worker takes of the cluster, for example GPU:1 or GPU:1,h200:1 (default: CPU:1)",
    )
    group.add_argument(
        "--retries",
        type=whole(0, 1000),
        default=3,
        metavar="N",
        help="times that an entry is tried again (default: %(default)s)",
    )


def executor_of(arguments: argparse.Namespace) -> Executor:
    """Return the executor that ``add_executor_arguments`` read.

    Raises:
        UsageError: an argument that does not go with the executor.
    """
    ray = {}
    for flag, name in (("--ray-address", "ray_address"), ("--ray-resources", "ray_resources")):
        if getattr(arguments, name) is not None:
            ray[name] = getattr(arguments, name)
            if arguments.executor != "ray":
                raise UsageError(f"{flag}: goes with --executor ray; add that, or leave it out")
    resources = {"resources": ray["ray_resources"]} if "ray_resources" in ray else {}
    return Executor(
        kind=arguments.executor,
        workers=arguments.workers,
        devices=tuple(arguments.devices),
        threads=arguments.threads,
        address=arguments.ray_address,
        retries=arguments.retries,
        **resources,
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text}: names with commas between them are expected, as cuda:0,cuda:1")
    return names
