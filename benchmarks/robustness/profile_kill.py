"""Profiling killed with SIGKILL at random moments and restarted until it is done, against one left alone.

    python benchmarks/robustness/profile_kill.py [--kills 50] [--model timm:mobilenetv2_050] [--input 3x64x64]

Each life is a process of its own, forked from one that has imported everything and traced the network, so that the
kill falls into the profiling and not into importing torch. The kills are spread over the work: for each a number of
finished measurements is drawn in advance, and it comes a random time after that many are there. A life that ends before
its kill is not counted as one. What happened is read off the
cache file by SQLite itself: a trigger, set up before the first life, writes down every insert of a measurement in
the transaction that makes it. Ends 1 unless every measurement that was once there is there to the bit in the end, none
was made twice, and the table has the rows of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from lives import life
from record import write_record

_AUDIT = """
CREATE TABLE audit (environment TEXT, signature TEXT, measured_at REAL, summary TEXT);
CREATE TRIGGER audit_insert AFTER INSERT ON measurement BEGIN
    INSERT INTO audit VALUES (new.environment, new.signature, new.measured_at, new.summary);
END;
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="timm:mobilenetv2_050")
    parser.add_argument("--input", default="3x64x64")
    parser.add_argument("--method", default="plans")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = kill_and_restart(args.model, args.input, method=args.method, kills=args.kills, seed=args.seed)
    write_record("profile_kill", results, vars(args), packages=("torch", "timm", "onnxruntime"))
    return int(not results["passed"])


def kill_and_restart(model: str, input_shape: str, *, method: str, kills: int, seed: int) -> dict[str, Any]:
    """Return what undisturbed and killed profiling left behind, compared."""
    import torch

    import layerfold as lf

    torch.set_num_threads(1)  # a forked child cannot use the threads of its parent
    shape = tuple(int(size) for size in input_shape.split("x"))
    loaded = lf.load_model(model)
    net = lf.trace_network(loaded.module, torch.zeros(1, *shape))
    candidates = net.candidates(max_growth=4.0)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def profile(cache: Path, table: Path) -> None:
            lf.profile_network(
                loaded.module, net, cache=cache, candidates=candidates, method=method, progress=False
            ).write(table)

        began = time.perf_counter()
        life(lambda: profile(folder / "whole.sqlite", folder / "whole.csv"), None)
        whole_s = time.perf_counter() - began

        num_whole = len(stored(folder / "whole.sqlite"))
        cache = folder / "killed.sqlite"
        prepare(cache)
        rng = random.Random(seed)
        seen: dict[tuple[str, str], tuple[float, str]] = {}
        changed: list[str] = []
        lives = []
        num_killed = 0
        targets = sorted(rng.randrange(max(round(0.95 * num_whole), 1)) for _ in range(kills))
        for target in targets:
            began = time.perf_counter()
            ended = life(
                lambda: profile(cache, folder / "killed.csv"),
                rng.uniform(0.0, 2 * whole_s / num_whole),
                until=lambda target=target: len(stored(cache)) >= target,
            )
            num_killed += ended == -signal.SIGKILL
            life_s = time.perf_counter() - began
            rows = stored(cache)
            changed += [key[1] for key, row in seen.items() if rows.get(key) != row]
            lives.append({"life_s": round(life_s, 3), "finished": len(rows) - len(seen), "ended": ended})
            seen = rows
        began = time.perf_counter()
        life(lambda: profile(cache, folder / "killed.csv"), None)
        last_s = time.perf_counter() - began
        final = stored(cache)
        changed += [key[1] for key, row in seen.items() if final.get(key) != row]
        with sqlite3.connect(cache) as connection:
            audit = connection.execute("SELECT environment, signature, count(*) FROM audit GROUP BY 1, 2").fetchall()
        whole, killed = lf.LatencyTable.read(folder / "whole.csv"), lf.LatencyTable.read(folder / "killed.csv")
        # A second run on the finished cache measures nothing and gives the same table, to the bit.
        life(lambda: profile(cache, folder / "again.csv"), None)
        again = lf.LatencyTable.read(folder / "again.csv")
        repeated = [signature for _, signature, count in audit if count > 1]
        ratios = [b.latency_ms / a.latency_ms for a, b in zip(whole.entries, killed.entries, strict=True)]
        found = {
            "entries": len(killed),
            "measurements": len(final),
            "undisturbed_s": round(whole_s, 1),
            "kills": num_killed,
            "kills_with_finished_work_since_the_last": sum(each["finished"] > 0 for each in lives),
            "finished_before_a_kill": len(seen),
            "finished_in_the_last_life": len(final) - len(seen),
            "last_life_s": round(last_s, 1),
            "kept_measurements_lost_or_changed": len(changed),
            "measurements_made_twice": len(repeated),
            "same_rows_as_undisturbed": rows_of(whole) == rows_of(killed),
            "same_measurements_as_undisturbed": sum(key in final for key in stored(folder / "whole.sqlite")),
            "same_table_when_read_again": latencies(again) == latencies(killed),
            "latency_killed_over_undisturbed_median": round(statistics.median(ratios), 4),
            "lives": lives,
        }
        found["passed"] = (
            num_killed == kills
            and not changed
            and not repeated
            and found["same_rows_as_undisturbed"]
            and found["same_table_when_read_again"]
        )
        return found


def prepare(cache: Path) -> None:
    """Make an empty cache whose inserts are written down by SQLite."""
    from layerfold.profiler.store.cache import MeasurementCache

    MeasurementCache(cache, {}).close()
    with sqlite3.connect(cache) as connection:
        connection.executescript(_AUDIT)


def stored(cache: Path) -> dict[tuple[str, str], tuple[float, str]]:
    """Return every measurement: (environment, signature) -> (when, summary as stored)."""
    connection = sqlite3.connect(cache)
    try:
        rows = connection.execute("SELECT environment, signature, measured_at, summary FROM measurement").fetchall()
    finally:
        connection.close()
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


def latencies(table: Any) -> list[float]:
    return [entry.latency_ms for entry in table.entries]


def rows_of(table: Any) -> list[tuple[int, int, str]]:
    return [(entry.start, entry.end, entry.signature) for entry in table.entries]


if __name__ == "__main__":
    sys.exit(main())
