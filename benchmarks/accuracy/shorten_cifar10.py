"""Ways to shorten a network, side by side on CIFAR-10: what accuracy each leaves at the same latency budget.

    python benchmarks/accuracy/shorten_cifar10.py                  # both networks, 1.3x and 1.6x, 2 epochs
    python benchmarks/accuracy/shorten_cifar10.py mobilenetv2_050_cifar --speedups 1.3 \\
        --only baseline latency importance
    python benchmarks/accuracy/shorten_cifar10.py resnet20 resnet56 --epochs 20 --seeds 0 1 2 \\
        --backend torch --device cuda --train-device cuda

A way is a function from a run, a budget (by the network's latency table) and a seed to a solution: see ``WAYS``. What
it chooses is measured; where that is over the budget, it chooses again with a budget smaller by as much. Then equal
finetuning, and every finished network is measured in turns with the original.
Resumable: work is kept under ``--work``, and ``--only`` does some of the steps, so that those that measure latency
(``latency``, ``compare``) can have a core to themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
from cifar_runs import IMPORTANCE_IMAGES, MAX_GROWTH, MAX_KERNEL, NETWORKS, Run
from frontiers import compare_frontiers, without_drops
from record import RESULTS, ROOT, write_record

import layerfold as lf
from layerfold.merge import Recipe, load_form, save_form
from layerfold.search import GRANULARITIES, BestMerging, activations_left, list_gates

STEPS = ("baseline", "latency", "importance", "solve", "finetune", "compare")
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")
_MOST_ROUNDS, _MARGIN = 4, 0.01
"""How often a way chooses at most, and how much smaller than needed its next budget is."""


def merging_only(run: Run, budget_ms: float, seed: int) -> lf.Solution:
    """Return the exact solver's choice by measured importances, of plans that keep every layer."""
    return lf.solve_frontier(without_drops(run.latency), run.importance).at(budget_ms=budget_ms)


def merging_and_dropping(run: Run, budget_ms: float, seed: int) -> lf.Solution:
    """Return the exact solver's choice, of plans that may drop layers too (LayerMerge)."""
    return lf.solve_frontier(run.latency, run.importance).at(budget_ms=budget_ms)


def search(run: Run, budget_ms: float, seed: int) -> lf.Solution:
    """Return what gates learn, one for each activation; it takes an epoch, so what was found is kept."""
    arguments, kept = run.arguments, run.trained / f"search-{budget_ms:g}-{seed}"
    checkpoint, found = kept.with_name(f"{kept.name}.checkpoint"), kept.with_name(f"{kept.name}.json")
    if found.exists():
        return lf.Solution.read(found)
    solution = lf.search_activations(
        run.teacher,
        run.net,
        run.data,
        budget_ms=budget_ms,
        latency=run.latency,
        training=run.training(seed, arguments.search_epochs),
        device=arguments.train_device,
        checkpoint_path=checkpoint,
        model_name=run.name,
    ).solution
    solution.write(found)
    checkpoint.unlink(missing_ok=True)
    return solution


def uniform_removal(run: Run, budget_ms: float, seed: int) -> lf.Solution:
    """Return the most activations that are left when slots or blocks go evenly over the network, within the budget."""
    merging, found, least_ms = BestMerging(run.net, run.latency), [], math.inf
    for granularity in GRANULARITIES:
        gates = list_gates(run.net, granularity)
        for keep in range(len(gates) + 1):
            kept = {int((index + 0.5) * len(gates) / keep) for index in range(keep)}
            acts = activations_left(run.net, gates, [index in kept for index in range(len(gates))])
            found += [acts] if merging.predict_ms(acts) <= budget_ms else []
            least_ms = min(least_ms, merging.predict_ms(acts))
    if not found:
        raise lf.InfeasibleBudgetError(
            f"budget {budget_ms:.6g} ms: the least is {least_ms:.6g} ms", budget_ms=budget_ms, least_ms=least_ms
        )
    return merging.solution(max(found, key=len), model=run.name, budget_ms=budget_ms)


WAYS: dict[str, Callable[[Run, float, int], lf.Solution]] = {
    "merging only": merging_only,
    "merging and dropping": merging_and_dropping,
    "search": search,
    "uniform removal": uniform_removal,
}


