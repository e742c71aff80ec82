"""Damage of every kind for a file of a known kind: truncated, flipped, retyped, grown, nested."""

from __future__ import annotations

import copy
import json
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUGE = 10**30
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    HUGE,
    -HUGE,
    10**12,
    10**9,
    1_000_000,
    2**63,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "nan",
    "1",
    "../../etc/passwd",
    "\x1b[31m",
    "=1+1",
    "x" * 20_000,
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    [HUGE],
    {"a": {"b": None}},
]
TEXTS = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "1.5",
    "9" * 30,
    "9" * 5000,
    "1000000",
    "1_0",
    "0x1",
    "x",
    "=1+1",
    "@A1",
    "-x",
    '"',
    "'",
    "\x1b[31m",
    "\t",
    "é",
    "\u0663",
    "x" * 200_000,
    "1,2",
    "3x3",
    "identity",
    "1e-320",
    "1e308",
]


def mutate(path: Path, kind: str, rng: random.Random) -> str:
    """Damage a file in place and return in what way.

    Args:
        path: the file.
        kind: ``json``, ``csv``, ``text``, ``sqlite`` or ``bytes``: what it should hold.
        rng: decides how.
    """
    if rng.random() < 0.04:
        return _place(path, rng)
    ways = {"json": _json, "csv": _csv, "text": _text, "sqlite": _sqlite}
    if kind in ways and rng.random() < 0.75:
        return ways[kind](path, rng)
    return _bytes(path, rng)


def _place(path: Path, rng: random.Random) -> str:
    """Put something there that is no file."""
    way = rng.choice(("folder", "pipe", "loop", "link to /dev/zero", "missing"))
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    return way


def _bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    ways: dict[str, Callable[[], bytes]] = {
        "cut": lambda: bytes(content[: rng.randrange(len(content) + 1)]),
        "cut near the end": lambda: bytes(content[: max(0, len(content) - rng.randrange(1, 20))]),
        "empty": lambda: b"",
        "flip": lambda: _flipped(content, rng, 1),
        "flip many": lambda: _flipped(content, rng, rng.randrange(2, 200)),
        "flip the head": lambda: _flipped(content, rng, 1, most=64),
        "insert": lambda: _inserted(content, rng, rng.randbytes(rng.randrange(1, 50))),
        "grow": lambda: bytes(content) + rng.randbytes(rng.choice((1, 1000, 1 << 20))),
        "twice": lambda: bytes(content) * 2,
        "zeros": lambda: bytes(len(content)),
        "hole": lambda: _hole(content, rng),
        "noise": lambda: rng.randbytes(max(len(content), 10)),
        "BOM": lambda: b"\xef\xbb\xbf" + bytes(content),
        "UTF-16": lambda: bytes(content).decode("latin-1").encode("utf-16"),
        "not UTF-8": lambda: _inserted(content, rng, b"\xff\xfe\xc3"),
    }
    way = rng.choice(list(ways))
    path.write_bytes(ways[way]())
    return way


