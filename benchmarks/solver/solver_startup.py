"""How long ``layerfold solve`` takes as a whole process, against one that imports numpy, pandas and scipy.

    python benchmarks/solver/solver_startup.py [--repeats 10]

Both are run in turn on the published tables; the best of each is compared. Ends 1 if the difference is 0.5 s or
more, or if torch was imported.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import ROOT, shared_path, write_record
from solver_published import TABLES, random_importance

IMPORTS = "import numpy, pandas, scipy"
SOLVE = (
    "import sys; from layerfold.cli import main; code = main(sys.argv[1:]);"
    "sys.exit(3 if 'torch' in sys.modules else code)"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    results = {}
    for name, suffix in TABLES.items():
        with tempfile.TemporaryDirectory() as folder:
            imp_path = Path(folder) / "imp.csv"
            random_importance(name, 0).write(imp_path)
            time_path = shared_path() / "seed_tables" / name / f"time_{suffix}.csv"
            solve = [
                sys.executable,
                "-c",
                SOLVE,
                "solve",
                "--latency",
                str(time_path),
                "--importance",
                str(imp_path),
                "--knee",
                "--json",
            ]
            ours, theirs = [], []
            for _ in range(args.repeats):
                theirs.append(seconds([sys.executable, "-c", IMPORTS]))
                ours.append(seconds(solve))
        results[name] = {
            "solve_best_s": round(min(ours), 3),
            "solve_median_s": round(statistics.median(ours), 3),
            "imports_best_s": round(min(theirs), 3),
            "imports_median_s": round(statistics.median(theirs), 3),
            "difference_best_s": round(min(ours) - min(theirs), 3),
        }
    write_record("solver_startup", results, vars(args))
    return int(any(each["difference_best_s"] >= 0.5 for each in results.values()))


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