def solve(run: Run, way: str, speedup: float, seed: int) -> dict[str, Any]:
    """Choose what to do, once; a budget that the way does not reach is an answer."""
    path = run.file(way, speedup, seed, ".json")
    if not path.exists():
        began = time.monotonic()
        try:
            found = choose_within(run, way, speedup, seed)
        except lf.InfeasibleBudgetError as error:
            found = {
                "status": "unreachable",
                "least_ms": error.least_ms,
                "budget_ms": error.budget_ms,
                "reachable_speedup": run.latency.original_ms / error.least_ms,
            }
        path.write_text(json.dumps({**found, "seconds": time.monotonic() - began}))
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def choose_within(run: Run, way: str, speedup: float, seed: int) -> dict[str, Any]:
    """Choose, and choose again with less until the measured latency is within the budget.

    Raises:
        lf.InfeasibleBudgetError: the way has nothing that is predicted to be as fast as that.
    """
    budget_ms, rounds = run.latency.original_ms / speedup, []
    while True:
        solution = WAYS[way](run, budget_ms, seed)
        found = lf.verify_solution(run.untrained.module, run.net, solution, run.backend, speedup=speedup)
        rounds.append({"budget_ms": budget_ms, "ratio": found.ratio, "ratio_high": found.ratio_high})
        print(
            f"{run.name}, {way}, {speedup:g}x: predicted {run.latency.original_ms / budget_ms:.3f}x, measured "
            f"{1 / found.ratio:.3f}x",
            file=sys.stderr,
            flush=True,
        )
        if found.is_within_budget or len(rounds) == _MOST_ROUNDS:
            return {"status": "solved", "solution": solution.to_json(), "rounds": rounds}
        budget_ms *= (1 - _MARGIN) / (found.ratio_high * speedup)


def finetune(run: Run, solved: dict[str, Any], way: str, speedup: float, seed: int) -> None:
    """Finetune one solution, score it on the test images, keep it as a train form."""
    path = run.file(way, speedup, seed, ".safetensors")
    solution = lf.Solution.from_json(solved["solution"])
    if path.exists():
        kept = load_form(path, run.loaded.module).recipe.solution
        if (kept.plan, kept.act_pos) == (solution.plan, solution.act_pos):
            return
    student = lf.build_train_form(run.teacher, run.net, solution).to(memory_format=torch.channels_last)
    checkpoint = run.file(way, speedup, seed, ".checkpoint")
    options = run.training(seed, run.arguments.epochs)
    report = lf.finetune_network(
        student,
        run.data,
        teacher=run.teacher,
        epochs=options.epochs,
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=seed,
        checkpoint_path=checkpoint,
        device=run.arguments.train_device,
        description=f"{run.name}, {way}, {speedup:g}x",
    )
    scores = lf.evaluate_network(student, run.data.split("test"), teacher=run.teacher)
    recipe = Recipe(model=run.loaded.source, input_shape=run.loaded.input_shape, solution=solution)
    save_form(
        student.to(memory_format=torch.contiguous_format),
        path,
        kind="train",
        recipe=recipe,
        facts={
            "accuracy_pct": scores.accuracy_pct,
            "agreement_pct": scores.agreement_pct,
            "finetune": report.as_dict(),
        },
    )
    checkpoint.unlink(missing_ok=True)


