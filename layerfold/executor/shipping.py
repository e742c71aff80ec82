"""From this process to a worker: objects as bytes, through a pipe or Ray's object store, never through a file."""

from __future__ import annotations

import pickle  # noqa: TID251 - between processes of one run, which trust each other; nothing of others is read
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from layerfold import __version__
from layerfold.errors import ExecutorError, LayerfoldError, UsageError
from layerfold.executor.protocol import MakeWorker
from layerfold.factories import loaded_files, run_file


@dataclass(frozen=True)
class Payload:
    """A ``make_worker`` on its way.

    Attributes:
        files: (module name, path) of the user's own, which define classes of what is shipped; each machine needs them
            at the same place.
        content: pickled.
        version: of the layerfold that packed it.
    """

    files: tuple[tuple[str, str], ...]
    content: bytes
    version: str = __version__


def pack(make_worker: MakeWorker[Any, Any], dumps: Callable[[Any], bytes] = pickle.dumps) -> Payload:
    """Pack what makes a worker.

    Raises:
        UsageError: something in it cannot be pickled.
    """
    try:
        content = dumps(make_worker)
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise UsageError(
            f"the model or the images cannot be sent to another process ({error_text(error)}); keep what "
            "they hold to weights, arrays and classes of an importable file, or use one worker"
        ) from error
    files = ((name, str(path)) for name, path in loaded_files().items() if name.encode() in content)
    return Payload(tuple(files), content)


class TaskRunner:
    """In a worker: makes the real worker of a payload, and turns whatever it does into something to send back."""

    def __init__(self, payload: Payload, device: str) -> None:
        self._payload, self._device = payload, device
        self._worker: Callable[[Any], Any] | None = None

    def start(self) -> tuple[str, Any]:
        """Make the worker; return ``ready``, ``refused`` or ``failed`` with a value, as in a ``Report``."""
        return self._guarded(self._make, "ready")

    def answer(self, task: Any) -> tuple[str, Any]:
        """Return ``answer``, ``refused`` or ``failed``, with a value."""
        assert self._worker is not None
        worker = self._worker
        return self._guarded(lambda: worker(task), "answer")

    def _make(self) -> None:
        payload = self._payload
        if payload.version != __version__:
            raise ExecutorError(
                f"a worker has layerfold {__version__}, this process {payload.version}: install the "
                "same version everywhere"
            )
        for name, file in payload.files:
            run_file(file, name)
        self._worker = pickle.loads(payload.content)(self._device)

    def _guarded(self, work: Callable[[], Any], name: str) -> tuple[str, Any]:
        try:
            return name, work()
        except LayerfoldError as error:
            return "refused", (_known_class(error), str(error))
        except SystemExit as error:
            return "failed", f"the code of the model or the images ended its process (sys.exit({error.code!r}))"
        except Exception as error:  # anything that the model or a library raises: the task is tried again elsewhere
            return "failed", error_text(error)


def unpacked(kind: str, value: Any) -> Any:
    """Return what a runner sent as what it was: a refusal is an error again, without its constructor's arguments."""
    if kind != "refused":
        return value
    cls, text = value
    error = cls.__new__(cls, text)
    error.args = (text,)
    return error


def _known_class(error: LayerfoldError) -> type[LayerfoldError]:
    """Return its class, or the nearest one above that every process knows: a user's file may have its own."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == LayerfoldError.__module__)


def error_text(error: BaseException) -> str:
    """Return class and message in one line of a bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
