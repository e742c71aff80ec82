"""Call a function of the user's own file, named ``path/to/file.py:function``.

Models and data may both come from such a factory. No torch here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from layerfold.errors import LayerfoldError, UsageError, nearest_names

_PREFIX = "layerfold_user_"


def is_factory_source(source: str) -> bool:
    """Say whether ``source`` has the form ``path/to/file.py:function``."""
    path, colon, function = source.rpartition(":")
    return bool(colon) and path.endswith(".py") and function.isidentifier()


def call_factory(source: str, **offered: Any) -> Any:
    """Run the file of ``source`` and call its function.

    Args:
        source: ``path/to/file.py:function``.
        offered: arguments given to the function where it has a parameter of that name (or ``**kwargs``);
            those that are None are not offered.

    Raises:
        UsageError: the file or function is missing, the file or the function raises, or the function needs an
            argument that is not on offer.
    """
    path_text, _, name = source.rpartition(":")
    module = _run_file(Path(path_text), source)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{source}: {path_text} has no function {name!r}{nearest_names(name, known)}")
    arguments = _accepted(factory, offered, source)
    try:
        return factory(**arguments)
    except LayerfoldError:
        raise
    except Exception as error:
        raise UsageError(f"{source}: {name}() raised {type(error).__name__}: {_one_line(error)}") from error


def loaded_files() -> dict[str, Path]:
    """Return the users' files that were run in this process, by the module name that each run has."""
    return {name: Path(module.__file__) for name, module in sys.modules.items()
            if name.startswith(_PREFIX) and module.__file__ is not None}


def run_file(path: str | Path, name: str) -> None:
    """Run a user's file under a module name of ``loaded_files``, so that objects of its classes can be unpickled.

    Raises:
        UsageError: the file is missing or raises.
    """
    if name not in sys.modules:
        _run_file(Path(path), str(path), name)


def _run_file(path: Path, source: str, name: str | None = None) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{source}: no file {path}; give path/to/file.py:function")
    resolved = path.resolve()
    name = name or _unused_name(resolved)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{source}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # As `python file.py` would: the file may import its neighbours.
    sys.path.insert(0, str(resolved.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise UsageError(f"{source}: importing {path} raised {type(error).__name__}: {_one_line(error)}") from error
    finally:
        sys.path.remove(str(resolved.parent))
    return module


def _unused_name(path: Path) -> str:
    """Return a module name of its own for each run: two files called model.py, and two runs of one, do not meet."""
    stem = f"{_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return next(name for number in itertools.count() if (name := f"{stem}_{number}") not in sys.modules)


def _accepted(factory: Callable[..., Any], offered: dict[str, Any], source: str) -> dict[str, Any]:
    given = {name: value for name, value in offered.items() if value is not None}
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return given
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if needed and parameter.name not in given:
            on_offer = ", ".join(sorted(given)) or "nothing"
            raise UsageError(
                f"{source}: the function needs {parameter.name!r}, on offer: {on_offer}; give it a default value"
            )
    return {name: value for name, value in given.items() if name in known}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
