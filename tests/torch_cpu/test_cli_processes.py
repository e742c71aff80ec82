"""Several processes of one training that fail alike end with one line, whatever the error is."""

from __future__ import annotations

import pytest

from layerfold.cli import main
from layerfold.errors import DataError, FinetuneError

_FINETUNE = ["finetune", "own.py:net", "--data", "folder:images", "--solution", "s.json", "-o", "f.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RuntimeError("shapes do not match"),
        MemoryError(),
        DataError("--data d: no image"),
        FinetuneError("the loss is nan"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_of_processes_that_fail_alike_the_first_says_so(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr("layerfold.cli.finetune._finetune", fail)
    monkeypatch.setenv("LAYERFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    codes, lines = [], []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        codes.append(main(_FINETUNE))
        lines.append(capsys.readouterr().err.count("\n"))
    assert lines == [1, 0, 0, 0]
    assert codes == [getattr(error, "exit_code", 1)] * 4
