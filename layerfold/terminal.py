"""What reaches a terminal: results on stdout and nothing else there, no control characters, no endless lines."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from layerfold.errors import WriteError

# Control characters, marks that turn the direction of writing, and bytes that are no text: they come from file names,
# and would colour, overwrite or forge what stands on the screen. Line breaks and tabs stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_LINE = 500
_LONGEST_WORD = 100


def printable(text: str) -> str:
    """Return ``text`` with what a terminal would obey, or cannot show, as escapes.

    Example:
        >>> printable("a\\x1b[31mb.csv")
        'a\\\\x1b[31mb.csv'
    """
    return _UNPRINTABLE.sub(lambda found: _escape_of(found[0]), text)


def name_text(name: object) -> str:
    """Return a name that came from a disk or an archive on one line: what is no printable character, as an escape."""
    return "".join(each if each.isprintable() else _escape_of(each) for each in str(name))


def one_line(text: str, *, most: int = _LONGEST_LINE) -> str:
    """Return ``text`` as one printable line of at most ``most`` characters: long words are cut in the middle first."""
    line = " ".join(printable(text).split())
    if len(line) > most:
        line = " ".join(_cut(word, _LONGEST_WORD) for word in line.split(" "))
    return _cut(line, most)


def _escape_of(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = (most - 3) // 2
    return f"{text[: most - 3 - tail]}...{text[-tail:]}"


class PrintableStream:
    """A text stream that shows control characters as escapes; ``unfiltered`` is the stream itself, for colours."""

    def __init__(self, stream: Any) -> None:
        self.unfiltered = stream

    def write(self, text: str) -> int:
        # Bars of libraries begin each of their lines with a carriage return.
        head = "\r" if text.startswith("\r") else ""
        self.unfiltered.write(head + printable(text[len(head) :]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)


_results: TextIO | None = None


@contextmanager
def results_alone() -> Iterator[None]:
    """Within, stdout takes what ``show`` is given and nothing else; all other output goes to stderr.

    A user's model that prints, or a library, cannot spoil a result that a program reads.
    """
    global _results
    before = sys.stdout, sys.stderr, _results
    err: Any = sys.stderr if isinstance(sys.stderr, PrintableStream) else PrintableStream(sys.stderr)
    if _results is None:
        _results = sys.stdout
    sys.stdout = sys.stderr = err
    try:
        yield
    finally:
        sys.stdout, sys.stderr, _results = before


def results_stream() -> TextIO:
    """Return where results go: stdout, also where other output is kept away from it."""
    return sys.stdout if _results is None else _results


def show(text: str, *, is_coloured: bool = False) -> None:
    """Print a result on stdout; ``is_coloured`` text holds escapes of our own and nothing of a user's.

    Raises:
        WriteError: stdout takes no more, as on a full disk.
        BrokenPipeError: nobody reads it any more.
    """
    stream = results_stream()
    try:
        stream.write((text if is_coloured else printable(text)) + "\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"stdout: cannot be written ({error.strerror or error})") from error