def compare(run: Run, every: list[tuple[str, float, int]]) -> dict[str, Any]:
    """Measure every finetuned network in turns with the original; return a row for each way, reached or not."""
    solved = {key: solve(run, *key) for key in every}
    forms = {
        key: load_form(run.file(*key, ".safetensors"), run.loaded.module)
        for key, found in solved.items()
        if found["status"] == "solved"
    }
    has_seeds = len({seed for _, _, seed in every}) > 1
    names = {key: f"{key[0]}, {key[1]:g}x" + (f", seed {key[2]}" if has_seeds else "") for key in every}
    original_pct = lf.evaluate_network(run.loaded.module, run.data.split("test")).accuracy_pct
    rows: list[dict[str, Any]] = []
    comparison: dict[str, Any] = {}
    if forms:
        found = lf.compare_solutions(
            run.loaded.module,
            run.net,
            {names[key]: form.recipe.solution for key, form in forms.items()},
            run.backend,
            networks={names[key]: lf.merge_network(form.module) for key, form in forms.items()},
            latency=run.latency,
            importance=run.importance,
            accuracies_pct={"original": original_pct, **{names[k]: f.facts["accuracy_pct"] for k, f in forms.items()}},
        )
        found.plot(run.trained / "compare.png", title=f"{run.name} on CIFAR-10")
        comparison = found.to_json()
    measured = {each["name"]: each for each in comparison.pop("networks", [])}
    for each in measured.values():
        each["note"] = each["note"].replace(f"{run.folder}/", "")
    for key in every:
        way, speedup, seed = key
        row = {
            "way": way,
            "speedup_asked": speedup,
            "seed": seed,
            "status": solved[key]["status"],
            "solve_seconds": solved[key]["seconds"],
            **({"rounds": solved[key]["rounds"]} if key in forms else {}),
        }
        if key in forms:
            row |= {
                "finetune_seconds": forms[key].facts["finetune"]["seconds"],
                "agreement_pct": forms[key].facts["agreement_pct"],
                "solution": solved[key]["solution"],
                **measured[names[key]],
            }
        else:
            row |= {name: solved[key][name] for name in ("least_ms", "budget_ms", "reachable_speedup")}
        rows.append(row)
    return {
        "original_accuracy_pct": original_pct,
        "original_predicted_ms": run.latency.original_ms,
        "frontiers": compare_frontiers(run.latency, run.importance),
        "rows": rows,
        "original": measured.get("original"),
        "provenance": comparison.get("provenance"),
    }


def print_rows(name: str, found: dict[str, Any]) -> None:
    """Print the table of one network."""
    print(f"\n{name}: original {found['original_accuracy_pct']:.2f} %")
    frontiers = found["frontiers"]
    print(
        f"frontiers by measured importances, at {frontiers['budgets_compared']} budgets: better with drops at "
        f"{frontiers['better_with_drops']}, worse at {frontiers['worse_with_drops']}"
    )
    print(f"{'way':<22}{'asked':>7}{'predicted':>11}{'measured':>10}{'accuracy':>11}{'convs':>7}{'acts':>6}")
    for row in found["rows"]:
        asked = f"{row['speedup_asked']:g}x"
        if row["status"] != "solved":
            print(f"{row['way']:<22}{asked:>7}   not reached; the most is {row['reachable_speedup']:.3f}x")
            continue
        predicted = found["original_predicted_ms"] / row["predicted_ms"]
        print(
            f"{row['way']:<22}{asked:>7}{predicted:>10.3f}x{row['speedup']:>9.3f}x{row['accuracy_pct']:>9.2f} %"
            f"{row['num_convs']:>7}{row['num_activations']:>6}"
        )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what decides a network's rows: the record's networks need not have been run with the same."""
    chosen = {key: value for key, value in vars(arguments).items() if key not in ("work", "only", "networks")}
    limits = {"max_kernel": MAX_KERNEL, "max_growth": MAX_GROWTH}
    return {**chosen, **limits, "importance_images": IMPORTANCE_IMAGES}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.3, 1.6], metavar="X")
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help=", ".join(WAYS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="of finetuning")
    parser.add_argument("--search-epochs", type=int, default=1, metavar="N", help="of the search, before finetuning")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each training, in place of epochs")
    parser.add_argument("--backend", default="onnxruntime", metavar="NAME")
    parser.add_argument("--device", metavar="NAME", help="of the backend")
    parser.add_argument("--train-device", default="cpu", metavar="NAME")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--work", type=Path, default=ROOT / "build/shorten_cifar10", metavar="FOLDER")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.networks or ["mobilenetv2_050_cifar", "resnet20"]:
        run = Run(name, arguments)
        every = [(way, x, seed) for x in arguments.speedups for way in arguments.ways for seed in arguments.seeds]
        for step in (step for step in STEPS[:3] if step in arguments.only):
            print(f"{name}: {step}", file=sys.stderr, flush=True)
            getattr(run, step)
        for key in every:
            if "solve" in arguments.only or "finetune" in arguments.only:
                solved = solve(run, *key)
                if solved["status"] == "solved" and "finetune" in arguments.only:
                    finetune(run, solved, *key)
        if "compare" in arguments.only:
            results[name] = {"settings": settings_of(arguments), **compare(run, every)}
            print_rows(name, results[name])
    if results:
        earlier = RESULTS / "shorten_cifar10.json"
        if earlier.exists():
            results = {**json.loads(earlier.read_text())["results"], **results}
        write_record("shorten_cifar10", results, {"threads": 1, "batch": 1}, packages=_PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
