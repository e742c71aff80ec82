"""Compare the solver with enumeration and MILP on random problems: several chains, devices, caps, risk, ties.

    python benchmarks/solver/solver_oracles.py [--count 10000]

Ends 1 if any answer differs or exceeds a budget.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import write_record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="problems (%(default)s)")
    parser.add_argument("--layers", type=int, default=7, help="most layers of a problem (%(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    from tests.oracles.solver_check import check_solver

    began = time.monotonic()
    with ProcessPoolExecutor(args.workers) as pool:
        found = list(pool.map(partial(check_solver, most_layers=args.layers), range(args.count), chunksize=50))
    lines = [line for each in found for line in each.differences]
    for line in lines[:20]:
        print(line, file=sys.stderr)
    write_record(
        "solver_oracles",
        {
            "problems": args.count,
            "feasible": sum(each.is_feasible for each in found),
            "also_by_milp": sum(each.with_milp for each in found),
            "differences": len(lines),
            "over_budget": sum(each.is_over for each in found),
            "seconds": round(time.monotonic() - began, 1),
        },
        {"count": args.count, "layers": args.layers, "workers": args.workers},
    )
    return 1 if lines or any(each.is_over for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
