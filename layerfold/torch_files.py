"""Read what ``torch.save`` wrote, without running any code of the file.

Checkpoints of common trainers hold more than tensors: settings, paths, dates, NumPy numbers, the trainer's own classes.
PyTorch's weights-only reader refuses every name that it does not know. Here such a name gets a stand-in: an empty
object that takes the place of the real one, so that the tensors beside it can be read and nothing of the real class
runs. NumPy's numbers and arrays are decoded from their bytes. A name that can only be there to be called (a function,
or anything of the standard library but plain values) is refused.

Torch is imported by name: tables and solver work without it.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerfold.errors import OptionalDependencyError, UsageError
from layerfold.files import check_regular
from layerfold.terminal import name_text

_MOST_UNPACKED = 16
"""A zip archive may unpack to this many times its size; ``torch.save`` does not compress at all."""
_MOST_ENTRIES = 1_000_000
_CHUNK = 1 << 20
_HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib._local.Path",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "datetime.datetime",
        "datetime.date",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "zoneinfo.ZoneInfo",
        "collections.defaultdict",
        "collections.ChainMap",
        "collections.UserDict",
        "logging.Logger",
        "random.Random",
        "typing.Any",
        "typing.Dict",
        "typing.List",
        "typing.Optional",
        "typing.Union",
        "functools.partial",
        "enum.Enum",
        "builtins.dict",
        "builtins.list",
        "builtins.tuple",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "builtins.bytes",
        "builtins.object",
        "builtins.slice",
        "builtins.range",
        # NumPy's generators of random numbers call these to make themselves; their stand-ins make nothing.
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__generator_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    }
)
_LISTS = frozenset({"collections.deque", "collections.UserList"})
# Pickles of protocol 2, which torch writes, call some of them by the names that they had in Python 2.
_STDLIB = sys.stdlib_module_names | {"__builtin__"} | {name.partition(".")[0] for name in IMPORT_MAPPING}
_NUMPY_CODE = re.compile(r"[biufcSU]\d{1,9}")
# torch's list of safe names belongs to the whole process.
_LOCK = threading.Lock()


class _ListStandIn(list[Any]):
    def __init__(self, *_: object) -> None:
        super().__init__()


class _NumpyDtype:
    """A dtype of NumPy as its code and byte order; others than plain numbers and texts stay empty."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def decode(self, data: object, shape: tuple[int, ...], *, is_fortran: bool = False) -> Any:
        """Return an array of the bytes, or None where they are no plain numbers."""
        import numpy as np

        if not isinstance(data, bytes) or not _NUMPY_CODE.fullmatch(self.code):
            return None
        dtype = np.dtype(self.order.replace("|", "=") + self.code)
        if dtype.itemsize * math.prod(shape) != len(data):
            return None
        return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


class _NumpyArray:
    """An array of NumPy while it is read; ``value`` is None where it holds something else than plain numbers."""

    value: Any = None

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, is_fortran, data = state
            is_shape = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
            if is_shape and isinstance(dtype, _NumpyDtype):
                self.value = dtype.decode(data, shape, is_fortran=bool(is_fortran))


def _forget(_: object) -> None:
    """Take a state and keep nothing of it."""


def _numpy_scalar(dtype: object = None, data: object = None) -> Any:
    value = dtype.decode(data, ()) if isinstance(dtype, _NumpyDtype) else None
    return None if value is None else value[()]


def _numpy_array(*_: object) -> _NumpyArray:
    return _NumpyArray()


_DECODED: dict[str, Any] = {
    "numpy.dtype": _NumpyDtype,
    "numpy.ndarray": _NumpyArray,
    **{
        f"numpy.{core}.multiarray.{name}": make
        for core in ("core", "_core")
        for name, make in (("scalar", _numpy_scalar), ("_reconstruct", _numpy_array))
    },
    "builtins.frozenset": frozenset,
}


