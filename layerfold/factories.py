"""Call a function of the user's own file, named ``path/to/file.py:function``.

Models and data may both come from such a factory. What goes wrong in the user's code, ``sys.exit()`` included, becomes
one line with the file and the line number; what it prints goes to stderr, since stdout is for results. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from layerfold.errors import LayerfoldError, UsageError, nearest_names
from layerfold.terminal import one_line

USER_MODULE = "layerfold_user_"
"""What the name of a module begins with that is a user's file."""
_RUNNING = threading.local()


def is_factory_source(source: str) -> bool:
    """Say whether ``source`` has the form ``path/to/file.py:function``."""
    path, colon, function = source.rpartition(":")
    return bool(colon) and path.endswith(".py") and function.isidentifier()


@dataclass(frozen=True, kw_only=True)
class Factory:
    """A function of a user's file.

    Attributes:
        source: ``path/to/file.py:function``.
        function: what has that name: a function, a class, or an object that is already what the function would return.
        path: of the file.
    """

    source: str
    function: Callable[..., Any]
    path: Path

    def has_parameter(self, name: str) -> bool:
        """Say whether the function takes an argument of a name."""
        parameters = _parameters(self.function)
        return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    def call(self, **offered: Any) -> Any:
        """Call the function.

        Args:
            offered: arguments given to the function where it has a parameter of that name (or ``**kwargs``);
                those that are None are not offered.

        Raises:
            UsageError: the function raises, exits, or needs an argument that is not on offer.
        """
        if _is_made(self.function):
            return self.function
        arguments = _accepted(self.function, offered, self.source)
        with _users_code(self.path, f"{one_line(self.source)}: {self.source.rpartition(':')[2]}()"):
            return self.function(**arguments)


def load_factory(source: str) -> Factory:
    """Run the file of ``source`` and return its function.

    Raises:
        UsageError: the file or the function is missing, or the file raises or exits.
    """
    path_text, _, name = source.rpartition(":")
    module = _run_file(Path(path_text), source)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
        known = [key for key, value in own.items() if getattr(value, "__module__", "") == module.__name__] or [*own]
        what = "has no function" if factory is None else f"has a {type(factory).__name__}, and no function,"
        raise UsageError(f"{one_line(source)}: {one_line(path_text)} {what} {name!r}{nearest_names(name, known)}")
    return Factory(source=source, function=factory, path=Path(path_text))


def call_factory(source: str, **offered: Any) -> Any:
    """Run the file of ``source`` and call its function with what is offered, as :meth:`Factory.call` does.

    Raises:
        UsageError: the file or function is missing, either raises or exits, or the function needs an argument that is
            not on offer.
    """
    return load_factory(source).call(**offered)


def loaded_files() -> dict[str, Path]:
    """Return the users' files that were run in this process, by the module name that each run has."""
    return {
        name: Path(module.__file__)
        for name, module in sys.modules.items()
        if name.startswith(USER_MODULE) and module.__file__ is not None
    }


def run_file(path: str | Path, name: str) -> None:
    """Run a user's file under a module name of ``loaded_files``, so that objects of its classes can be unpickled.

    Raises:
        UsageError: the file is missing, raises or exits.
    """
    if name not in sys.modules:
        _run_file(Path(path), str(path), name)


def _run_file(path: Path, source: str, name: str | None = None) -> ModuleType:
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else f"no file {one_line(str(path))}"
        raise UsageError(f"{one_line(source)}: {what}; give path/to/file.py:function")
    resolved = path.resolve()
    name = name or _unused_name(resolved)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{one_line(source)}: {one_line(str(path))} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # As `python file.py` would: the file may import its neighbours.
    folder = str(resolved.parent)
    sys.path.insert(0, folder)
    try:
        with _not_twice(resolved, source), _users_code(path, f"{one_line(source)}: importing {one_line(str(path))}"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


@contextlib.contextmanager
def _not_twice(resolved: Path, source: str) -> Iterator[None]:
    """Refuse a file that, while it runs, asks for itself to be run."""
    running: set[Path] = getattr(_RUNNING, "files", set())
    if resolved in running:
        raise UsageError(
            f"{one_line(source)}: the file loads itself while it runs; load it from another file, or "
            "below `if __name__ == '__main__':`"
        )
    _RUNNING.files = running | {resolved}
    try:
        yield
    finally:
        _RUNNING.files = running


@contextlib.contextmanager
def _users_code(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into one line, and send what it prints to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (LayerfoldError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        where = _where(error, path)
        code = one_line(repr(error.code), most=100)
        raise UsageError(
            f"{what} called sys.exit({code}); a file of models or data must not end the program{where}"
        ) from error
    except SyntaxError as error:
        where = f" ({Path(error.filename).name}:{error.lineno})" if error.filename and error.lineno else ""
        raise UsageError(f"{what} raised {type(error).__name__}: {one_line(error.msg)}{where}") from error
    except BaseException as error:
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = "; write `import NAME` or `from NAME import ...` instead: files in the same folder are found"
        raise UsageError(f"{what} raised {type(error).__name__}: {_said(error)}{_where(error, path)}{hint}") from error


def _said(error: BaseException) -> str:
    try:
        return one_line(str(error), most=300) or "no message"
    except Exception:  # an exception of the user's own may fail to say anything
        return "no message"


def _where(error: BaseException, path: Path) -> str:
    """Return the file and line of the innermost frame in the user's own folder, for an error line."""
    folder = path.resolve().parent
    try:
        frames = traceback.extract_tb(error.__traceback__, limit=-200)
    except Exception:
        return ""
    own = [frame for frame in frames if Path(frame.filename).parent == folder]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def _unused_name(path: Path) -> str:
    """Return a module name of its own for each run: two files called model.py, and two runs of one, do not meet."""
    stem = f"{USER_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return next(name for number in itertools.count() if (name := f"{stem}_{number}") not in sys.modules)


def _is_made(found: Any) -> bool:
    """Say whether a name of the file is a module or data already, rather than a function that makes one."""
    return not isinstance(found, type) and hasattr(found, "state_dict") and hasattr(found, "forward")


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C, without a signature
        return {}


def _accepted(factory: Callable[..., Any], offered: dict[str, Any], source: str) -> dict[str, Any]:
    given = {name: value for name, value in offered.items() if value is not None}
    parameters = _parameters(factory).values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return given
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if needed and (parameter.name not in given or parameter.name not in known):
            on_offer = ", ".join(sorted(given)) or "nothing"
            raise UsageError(
                f"{one_line(source)}: the function needs {parameter.name!r}, on offer: {on_offer}; give it a default "
                "value"
            )
    return {name: value for name, value in given.items() if name in known}
