"""Files that a TensorRT build leaves, with stand-ins for TensorRT: whole or as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerfold.errors import ExportError
from layerfold.export.engine import _TimingCache
from layerfold.export.trt_library import logging_to


class Logger:
    """What of TensorRT's logger is used."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.file: Any = None


def test_a_log_takes_its_place_at_the_end_and_is_whole(tmp_path: Path) -> None:
    log, logger = tmp_path / "folder" / "build.log", Logger()
    log.parent.mkdir()
    log.write_text("an earlier build\n")
    with logging_to(logger, log, "heading"):
        logger.file.write("a line\n")
        assert log.read_text() == "an earlier build\n"
    assert log.read_text() == "heading\na line\n"
    assert logger.file is None
    assert list(log.parent.iterdir()) == [log]


def test_the_log_of_a_build_that_fails_is_kept(tmp_path: Path) -> None:
    log, logger = tmp_path / "build.log", Logger()

    def build() -> None:
        with logging_to(logger, log, "heading"):
            logger.file.write("why\n")
            raise ExportError("cannot build")

    with pytest.raises(ExportError, match=r"^cannot build$"):
        build()
    assert log.read_text() == "heading\nwhy\n"


@pytest.mark.parametrize("place", ["", "file/build.log"])
def test_a_log_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"^log=.* cannot be written"), logging_to(Logger(), tmp_path / place, ""):
        pass


def test_a_timing_cache_that_is_no_file_is_named(tmp_path: Path) -> None:
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(ExportError, match=rf"^timing_cache='{place}' cannot be read: .*name another file"):
            _TimingCache(place, None)