def load_torch_file(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors on the CPU, plain values, NumPy's numbers, stand-ins.

    Raises:
        UsageError: the bare reason, for the caller to put the file's name before it: no regular file, not written by
            ``torch.save``, damaged, or with code in it.
        OptionalDependencyError: torch is not installed.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise OptionalDependencyError(f"{path}: a file of torch.save needs torch; pip install torch") from None
    check_regular(path)
    allowed: list[Any] = [(make, name) for name, make in _DECODED.items()]
    # The reader compares the class of what it has made with the classes that are allowed.
    allowed += [(_NumpyArray, "layerfold._NumpyArray"), (Counter, "layerfold.Counter")]
    allowed += [(_stand_in_for(name), name) for name in sorted(_HARMLESS | _LISTS)]
    with _LOCK:
        if _is_archive(path):
            _check_archive(path)
            found = _names_in(torch, path)
            refused = sorted(name for name in found if _stand_in_for(name) is None)
            if refused:
                raise UsageError(_would_run_code(", ".join(refused[:3])))
            known = {name for _, name in allowed}
            allowed += [(_stand_in_for(name), name) for name in sorted(found - known)]
        try:
            # Opened here: torch goes by the name of a path.
            with torch.serialization.safe_globals(allowed), path.open("rb") as stream, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd pickles: what is wrong with a file is said once, by us
                loaded = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is no checkpoint
            raise UsageError(_reason(error)) from error
    return loaded.value if type(loaded) is _NumpyArray else loaded


def stands_for(value: object) -> str:
    """Return the class in whose place a value stands, or its own class's name."""
    return str(vars(value).get("stands_for", "")) if type(value) is Counter else type(value).__name__


def plain_array(value: object) -> Any:
    """Return the array of NumPy that a file held at this place, or the value itself."""
    return value.value if type(value) is _NumpyArray else value


def _stand_in_for(name: str) -> Callable[..., Any] | None:
    """Return what takes the place of a global name, or None where its only use can be to run code."""
    if name in _DECODED:
        return _DECODED[name]  # type: ignore[no-any-return]
    if name in _LISTS:
        return type(name, (_ListStandIn,), {})
    root, own_name = name.partition(".")[0], name.rpartition(".")[2]
    is_class = own_name.lstrip("_")[:1].isupper()
    if name not in _HARMLESS and (root in _STDLIB or not is_class):
        return None

    # torch's reader fills only dictionaries and counters, so an object that may be either is a counter.
    def make(_: type, *__: object, **___: object) -> Counter[Any]:
        empty: Counter[Any] = Counter()
        vars(empty).update(stands_for=name, __setstate__=_forget)
        return empty

    return type(own_name, (), {"__new__": make})


def _names_in(torch: Any, path: Path) -> set[str]:
    try:
        with path.open("rb") as stream:
            return set(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    except Exception as error:
        raise UsageError(_reason(error)) from error


def _check_archive(path: Path) -> None:
    """Refuse TorchScript, other archives, and those that unpack to far more than they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises several kinds for damaged archives
        raise UsageError(_reason(error)) from error
    names = [entry.filename for entry in entries[:_MOST_ENTRIES]]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise UsageError("is a TorchScript archive, which holds code; save model.state_dict() instead")
    if any(name.endswith(".npy") for name in names):
        raise UsageError("is an archive of NumPy; save model.state_dict() with torch.save or safetensors")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UsageError("is a zip archive that torch.save did not write; save model.state_dict()")
    size = path.stat().st_size
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MOST_UNPACKED * size or len(entries) > _MOST_ENTRIES:
        raise UsageError(
            f"is a zip archive of {size} bytes that would unpack to {unpacked}, more than "
            f"{_MOST_UNPACKED} times as many; save it again with torch.save"
        )
    _check_content(path, entries)


def _check_content(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive with a part that was changed since: torch's own reader does not look at the checksums."""
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in (entry.filename for entry in entries if entry.CRC):  # zero: written without checksums
                with archive.open(name) as part:
                    while part.read(_CHUNK):
                        pass
    except Exception as error:  # as above
        raise UsageError(
            f"a damaged checkpoint: its part {name_text(name.partition('/')[2])} is not what was written"
        ) from error


def _would_run_code(names: str) -> str:
    return (
        f"holds Python objects other than tensors ({names}), and reading them would run code; "
        "save model.state_dict(), or convert it to safetensors"
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    name = re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S{1,100})", text)
    if name:
        return _would_run_code(name[1])
    if "Weights only load failed" in text:
        text = text.rpartition("WeightsUnpickler error:")[2].partition("Please file an issue")[0].strip()
        text = text.partition("Check the documentation")[0].strip() or "its contents are not those of a checkpoint"
    if not re.search("[A-Za-z]{3}", text):  # of a text file torch's reader says a bare number
        text = "its contents are not those of a checkpoint"
    return f"not a PyTorch checkpoint, or a damaged one ({text[:200]}); save it again with torch.save"


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an end that names another disk, for one
        return False
