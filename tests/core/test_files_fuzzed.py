"""Whatever a file holds, its reader gives a value or one short line; what it gives can be written and read again."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfold.errors import LayerfoldError
from layerfold.files import parse_json
from layerfold.solver import Solution
from layerfold.tables import ImportanceTable, LatencyTable

TIME = (
    "id,st,end,time,stdev,st_act,end_act,signature,runs\n0,0,1,1.0,0.1,1,1,a,9\n1,1,2,1.5,0,1,0,b,9\n"
    "2,0,2,1.2,0,1,0,c,9\n"
)
IMP = (
    "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc\n0,0,1,1,1,0,0,0,-0.25\n1,1,2,1,1,0,0,0,0\n"
    "2,0,2,1,1,0,0,0,-1.0\n3,0,1,1,0,,,,-0.5\n"
)
SIDECAR: dict[str, Any] = {
    "schema": 1,
    "kind": "latency",
    "model": "timm:x",
    "network_hash": "abc",
    "input_shape": [3, 8, 8],
    "batch": 1,
    "dtype": "float32",
    "versions": {"torch": "2.9"},
    "fixed_ms": 0.5,
    "scale": 1.1,
    "chains": [[0, 2]],
    "options": {"method": "plans"},
    "left_out": [[0, 2]],
    "rows": 3,
}
SOLUTION = Solution(act_pos=(1,), merge_pos=(1, 2), kept_layers=(1, 2), budget_ms=2.0, costs={"params": 3.0}).to_json()
SOLUTION["segments"] = [{"start": 0, "end": 1, "plan": "keep", "latency_ms": 1.0}]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**30, -(10**400), 10**12, 1_000_001, float("inf"), "x" * 3000, "1", [[0, 10**9]], [0.5]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield data, key
        yield from places(value)


@st.composite
def changed(draw: st.DrawFn, good: dict[str, Any]) -> str:
    data = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := list(places(data))):
            break
        holder, key = draw(st.sampled_from(found))
        if draw(st.booleans()):
            holder[key] = copy.deepcopy(draw(anything))  # it may be changed in turn
        else:
            del holder[key]
    return json.dumps(data)


@st.composite
def torn(draw: st.DrawFn, good: bytes) -> bytes:
    start, length = draw(st.integers(0, len(good))), draw(st.integers(0, 40))
    known = [b"nan", b"1e400", b"-1", b'"', b",", b"\n", b"=1", b"\xff", b"0_1"]
    what = draw(st.binary(max_size=30) | st.sampled_from(known))
    return good[:start] + what + good[start + length :]


def judge(read: Callable[[], Any]) -> Any:
    said = ""
    try:
        return read()
    except LayerfoldError as error:
        said = str(error)
    assert 0 < len(said) <= 1000
    assert "\n" not in said
    return None


READERS: dict[str, Callable[[Path], Any]] = {"latency": LatencyTable.read, "importance": ImportanceTable.read}


@settings(max_examples=150, deadline=None)
@given(text=changed(SOLUTION))
def test_solution_of_any_json_is_read_or_refused_in_one_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "solution.json"
        path.write_text(text)
        found = judge(lambda: Solution.read(path))
        if found is not None:
            found.write(path)
            assert Solution.read(path) == found


@settings(max_examples=150, deadline=None)
@given(text=changed(SIDECAR))
def test_sidecar_of_any_json_is_read_or_refused_in_one_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "time.csv"
        path.write_text(TIME)
        Path(f"{path}.json").write_text(text)
        found = judge(lambda: LatencyTable.read(path))
        if found is not None:
            found.write(path)
            assert LatencyTable.read(path).hash == found.hash


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_table_of_any_bytes_is_read_or_refused_in_one_line(kind: str, data: st.DataObject) -> None:
    content = data.draw(torn((TIME if kind == "latency" else IMP).encode()))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "table.csv"
        path.write_bytes(content)
        found = judge(lambda: READERS[kind](path))
        if found is not None:
            found.write(path)
            assert READERS[kind](path).hash == found.hash


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60) | torn(json.dumps(SIDECAR).encode()))
def test_bytes_that_are_no_json_are_one_line(content: bytes) -> None:
    judge(lambda: parse_json(content, dict[str, Any], source="here"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ufeff{}", None),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"x": {"b": [], "c": 1, "b": []}}', "'b' stands twice"),
        ('[{"k": 1}, {"k": 1}]', None),
        ('{"a": ' + "7" * 5000 + "}", "is no JSON"),
        ('{"a": "' + "\\ud800" + '"}', "is no JSON"),
    ],
)
def test_names_given_twice_and_marks_of_editors(text: str, said: str | None) -> None:
    shape: Any = list[Any] if text.startswith("[") else dict[str, Any]
    if said is None:
        parse_json(text, shape, source="here")
        parse_json(text.encode(), shape, source="here")
        return
    with pytest.raises(LayerfoldError, match=said):
        parse_json(text, shape, source="here")


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (",".join(f"c{number}" for number in range(100_000)), "1", "100000 columns, expected at most 1000"),
        ("id,st,end,time,stdev", f"0,0,1,{'9' * 200_000},0", "field larger than field limit"),
        ("id,st,end,time,stdev," + "x" * 5000 + "," + "x" * 5000, "0,0,1,1,0,1,1", "named twice"),
        ("id,st,end,time,stdev", f"0,0,1,{'9' * 5000},0", "column time: '9999"),
        ("id,st,end,time,stdev", f"0,0,{'9' * 5000},1,0", "column end: '9999"),
        ("id,st,end,time,stdev", "0,0,1,1e400,0", "column time"),
    ],
)
def test_table_that_is_too_wide_or_too_long_is_one_short_line(header: str, row: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "time.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(LayerfoldError, match=said) as error:
        LatencyTable.read(tmp_path / "time.csv")
    assert len(str(error.value)) < 1000