def _flipped(content: bytearray, rng: random.Random, count: int, most: int | None = None) -> bytes:
    for _ in range(count if content else 0):
        content[rng.randrange(min(len(content), most or len(content)))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _inserted(content: bytearray, rng: random.Random, what: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return bytes(content[:at]) + what + bytes(content[at:])


def _hole(content: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return bytes(content[:at]) + bytes(content[at + rng.randrange(1, 500) :])


def _json(path: Path, rng: random.Random) -> str:
    data = json.loads(path.read_text())
    text = None
    places = list(_places(data))
    holder, key = rng.choice(places) if places else ({"": data}, "")
    way = rng.choice(
        ("retype", "retype", "retype", "retype", "drop", "grow", "nest", "rename", "twice", "raw", "whole")
    )
    if way == "retype":
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif way == "drop":
        del holder[key]
    elif way == "grow":
        holder[key] = _grown(holder[key], rng)
    elif way == "nest":
        depth = rng.choice((2, 50, 150, 300, 5000))
        mark = "\u2603nest"
        holder[key] = mark
        text = json.dumps(data).replace(json.dumps(mark), "[" * depth + "]" * depth, 1)
    elif way == "rename" and isinstance(holder, dict):
        holder[rng.choice(("", "x", key.upper(), key + " "))] = holder.pop(key)
    elif way == "twice":
        mark = "\u2603twice"
        holder[key] = [mark, holder[key]] if isinstance(holder, list) else holder[key]
        text = json.dumps(data).replace("{", '{"schema": 1, ', 1)
    elif way == "raw":
        mark = "\u2603raw"
        holder[key] = mark
        raw = rng.choice(
            ("1e400", "-1e400", "NaN", "-Infinity", "9" * 400, "9" * 5000, "1E+999", "tru", "'x'", '"\\ud800"')
        )
        text = json.dumps(data).replace(json.dumps(mark), raw, 1)
    elif way == "whole":
        data = copy.deepcopy(rng.choice(VALUES))
    path.write_text(json.dumps(data) if text is None else text)
    return f"{way} {str(key)[:30]}"


def _places(data: Any) -> Any:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield data, key
        yield from _places(value)


def _grown(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list) and value:
        return value * rng.choice((2, 1000, 20_000))
    if isinstance(value, dict):
        return value | {f"more{number}": number for number in range(rng.choice((1, 5000)))}
    if isinstance(value, str):
        return value * rng.choice((2, 10_000))
    if isinstance(value, (int, float)):
        return value * rng.choice((-1, 2, 1000, 10**9, 10**15))
    return value


def _csv(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    row = rng.randrange(len(rows))
    way = rng.choice(
        (
            "cell",
            "cell",
            "cell",
            "cell",
            "drop row",
            "double row",
            "drop cell",
            "drop column",
            "more columns",
            "many columns",
            "rename",
            "swap",
            "many rows",
            "quote",
            "no header",
        )
    )
    if way == "cell":
        column = rng.randrange(len(rows[row]))
        rows[row][column] = rng.choice(TEXTS)
    elif way == "drop row":
        del rows[row]
    elif way == "double row":
        rows.insert(row, list(rows[row]))
    elif way == "drop cell":
        del rows[row][rng.randrange(len(rows[row]))]
    elif way == "drop column":
        column = rng.randrange(len(rows[0]))
        rows = [each[:column] + each[column + 1 :] for each in rows]
    elif way == "more columns":
        rows = [[*each, "1"] for each in rows]
    elif way == "many columns":
        rows = [[*each, *(f"c{number}" for number in range(rng.choice((2000, 50_000))))] for each in rows[:3]]
    elif way == "rename":
        rows[0][rng.randrange(len(rows[0]))] = rng.choice(TEXTS)
    elif way == "swap":
        rng.shuffle(rows)
    elif way == "many rows":
        rows += [list(rows[-1]) for _ in range(20_000)]
    elif way == "quote":
        rows[row][0] = '"' + rows[row][0]
    else:
        rows = rows[1:]
    path.write_text("".join(",".join(each) + "\n" for each in rows))
    return f"{way} of row {row}"


def _text(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines() or [""]
    at = rng.randrange(len(lines))
    way = rng.choice(("line", "drop", "double", "many"))
    if way == "line":
        lines[at] = rng.choice(TEXTS)
    elif way == "drop":
        del lines[at]
    elif way == "double":
        lines.insert(at, lines[at])
    else:
        lines *= 5000
    path.write_text("\n".join(lines) + "\n")
    return f"{way} {at}"


def _sqlite(path: Path, rng: random.Random) -> str:
    """Change a row, a table or the schema of a database that stays one."""
    way = rng.choice(("row", "row", "row", "row", "drop table", "schema", "claim", "type"))
    with sqlite3.connect(path) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if way == "drop table":
            connection.execute(f"DROP TABLE {rng.choice(tables)}")
        elif way == "schema":
            connection.execute(f"PRAGMA user_version = {rng.choice((0, 1, 2, 99, -1))}")
        elif way == "claim":
            rows = connection.execute("SELECT environment, signature FROM measurement").fetchall()
            environment, signature = rng.choice(rows)
            connection.execute("DELETE FROM measurement WHERE signature = ?", (signature,))
            connection.execute(
                "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)",
                (
                    environment,
                    signature,
                    rng.choice(("another-host", "")),
                    rng.choice((1, -1, 2**40)),
                    "1",
                    rng.choice((0.0, 4e9, float("inf"), 1e300)),  # a nan would be NULL, which the table refuses
                ),
            )
        else:
            columns = ["kind", "network", "took_s", "measured_at"]
            if way == "row":
                columns = ["summary", "conditions"]
            value = rng.choice(
                (
                    "",
                    "{",
                    "null",
                    "[]",
                    "{}",
                    "1",
                    '{"median_ms": "x"}',
                    '{"median_ms": 1e400}',
                    b"\xff\xfe",
                    -1,
                    HUGE / 1.0,
                    "x" * 100_000,
                    "[" * 5000,
                )
            )
            connection.execute(
                f"UPDATE measurement SET {rng.choice(columns)} = ? WHERE rowid % ? = 0", (value, rng.choice((1, 2, 5)))
            )
    connection.close()
    return way
