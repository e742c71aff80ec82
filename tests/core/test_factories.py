"""Whatever a user's file does, the answer is its object or one line that names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfold.errors import LayerfoldError, UsageError
from layerfold.factories import call_factory, load_factory

FAILING = {
    "exits when imported": ("import sys\nsys.exit(3)\n", "called sys.exit(3)", 2),
    "exits when called": ("def make():\n    raise SystemExit('no')\n", "called sys.exit('no')", 2),
    "quits": ("def make():\n    quit()\n", "called sys.exit(None)", 2),
    "syntax error": ("x = 1\ndef make(:\n", "SyntaxError: invalid syntax", 2),
    "wrong indentation": ("def make():\nreturn 1\n", "IndentationError", 2),
    "raises when called": ("def make():\n    x = 1\n    return {}['a']\n", "raised KeyError: 'a'", 3),
    "raises below": ("def below():\n    return 1 / 0\ndef make():\n    return below()\n", "ZeroDivisionError", 2),
    "several lines": ("def make():\n    raise ValueError('bad\\nnews')\n", "raised ValueError: bad news", 2),
    "no words": ("def make():\n    assert False\n", "raised AssertionError: no message", 2),
    "recursion": ("def make():\n    return make()\n", "raised RecursionError", 2),
    "no such package": ("import no_such_package_here\n", "No module named 'no_such_package_here'", 1),
    "relative import": ("from .neighbour import x\n", "files in the same folder are found", 1),
    "an exception of no class": ("class Odd(BaseException):\n    pass\ndef make():\n    raise Odd\n", "raised Odd", 4),
    "an exception that cannot speak": (
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\ndef make():\n    raise Mute\n",
        "raised Mute: no message",
        5,
    ),
    "a neighbour that fails": ("import failing_neighbour\n", "RuntimeError: next door (failing_neighbour.py:1)", None),
    "loads itself": (
        "from layerfold.factories import call_factory\ncall_factory(__file__ + ':make')\ndef make():\n    pass\n",
        "loads itself while it runs",
        None,
    ),
}


def written(tmp_path: Path, content: str, name: str = "nets.py") -> Path:
    (tmp_path / "failing_neighbour.py").write_text("raise RuntimeError('next door')\n")
    path = tmp_path / name
    path.write_text(content)
    return path


@pytest.mark.parametrize("name", FAILING)
def test_failing_file_is_one_line_with_its_place(tmp_path: Path, name: str) -> None:
    content, says, line = FAILING[name]
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        call_factory(f"{path}:make")
    said = str(caught.value)
    assert says in said
    assert "\n" not in said
    assert line is None or f"(nets.py:{line})" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x00\x01", "null bytes"),
        (b"\xff\xfe = 1\n", "SyntaxError"),
        (b"# -*- coding: nonsense -*-\n", "SyntaxError"),
        (b"make = 3\n", "has a int, and no function, 'make'"),
        (b"make = None\n", "has no function 'make'"),
        (b"def mkae():\n    pass\n", "nearest: mkae"),
        (b"import os\ndef build(depth):\n    pass\nmake = build\n", "needs 'depth', on offer: nothing"),
        (b"def make(num_classes, /):\n    pass\n", "needs 'num_classes', on offer: num_classes"),
    ],
)
def test_file_without_a_usable_function_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "nets.py"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        call_factory(f"{path}:make", **({"num_classes": 3} if b"/" in content else {}))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["it's.py", 'a "b" c.py', "<b>.py", "a&amp;b.py", "sp ace.py", "dot.ted.py", "tab\there.py", "kana-ネット.py"],
)
def test_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "def make():\n    return 7\ndef fail():\n    raise ValueError('x')\n", name)
    assert call_factory(f"{path}:make") == 7
    with pytest.raises(UsageError, match=r"^[^\n\t]*raised ValueError: x \([^\n]*:4\)$"):
        call_factory(f"{path}:fail")


def test_what_a_file_prints_does_not_reach_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "print('importing')\ndef make():\n    print('making')\n    return 7\n")
    assert call_factory(f"{path}:make") == 7
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "importing\nmaking\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("class make:\n    def __init__(self, num_classes=3):\n        self.n = num_classes\n", 5),
        (
            "from functools import partial\nclass C:\n    pass\ndef f(c, num_classes):\n    c.n = num_classes\n"
            "    return c\nmake = partial(f, C())\n",
            5,
        ),
        (
            "class M:\n    n = 4\n    state_dict = forward = None\n    def __call__(self, x):\n        pass\n"
            "make = M()\n",
            4,
        ),
        ("class M:\n    n = 4\n    def __call__(self):\n        return self\nmake = M()\n", 4),
        ("class M:\n    n = 4\nmake = lambda **settings: M()\n", 4),
    ],
    ids=["a class", "a partial", "a module itself", "a callable object", "a lambda"],
)
def test_whatever_can_be_called_is_a_factory(tmp_path: Path, content: str, expected: int) -> None:
    assert call_factory(f"{written(tmp_path, content)}:make", num_classes=5).n == expected


def test_factory_says_which_arguments_it_takes(tmp_path: Path) -> None:
    path = written(tmp_path, "def make(num_classes=3):\n    pass\ndef every(**settings):\n    pass\n")
    assert load_factory(f"{path}:make").has_parameter("num_classes")
    assert not load_factory(f"{path}:make").has_parameter("in_chans")
    assert load_factory(f"{path}:every").has_parameter("in_chans")


def test_errors_of_layerfold_and_interrupts_pass_through(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "from layerfold.errors import MergeError\ndef make():\n    raise MergeError('as it is')\n"
        "def stop():\n    raise KeyboardInterrupt\n",
    )
    with pytest.raises(LayerfoldError, match=r"^as it is$"):
        call_factory(f"{path}:make")
    with pytest.raises(KeyboardInterrupt):
        call_factory(f"{path}:stop")


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "a\0b.py", "x" * 300 + ".py"])
def test_what_is_no_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError, match=r"^[^\n]*give path/to/file\.py:function$"):
        call_factory(f"{tmp_path / name}:make")
