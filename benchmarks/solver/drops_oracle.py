"""Compare the solver with enumeration on random problems in which layers may be dropped.

    python benchmarks/solver/drops_oracle.py [--count 2000]

Several chains, devices, caps, risk, ties, segments of which nothing stays. Ends 1 if any frontier differs, or any
answer exceeds a budget.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import write_record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="problems (%(default)s)")
    parser.add_argument("--layers", type=int, default=5, help="most layers of a problem (%(default)s)")
    args = parser.parse_args()

    from tests.oracles.drops import compare_drops

    began = time.monotonic()
    found = [compare_drops(seed, most_layers=args.layers) for seed in range(args.count)]
    lines = [line for each, _, _ in found for line in each]
    for line in lines[:20]:
        print(line, file=sys.stderr)
    write_record(
        "drops_oracle",
        {
            "problems": args.count,
            "feasible": sum(is_feasible for _, is_feasible, _ in found),
            "answers_that_drop": sum(drops for *_, drops in found),
            "differences": len(lines),
            "seconds": round(time.monotonic() - began, 1),
        },
        {"count": args.count, "layers": args.layers},
    )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
