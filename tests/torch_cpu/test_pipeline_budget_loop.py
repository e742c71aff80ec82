"""The loop's decisions, played against made-up machines, and what a folder forgets: all without measuring."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.budget import Budget
from layerfold.cli._solve_verify import _finalists_text, _wholes_text
from layerfold.errors import InfeasibleBudgetError, UsageError
from layerfold.graph import Network
from layerfold.options.solve import MOST_WHOLES
from layerfold.pipeline.budget_loop import LoopResult, check_reachable, meet_budget
from layerfold.pipeline.run_folder import RunFolder
from layerfold.profiler.plans.plan import MeasuredPlan, Plan
from layerfold.profiler.verify import Verification
from layerfold.solver import Limits, ScoredPlan

ORIGINAL_MS = 10.0
DEPTH = 16


@pytest.fixture(scope="module")
def net() -> Network:
    layers = [part for _ in range(DEPTH) for part in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return lf.trace_network(nn.Sequential(*layers).eval(), torch.zeros(1, 4, 32, 32))


class Machine:
    """A machine on which merging changes latency in a way that the table only roughly knows."""

    def __init__(self, net: Network, seed: int, *, error: float = 0.25, noise: float = 0.004) -> None:
        self.rng = random.Random(seed)
        self.net, self.noise = net, noise
        entries, self.change = [], {}
        for segment in net.candidates(max_kernel=9):
            layers = segment.num_layers
            believed = 0.55 * layers**0.7 if layers > 1 else 0.55
            entries.append(lf.LatencyEntry(start=segment.start, end=segment.end, latency_ms=believed))
            if layers > 1:
                true = believed * self.rng.uniform(1 - error, 1 + error)
                self.change[segment.start, segment.end] = (true - 0.55 * layers) / ORIGINAL_MS
        self.table = lf.LatencyTable(
            entries, provenance=lf.Provenance(kind="latency", chains=((0, DEPTH),), fixed_ms=ORIGINAL_MS - 0.55 * DEPTH)
        )
        worth = [self.rng.uniform(0.2, 1.8) for _ in range(DEPTH + 1)]
        self.importance = lf.ImportanceTable(
            [
                lf.ImportanceEntry(start=s, end=e, start_act=1, end_act=1, importance=-sum(worth[s + 1 : e]))
                for s, e in sorted(self.table.segments)
            ]
        )

    def ratio(self, merge_pos: Sequence[int]) -> float:
        stops = sorted({0, DEPTH, *merge_pos})
        return 1 + sum(self.change.get(pair, 0.0) for pair in itertools.pairwise(stops))

    def least_ratio(self) -> float:
        best = [0.0] * (DEPTH + 1)
        for end in range(1, DEPTH + 1):
            best[end] = min(
                best[start] + self.change.get((start, end), 0.0 if end == start + 1 else 9.0) for start in range(end)
            )
        return 1 + best[DEPTH]

    def has_plan_between(self, low: float, high: float) -> bool:
        """Say whether the frontier of the true latencies has a plan there."""
        entries = [
            replace(
                each,
                latency_ms=each.latency_ms
                if each.end == each.start + 1
                else 0.55 * (each.end - each.start) + ORIGINAL_MS * self.change[each.start, each.end],
            )
            for each in self.table.entries
        ]
        true = lf.LatencyTable(entries, provenance=self.table.provenance)
        ratios = lf.solve_frontier(true, self.importance).latencies_ms[:, 0] / ORIGINAL_MS
        return bool(((ratios >= low) & (ratios <= high)).any())

    def measure(self, merge_pos: Sequence[int]) -> tuple[float, float, float]:
        ratio = self.ratio(merge_pos) * (1 + self.rng.gauss(0, self.noise))
        return ratio, ratio * (1 - 2 * self.noise), ratio * (1 + 2 * self.noise)

    def time(self, plan: Plan) -> MeasuredPlan:
        ratio, low, high = self.measure(plan.merge_pos)
        return MeasuredPlan(**plan._asdict(), ratio=ratio, low=low, high=high)

    def verify(self, solution: lf.Solution, budget: Budget, *, predicted_ms: float, cap_s: float) -> Verification:
        ratio, low, high = self.measure(solution.merge_pos)
        return Verification(
            measured_ms=ORIGINAL_MS * ratio,
            low_ms=ORIGINAL_MS * low,
            high_ms=ORIGINAL_MS * high,
            original_ms=ORIGINAL_MS,
            original_low_ms=ORIGINAL_MS,
            original_high_ms=ORIGINAL_MS,
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            predicted_ms=predicted_ms,
            budget_ms=budget.in_ms(ORIGINAL_MS),
            speedup=budget.speedup,
            is_within_budget=None,
            is_settled=True,
            provenance={},
        )

    def meet(self, budget: Budget, **how: Any) -> LoopResult:
        return meet_budget(self.net, self.table, self.importance, budget, self, progress=False, **how)


@pytest.mark.parametrize("seed", range(10))
def test_budget_is_kept_and_used_on_any_machine(net: Network, seed: int) -> None:
    machine = Machine(net, seed)
    speedup = machine.rng.uniform(1.1, 1.5)
    if machine.least_ratio() > 0.95 / speedup:
        pytest.skip("nothing is as fast as that on this machine")
    found = machine.meet(Budget(speedup=speedup))
    assert found.verification.ratio_high <= 1 / speedup
    assert machine.ratio(found.solution.merge_pos) <= 1.01 / speedup
    if machine.has_plan_between(0.9 / speedup, 0.97 / speedup):
        assert found.verification.ratio * speedup >= 0.9
    slower = [pair for pair, change in machine.change.items() if change > 0.02]
    assert not set(slower) & set(itertools.pairwise((0, *found.solution.merge_pos)))


class SpoiltNeighbours:
    """Scores of wholes: sums of importances, and what they do not know: merges side by side spoil each other."""

    def __init__(self, machine: Machine) -> None:
        self.spoils = {pair: machine.rng.expovariate(0.5) for pair in machine.change}
        self.asked: list[lf.Solution] = []

    def of(self, solution: lf.Solution) -> float:
        merges = [pair for pair in itertools.pairwise((0, *solution.merge_pos)) if pair in self.spoils]
        touching = [(one, two) for one, two in itertools.pairwise(merges) if one[1] == two[0]]
        return (solution.importance or 0.0) - sum(self.spoils[one] * self.spoils[two] for one, two in touching)

    def __call__(self, solution: lf.Solution) -> float:
        self.asked.append(solution)
        return self.of(solution)


def machines_within_reach(net: Network) -> Iterator[tuple[Machine, float]]:
    """Yield machines with a speed-up that something reaches on it."""
    for seed in range(12):
        machine = Machine(net, seed)
        speedup = machine.rng.uniform(1.1, 1.4)
        if machine.least_ratio() <= 0.95 / speedup:
            yield machine, speedup


def test_better_wholes_are_taken_where_they_keep_the_budget(net: Network) -> None:
    climbed = refused = 0
    for machine, speedup in machines_within_reach(net):
        score = SpoiltNeighbours(machine)
        found = machine.meet(Budget(speedup=speedup), score_plan=score)
        scores = [each.score for each in found.wholes]
        assert scores == sorted(set(scores))
        assert scores[-1] == score.of(found.solution)
        assert found.verification.ratio_high <= (0.98 if len(scores) > 1 else 1.0) / speedup
        assert machine.ratio(found.solution.merge_pos) <= 1.01 / speedup
        assert len(score.asked) <= MOST_WHOLES
        better = {each.plan for each in score.asked if score.of(each) > scores[-1]}
        assert better <= {(each.merge_pos, None) for each in found.trials}, "what is better was timed, and too slow"
        climbed, refused = climbed + len(scores) - 1, refused + len(better)
        # Every layer has an activation: where merging stops it stays, in all that is timed, scored or chosen.
        plans = [*found.trials, *score.asked, *(turn.solution for turn in found.rounds), found.solution]
        assert all(each.act_pos == each.merge_pos for each in plans)
    assert climbed >= 5
    assert refused >= 1


def test_second_score_decides_between_plans_that_were_taken(net: Network) -> None:
    chosen, rng = set(), random.Random(0)
    for machine, speedup in machines_within_reach(net):
        second: dict[tuple[int, ...], float] = {}

        def train(solution: lf.Solution, second: dict[Any, float] = second) -> float:
            assert solution.merge_pos not in second, "each is expensive"
            return second.setdefault(solution.merge_pos, rng.random())

        found = machine.meet(Budget(speedup=speedup), score_plan=SpoiltNeighbours(machine), score_finalist=train)
        if len(found.wholes) == 1:
            assert (found.finalists, second) == ((), {}), "nothing to choose"
            continue
        every = [each.solution for each in found.wholes]
        assert [each.solution for each in found.finalists] == every[:1] + every[1:][-3:]
        assert found.finalist_scores == list(second.values())
        best = found.finalist_scores.index(max(second.values()))
        assert found.chosen_finalist == best
        assert found.chosen_whole == (0 if best == 0 else len(every) - len(second) + best)
        assert found.solution.merge_pos == found.finalists[best].solution.merge_pos
        assert found.verification.ratio_high <= 1 / speedup
        assert (
            found.verification
            == next(each for each in found.rounds if each.solution.merge_pos == found.solution.merge_pos).verification
        )
        chosen.add("first" if best == 0 else "last" if best == len(second) - 1 else "between")
    assert {"first", "last"} <= chosen


def test_finalists_that_all_diverge_leave_the_best_whole(net: Network) -> None:
    found = []
    for second in (None, lambda _: -math.inf):
        machine = Machine(net, 4)
        found.append(machine.meet(Budget(speedup=1.15), score_plan=SpoiltNeighbours(machine), score_finalist=second))
    assert len(found[0].wholes) > 1
    assert found[1].solution == found[0].solution
    assert found[1].chosen_whole == len(found[1].wholes) - 1
    assert set(found[1].finalist_scores) == {None}


class Scripted(Machine):
    """A machine whose first verifications read as told, as shares of what the budget leaves."""

    def __init__(self, net: Network, seed: int, *readings: tuple[float, float]) -> None:
        super().__init__(net, seed)
        self.readings, self.caps_s = list(readings), list[float]()

    def verify(self, solution: lf.Solution, budget: Budget, *, predicted_ms: float, cap_s: float) -> Verification:
        found = super().verify(solution, budget, predicted_ms=predicted_ms, cap_s=cap_s)
        self.caps_s.append(cap_s)
        if not self.readings:
            return found
        limit = budget.in_ms(ORIGINAL_MS) / ORIGINAL_MS
        low, high = (limit * share for share in self.readings.pop(0))
        return replace(found, low_ms=ORIGINAL_MS * low, high_ms=ORIGINAL_MS * high, ratio_low=low, ratio_high=high)


@pytest.mark.parametrize("asked", [Budget(speedup=1.15), Budget(budget_ms=8.7)], ids=str)
@pytest.mark.parametrize(
    ("first", "caps_s", "is_within", "is_safe"),
    [
        ((0.90, 0.97), [6.0], True, True),
        ((0.90, 0.99), [6.0], True, False),  # kept, without the margin
        ((0.99, 1.01), [6.0, 18.0], True, False),  # open: measured again, for longer
        ((1.01, 1.02), [6.0], False, False),
    ],
)
def test_measurement_that_leaves_the_budget_open_is_repeated_once(
    net: Network, asked: Budget, first: tuple[float, float], caps_s: list[float], is_within: bool, is_safe: bool
) -> None:
    machine = Scripted(net, 4, first, (0.9, 0.99))
    if not is_within:
        machine.readings.pop()
    turn = machine.meet(asked, max_rounds=1).rounds[0]
    assert (turn.is_within, turn.is_safe) == (is_within, is_safe)
    assert machine.caps_s[: len(caps_s)] == caps_s
    assert 18.0 not in machine.caps_s[len(caps_s) :]


def test_plan_without_the_margin_is_no_finalist(net: Network) -> None:
    machine, asked = Scripted(net, 4, (0.9, 0.99)), list[lf.Solution]()

    def train(solution: lf.Solution) -> float:
        asked.append(solution)
        return -float(len(asked))

    found = machine.meet(Budget(speedup=1.15), max_rounds=1, score_plan=SpoiltNeighbours(machine), score_finalist=train)
    assert not found.rounds[0].is_safe
    assert found.wholes[0].solution == found.rounds[0].solution
    assert found.wholes[0].solution not in asked
    assert found.chosen_whole > 0


def test_without_plans_to_score_the_one_of_highest_importance_is_taken(net: Network) -> None:
    found = []
    for score in (None, lambda _: pytest.fail("asked")):
        machine = Machine(net, 3)
        found.append(machine.meet(Budget(speedup=1.15), score_plan=score, most_wholes=0))
    assert found[0].solution == found[1].solution
    assert found[1].wholes == ()


def test_limits_that_one_segment_alone_keeps_to_do_not_lose_the_plan(net: Network) -> None:
    machine = Machine(net, 0, error=0.0)
    entries = [
        replace(each, params=0 if (each.start, each.end) == (0, 4) else each.end - each.start)
        for each in machine.table.entries
    ]
    machine.table = lf.LatencyTable(entries, provenance=machine.table.provenance)
    score = SpoiltNeighbours(machine)
    found = machine.meet(Budget(speedup=1.02), limits=Limits(max_params=DEPTH - 4), score_plan=score)
    assert found.solution.merge_pos[0] == 4
    assert len(score.asked) >= 1


def test_solution_that_options_were_left_out_for_claims_no_proof(net: Network) -> None:
    machine = Machine(net, 2)
    seen: list[lf.Solution] = []

    def prefer_later(solution: lf.Solution) -> float:
        seen.append(solution)
        return float(len(seen))

    found = machine.meet(Budget(speedup=1.15), score_plan=prefer_later)
    assert len(found.wholes) > 1
    assert (found.wholes[0].solution.status, found.solution.status, found.solution.gap) == ("optimal", "given", None)


def test_scores_that_are_no_number_are_none() -> None:
    plans = [lf.Solution(act_pos=(1,), merge_pos=(1,)), lf.Solution(act_pos=(1, 2), merge_pos=(1, 2))]
    wholes = tuple(
        ScoredPlan(solution=plan, score=score, left_out=frozenset())
        for plan, score in zip(plans, (float("-inf"), -1.0), strict=True)
    )
    found = LoopResult(
        solution=plans[1],
        verification=_unlimited,
        frontier=None,
        latency=None,
        rounds=(),
        trials=(),
        wholes=wholes,
        finalists=wholes,
    )  # type: ignore[arg-type]
    assert found.whole_scores == found.finalist_scores == [None, -1.0]
    assert "-1 nats before any training; the plan of highest importance lost all" in (_wholes_text(found) or "")
    assert "no finite loss, 1: number 2 was taken" in (_finalists_text(found) or "")
    stayed = replace(found, solution=plans[0])
    assert _wholes_text(stayed) == "lost all before any training"


def test_fastest_plan_is_not_scored(net: Network) -> None:
    machine = Machine(net, 1)
    score = SpoiltNeighbours(machine)
    found = machine.meet(Budget(), score_plan=score)
    assert found.wholes == ()
    assert score.asked == []


_unlimited = Verification(
    measured_ms=6.0,
    low_ms=6.0,
    high_ms=6.0,
    original_ms=ORIGINAL_MS,
    original_low_ms=ORIGINAL_MS,
    original_high_ms=ORIGINAL_MS,
    ratio=0.6,
    ratio_low=0.6,
    ratio_high=0.6,
    predicted_ms=None,
    budget_ms=None,
    speedup=None,
    is_within_budget=None,
    is_settled=True,
    provenance={},
)


def test_unreachable_budget_names_what_can_be_met(net: Network) -> None:
    machine = Machine(net, 5)
    with pytest.raises(InfeasibleBudgetError, match="no plan meets it; the fastest takes") as caught:
        machine.meet(Budget(speedup=3.0))
    least = caught.value.least_ms / ORIGINAL_MS
    assert machine.least_ratio() * 0.98 <= least <= machine.least_ratio() * 1.08
    # and what it names can be met
    speedup = 0.98 / least
    found = machine.meet(Budget(speedup=speedup))
    assert found.verification.ratio_high <= 1 / speedup


class Idle(Machine):
    """A machine on which nothing may be measured."""

    def measure(self, merge_pos: Sequence[int]) -> tuple[float, float, float]:
        raise AssertionError("measured")


def test_budget_below_the_fixed_part_is_refused_before_anything_is_measured(net: Network) -> None:
    machine = Idle(net, 0)
    for refuses in (machine.meet, lambda budget: check_reachable(net, machine.table, budget, machine)):
        with pytest.raises(InfeasibleBudgetError, match=r"what lies outside the chains takes 1\.2 ms"):
            refuses(Budget(budget_ms=1.0))


def test_reach_is_measured_only_where_the_prediction_leaves_a_doubt(net: Network) -> None:
    idle, machine = Idle(net, 3), Machine(net, 3)
    predicted = lf.solve_frontier(machine.table, machine.importance).least_ms
    for budget in (Budget(), Budget(budget_ms=predicted / 0.79)):
        check_reachable(net, idle.table, budget, idle)
    with pytest.raises(AssertionError, match="measured"):
        check_reachable(net, idle.table, Budget(budget_ms=predicted / 0.81), idle)
    least_ms = ORIGINAL_MS * machine.least_ratio()
    check_reachable(net, machine.table, Budget(budget_ms=1.1 * least_ms), machine)
    with pytest.raises(InfeasibleBudgetError, match="no plan meets it; the fastest takes"):
        check_reachable(net, machine.table, Budget(budget_ms=0.95 * least_ms), machine)


def _run(path: Path, steps: str, *, config: dict[str, Any] | None = None, overwrite: bool = False) -> str:
    """Do the named one-letter steps and return which of them were done again."""
    folder = RunFolder(path, config or {"a": 1}, overwrite=overwrite)
    done = ""
    for name in steps:

        def work(name: str = name) -> dict[str, Any]:
            nonlocal done
            done += name
            folder.file(name).write_text("new")
            return {}

        folder.step(name, [name], work, scratch=[f"{name}.part"])
    return done


def test_step_that_is_missing_a_file_is_done_again_with_all_that_follow(tmp_path: Path) -> None:
    assert _run(tmp_path, "abc") == "abc"
    assert _run(tmp_path, "abc") == ""
    (tmp_path / "b").unlink()
    assert _run(tmp_path, "abc") == "bc"


def test_interruption_while_a_step_is_redone_leaves_no_stale_step(tmp_path: Path) -> None:
    _run(tmp_path, "abc")
    (tmp_path / "b").unlink()
    folder = RunFolder(tmp_path, {"a": 1})
    folder.step("a", ["a"], lambda: {})

    def dies() -> dict[str, Any]:
        folder.file("b").write_text("half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.step("b", ["b"], dies)
    assert not (tmp_path / "c").exists()
    assert _run(tmp_path, "abc") == "bc"


def test_scratch_of_an_interrupted_step_goes_with_what_it_was_made_from(tmp_path: Path) -> None:
    _run(tmp_path, "a")
    folder = RunFolder(tmp_path, {"a": 1})
    folder.step("a", ["a"], lambda: {})

    def dies() -> dict[str, Any]:
        folder.file("b.part").write_text("half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.step("b", ["b"], dies, scratch=["b.part"])
    assert (tmp_path / "b.part").exists(), "an interrupted step goes on from its scratch"
    (tmp_path / "a").unlink()
    _run(tmp_path, "a")
    assert not (tmp_path / "b.part").exists()


def test_overwrite_removes_scratch_and_keeps_other_files(tmp_path: Path) -> None:
    _run(tmp_path, "ab")
    (tmp_path / "b.part").write_text("left")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        _run(tmp_path, "ab", config={"a": 2})
    assert _run(tmp_path, "ab", config={"a": 2}, overwrite=True) == "ab"
    assert not (tmp_path / "b.part").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("asked", [Budget(speedup=3.0), Budget(budget_ms=2.0)], ids=str)
def test_what_an_unreachable_budget_is_told_to_ask_for_is_met(net: Network, seed: int, asked: Budget) -> None:
    # Noise of 2 %: two measurements of one plan differ as much as the intervals say.
    machine = Machine(net, seed, noise=0.004 if seed % 2 else 0.02)
    with pytest.raises(InfeasibleBudgetError) as caught:
        machine.meet(asked)
    told = re.search(r"ask for ([0-9.]+) ms or more, or --speedup ([0-9.]+) or less$", str(caught.value))
    assert told is not None, str(caught.value)
    budget_ms, speedup = map(float, told.groups())
    assert ORIGINAL_MS / speedup == pytest.approx(budget_ms, rel=0.02), "both say the same"
    assert machine.meet(Budget(budget_ms=budget_ms)).verification.high_ms <= budget_ms
    assert machine.meet(Budget(speedup=speedup)).verification.ratio_high <= 1 / speedup
