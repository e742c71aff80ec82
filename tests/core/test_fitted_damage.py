"""What a fitted table remembers in its sidecar, damaged: one line that names the field, for every way to use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfold.errors import TableError
from layerfold.profiler.plans.fitted import beliefs_of, plans_of
from layerfold.tables import LatencyTable

TIME = "id,st,end,time,stdev\n0,0,1,1.0,0.1\n1,1,2,1.5,0\n2,0,2,1.2,0\n"
PLAN: dict[str, Any] = {"act_pos": [2], "merge_pos": [2], "ratio": 0.5, "low": 0.4, "high": 0.6, "rounds": 9}


def table(folder: Path, options: dict[str, Any]) -> LatencyTable:
    (folder / "time.csv").write_text(TIME)
    (folder / "time.csv.json").write_text(json.dumps({"schema": 1, "chains": [[0, 2]], "options": options}))
    return LatencyTable.read(folder / "time.csv")


def test_whole_sidecar_gives_its_plans_back(tmp_path: Path) -> None:
    found = table(tmp_path, {"plans": [PLAN], "isolated_ms": [1, 1.5, 1.2]})
    assert [(plan.ratio, plan.rounds) for plan in plans_of(found)] == [(0.5, 9)]
    beliefs_of(found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plans": 7}, "options.plans of its sidecar is damaged: 7: expected"),
        ({"plans": [None]}, "options.plans of its sidecar is damaged: 0=None"),
        ({"plans": [{**PLAN, "ratio": 10**400}]}, "0.ratio="),
        ({"plans": [{**PLAN, "ratio": float("nan")}]}, "0.ratio=nan"),
        ({"plans": [{**PLAN, "ratio": 0}]}, "0.ratio=0"),
        ({"plans": [{**PLAN, "merge_pos": ["2"]}]}, "0.merge_pos.0='2'"),
        ({"plans": [{**PLAN, "act_pos": [10**12]}]}, "0.act_pos.0="),
        ({"plans": [{**PLAN, "rounds": -1}]}, "0.rounds=-1"),
        ({"plans": [{"ratio": 1.0}]}, "0.act_pos is missing"),
        ({"isolated_ms": {"a": 1}}, "options.isolated_ms of its sidecar is damaged: "),
        ({"isolated_ms": [1, 2]}, "does not go with its 3 rows"),
        ({"isolated_ms": [1, 2, "3"]}, "2='3'"),
        ({"isolated_ms": [1, 2, -1]}, "2=-1"),
        ({"isolated_ms": [1, 0, 2]}, "layer 2 takes 0 ms"),
    ],
)
def test_damaged_memory_is_one_line(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = table(tmp_path, options)
    with pytest.raises(TableError) as error:
        beliefs_of(found)
    assert said in str(error.value)
    assert str(error.value).endswith("profile the network again")
    assert "\n" not in str(error.value)
