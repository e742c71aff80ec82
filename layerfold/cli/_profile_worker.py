"""One more process of ``layerfold profile --workers N``: fills the same cache, writes no table."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack

from layerfold.errors import LayerfoldError, ProvenanceMismatchError


def main() -> int:
    """Do the task on standard input; errors are one line on stderr, as anywhere."""
    from layerfold.profiler.workers import Place, move_to, read_task

    task = read_task()
    try:
        move_to(Place(processors=tuple(task["processors"])))
        _fill(argparse.Namespace(**{**task["arguments"], "device": task["device"]}), task["environment"])
    except LayerfoldError as error:
        print(f"layerfold: worker {os.getpid()}: {' '.join(str(error).split())}; the others go on", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _fill(args: argparse.Namespace, environment: dict[str, object]) -> None:
    from layerfold.cli._networks import candidates_of, trace_of
    from layerfold.cli._options import open_backend
    from layerfold.cli._sources import load_model_of
    from layerfold.profiler.open_cache import environment_of, open_cache
    from layerfold.profiler.profile import profile_network

    backend = open_backend(args)
    here = environment_of(backend, batch=args.batch, dtype=backend.precision)
    first = environment
    if here != environment:
        raise ProvenanceMismatchError(f"this device is {here['device']}, driver {here['driver']}, the first one is "
                                      f"{first['device']}, driver {first['driver']}: one table is of one kind of "
                                      "device, profile them one after the other")
    net = trace_of(args, loaded := load_model_of(args))
    with ExitStack() as stack:
        log = stack.enter_context(open(args.log, "a", encoding="utf-8")) if args.log else None
        store = stack.enter_context(open_cache(args.cache, backend, batch=args.batch, dtype=backend.precision, log=log))
        profile_network(
            loaded.module, net, backend, batch=args.batch, dtype=backend.precision, cache=store,
            candidates=candidates_of(args, net, loaded), method=args.method, target=args.target, cap_s=args.cap_s,
            progress=False, workers=args.num_workers,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
