"""argparse, with errors of one line that name what is nearest."""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any, NoReturn

from layerfold.errors import UsageError, nearest_names


class Parser(argparse.ArgumentParser):
    """Parser of the command line that says what is wrong in one line, as every other error is said."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._given: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        if message.endswith("expected one argument"):
            message += self._mistaken_for_a_flag(message)
        commands = subcommands(self)
        if commands and " are required" in message:
            message = f"{self.prog.split()[-1]}: say what to do: {', '.join(commands)}"
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the arguments for what an error says of them."""
        self._given = list(args or ())
        return super().parse_known_args(args, namespace)

    def _mistaken_for_a_flag(self, message: str) -> str:
        """Say how to give a value that begins with -, where that is why it was not seen."""
        names = message.partition(": ")[0].removeprefix("argument ").split("/")
        for flag, value in pairwise(self._given):
            if flag in names and value.startswith("-") and value != "--" and value not in self._option_string_actions:
                return f"; a value that begins with - is given with =, as in {flag}={value}"
        return ""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse ``--budget --``, of which argparse makes an empty list."""
        if action.option_strings and action.nargs is None and (len(arg_strings) != 1 or arg_strings[0] == "--"):
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest of the choices as well."""
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {str(value)!r}; choose from {', '.join(known)}{nearest_names(str(value), known)}",
            )


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Return the arguments of a command; an error leads to the help of that command.

    Raises:
        UsageError: anything that the command does not take.
        SystemExit: the help or the version was printed.
    """
    refuse_unknown_options(parser, arguments)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        chosen, _ = _command_of(parser, arguments)
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    return parsed


def _command_of(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of the command that was named, and the arguments after its name."""
    position = 0
    while position < len(arguments) and arguments[position] in (commands := subcommands(parser)):
        parser, position = commands[arguments[position]], position + 1
    return parser, arguments[position:]


def refuse_unknown_options(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Name the nearest options of a misspelt one, which argparse does not, and does after what is missing.

    Raises:
        UsageError: an option that the command does not have.
    """
    parser, rest = _command_of(parser, arguments)
    if subcommands(parser):
        return
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    for argument in rest:
        if argument == "--":
            break
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            parser.error(f"unknown argument {name}{nearest_names(name, known)}")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's commands."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}
