"""Try every model of timm: trace, the unchanged train form against the model, a random solution merged.

    python benchmarks/package/timm_sweep.py [--only PATTERN ...] [--most-params 60e6] [--jobs 1] [--out timm-sweep-out]

Random weights and images, one thread per process. Each finished model is a line of the journal in --out, so that a
stopped run goes on where it was; for another version of the code give another folder. Ends 1 where a model fails in
another way than with one line of its own (a LayerfoldError that says why it cannot be traced).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import ROOT

_SMALL = (96, 128)
_TIME_LIMIT_S = 400


def main() -> int:
    import timm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="PATTERN", help="names like this only; may be repeated")
    parser.add_argument("--every", type=int, default=1, help="one of so many, spread over the list (%(default)s)")
    parser.add_argument("--most-params", type=float, default=60e6, help="larger models are left out (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, one thread each (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "timm-sweep-out", help="folder of the journal")
    args = parser.parse_args()
    names = [name for name in timm.list_models() if any(fnmatch.fnmatch(name, only) for only in args.only or ["*"])]
    names = names[:: args.every]
    args.out.mkdir(parents=True, exist_ok=True)
    journal = args.out / "journal.jsonl"
    found = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        entry = json.loads(line)
        found[entry["name"]] = entry
    waiting = [name for name in names if name not in found]
    with ProcessPoolExecutor(args.jobs, max_tasks_per_child=25) as pool, journal.open("a") as file:
        work = {pool.submit(try_model, name, args.most_params): name for name in waiting}
        for done in as_completed(work):
            entry = {"name": work[done], **done.result()}
            found[entry["name"]] = entry
            file.write(json.dumps(entry) + "\n")
            file.flush()
            print(f"[{len(found)}/{len(names)}] {entry['name']}: {entry['outcome']} {entry.get('why', '')}"[:220])
    results = [found[name] for name in names if name in found]
    print(Counter(entry["outcome"] for entry in results))
    failed = [entry["name"] for entry in results if entry["outcome"] in ("traceback", "differs")]
    if failed:
        print("failed:", *failed, file=sys.stderr)
    return int(bool(failed))


def try_model(name: str, most_params: float) -> dict[str, Any]:
    """Return ``outcome``: ``passed``, ``refused`` (one line), ``differs``, ``traceback``, ``slow`` or ``left out``."""
    began = time.perf_counter()

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {_TIME_LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_TIME_LIMIT_S)
    try:
        result = _try(name, most_params)
    except TimeoutError as error:
        result = {"outcome": "slow", "why": str(error)}
    except Exception as error:
        result = {"outcome": "traceback", "why": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    finally:
        signal.alarm(0)
    return {**result, "seconds": round(time.perf_counter() - began, 1)}


def _try(name: str, most_params: float) -> dict[str, Any]:
    import timm
    import torch

    import layerfold as lf
    from layerfold.graph import check_same_function
    from tests.bank.solutions import QUICK_LIMITS, random_solution

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.device("meta"):
        try:
            size = sum(each.numel() for each in timm.create_model(name).parameters())
        except Exception:
            size = 0  # its constructor computes with its weights
    if size > most_params:
        return {"outcome": "left out", "why": f"{size / 1e6:.0f} M parameters"}
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    images = _images(model)
    try:
        net = lf.trace_network(model, images[:1])
    except lf.LayerfoldError as error:
        return {"outcome": "refused", "why": str(error)}
    all_positions = tuple(range(1, len(net.layers) + 1))
    facts = {"layers": len(net.layers), "chains": len(net.chains), "notes": list(net.notes), "size": images.shape[-1]}
    try:
        same = lf.build_train_form(model, net, lf.Solution(act_pos=net.original_act_pos, merge_pos=all_positions))
        check_same_function(model, same, images)
        candidates = QUICK_LIMITS.of(net.candidates(**QUICK_LIMITS.shape))
        student = lf.build_train_form(model, net, random_solution(net, candidates, random.Random(0)))
        student = student.double()  # merged weights are rounded, and outputs of random weights may hardly vary
        check_same_function(student, lf.merge_network(student), images.double())
    except lf.LayerfoldError as error:
        return {"outcome": "differs", "why": str(error), **facts}
    return {"outcome": "passed", **facts}


def _images(model: Any) -> Any:
    """Return [2, C, H, W] of the smallest size that a model runs on: its own, if none that is small will do."""
    import torch

    channels, *own = model.pretrained_cfg.get("input_size", (3, 224, 224))
    for size in (*((each, each) for each in _SMALL if each < own[0]), tuple(own)):
        images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(images)
        except Exception:
            continue
        return images
    return images


if __name__ == "__main__":
    sys.exit(main())
