"""Files are read bounded and typed, and written whole or not at all."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Le

from layerfold.errors import TableError, UsageError, WriteError
from layerfold.files import csv_text, parse_json, read_bytes, read_json, read_text, replacing, write_json, write_text


@dataclass(frozen=True, kw_only=True)
class Inner:
    ms: Annotated[float, Ge(0), Le(1e9)]


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    parts: tuple[Inner, ...] = ()


def _special(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(folder / "other")
        (folder / "other").symlink_to(path)
    elif kind == "device":
        return Path("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle", "device", "missing"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = _special(tmp_path, kind)
    for read in (read_bytes, read_text):
        with pytest.raises(TableError, match=r"is a |no such file|circle|directory") as raised:
            read(path, error=TableError, remedy="give a table")
        assert str(raised.value).endswith("; give a table")


def test_a_zero_byte_in_a_name_and_a_file_that_is_too_large_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_bytes("a\0b")
    (tmp_path / "large").write_bytes(bytes(11))
    assert read_bytes(tmp_path / "large", most_bytes=11) == bytes(11)
    with pytest.raises(UsageError, match="is larger than"):
        read_bytes(tmp_path / "large", most_bytes=10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "a", "parts": [{"ms": 1}]}', None),
        ('{"name": "a", "later": {"unknown": 1}}', None),
        ('{"name": 5}', "name=5: expected a valid string"),
        ('{"parts": []}', "name is missing"),
        ('{"name": "a", "parts": [{"ms": 1}, {"ms": "2"}]}', r"parts.1.ms='2'"),
        ('{"name": "a", "parts": [{"ms": true}]}', r"parts.0.ms=True"),
        ('{"name": "a", "parts": [{"ms": NaN}]}', r"parts.0.ms=nan"),
        ('{"name": "a", "parts": [{"ms": 1e400}]}', r"parts.0.ms=inf"),
        ('{"name": "a", "parts": [{"ms": ' + "9" * 400 + "}]}", r"parts.0.ms="),
        ('{"name": "a", "parts": ' + "[" * 100_000 + "}", "no JSON"),
        ('{"name": "a', "no JSON"),
        ("", "no JSON"),
        ("[]", "expected"),
        (b"\xff\xfe{}", "no JSON"),
    ],
)
def test_json_is_checked_field_by_field(tmp_path: Path, text: str | bytes, said: str | None) -> None:
    path = tmp_path / "given.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    if said is None:
        assert read_json(path, Outer).name == "a"
        return
    with pytest.raises(UsageError, match=said) as raised:
        read_json(path, Outer, remedy="make it again")
    message = str(raised.value)
    assert message.startswith(str(path))
    assert message.endswith("; make it again")
    assert "\n" not in message
    assert len(message) < 400


def test_values_of_open_shape_are_plain_values() -> None:
    found = parse_json('{"a": [1, 2.5, null, {"b": "c"}]}', dict[str, Any], source="x")
    assert found == {"a": [1, 2.5, None, {"b": "c"}]}


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    said = {
        OSError(28, "No space left on device"): WriteError,
        RuntimeError("PytorchStreamWriter failed writing file"): WriteError,
        ZeroDivisionError(): ZeroDivisionError,
        KeyboardInterrupt(): KeyboardInterrupt,
    }

    def fail(failure: BaseException) -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise failure

    for failure, expected in said.items():
        with pytest.raises(expected):
            fail(failure)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_one_line() -> None:
    with pytest.raises(WriteError, match="no regular file"):
        write_text("/dev/full", "x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_link_stays_and_rights_stay(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "real.json").chmod(0o640)
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == '{\n "a": 1\n}\n'
    assert stat.S_IMODE((tmp_path / "real.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("target", ["nothing-there", "old.jpg"])
def test_a_link_to_another_kind_of_name_gets_the_picture_that_was_asked_for(target: str, tmp_path: Path) -> None:
    (tmp_path / "plot.png").symlink_to(target)
    with replacing(tmp_path / "plot.png") as partial:
        assert partial.suffix == ".png", "what draws takes the format from it"
        partial.write_bytes(b"picture")
    assert (tmp_path / target).read_bytes() == b"picture"


def test_no_cell_of_a_sheet_is_a_formula() -> None:
    cells = ["=1+1", "+a", "-cmd", "@x", "\tx", "-2.5", "+3", "1e-3", "plain", -2.5, None, (1, 2)]
    assert csv_text(["v"], [[cell] for cell in cells]).splitlines()[1:] == [
        "'=1+1",
        "'+a",
        "'-cmd",
        "'@x",
        "'\tx",
        "-2.5",
        "+3",
        "1e-3",
        "plain",
        "-2.5",
        '""',
        '"1,2"',
    ]
