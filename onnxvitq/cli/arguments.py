"""From records of options (``core.options``) to a command's parser, and from what it parsed back to the records."""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.option_text import whole_number
from onnxvitq.core.options import NamedOption, Options, options_of

SUBCOMMANDS = ("inspect", "export", "evaluate", "bench")
Record = TypeVar("Record", bound=Options)
METAVARS = {int: "N", float: "NUMBER", Path: "FILE", str: "TEXT"}


class Formatter(argparse.HelpFormatter):
    """Names with hyphens stay whole, and a value is named once for all spellings of its flag, by every version of Python."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """A parser made of records of options. Wrong use is one line, like every other error.

    Only what was given appears in the namespace: the records have the defaults.

    Args:
        prog: the command, as typed.
        description: what it does.
        records: its options, in the order of the help. Those of records with one title stand together.
        usage: how it is called; "" is with what has to be given.
        epilog: the help's last line.

    Attributes:
        records: as given.
    """

    def __init__(
        self, prog: str, description: str, *records: type[Options], usage: str = "", epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            usage=usage or " ".join((prog, *_must_be_given(records), "[options]")),
            epilog=epilog,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self.records = records
        groups: dict[str, argparse._ActionsContainer] = {"": self}
        for record in records:
            for named in options_of(record):
                if named.group not in groups:
                    groups[named.group] = self.add_argument_group(named.group)
                if named.on_command_line:
                    _add_option(groups[named.group], named, bounded=not record.in_files)

    def error(self, message: str) -> NoReturn:
        """As argparse calls it."""
        raise ConfigError(self.prog, message, "see --help")

    def help_text(self, width: int) -> str:
        """The help as it is printed in a terminal of so many columns."""
        self.formatter_class = partial(Formatter, width=width)
        return self.format_help()


def read(namespace: argparse.Namespace, record: type[Record]) -> Record:
    """The record of what the command line gave."""
    return record.from_dict(given(namespace, record))


def given(namespace: argparse.Namespace, record: type[Options]) -> dict[str, Any]:
    """Values of a record's options that the command line gave, as ``Options.from_dict`` reads them."""
    values = {}
    for named in options_of(record):
        value = getattr(namespace, named.name, None)
        if value is not None:
            values[named.name] = named.write(value)
    return values


def _must_be_given(records: Sequence[type[Options]]) -> list[str]:
    needed = [named for record in records for named in options_of(record) if named.required]
    positional = [
        metavar_of(named).upper() + " ..." * (named.type.kind is tuple) for named in needed if not named.flags
    ]
    return positional + [f"{named.flags[0]} {metavar_of(named)}" for named in needed if named.flags]


def metavar_of(named: NamedOption) -> str:
    """What an option's value is called in the help."""
    if named.option.metavar or named.option.positional:
        return named.option.metavar or named.name
    return METAVARS[named.type.item]


def _add_option(group: argparse._ActionsContainer, named: NamedOption, *, bounded: bool) -> None:
    if named.option.positional:
        nargs = "+" if named.type.kind is tuple else None if named.required else "?"
        help_text = describe(named)
        group.add_argument(
            named.name, metavar=metavar_of(named), nargs=nargs, type=_reader(named, bounded=bounded), help=help_text
        )
        return
    shared: dict[str, Any] = {"dest": named.name, "default": argparse.SUPPRESS}
    value: dict[str, Any]
    if named.type.kind is bool and named.default is True:
        value = {"action": argparse.BooleanOptionalAction}
    elif named.type.kind is bool:
        value = {"action": "store_const", "const": True}
    else:
        value = _value_of_flag(named, bounded=bounded)
    group.add_argument(*named.flags, **shared, **value, help=describe(named))
    for flag, constant in named.option.shortcuts.items():
        action = "append_const" if named.type.kind is tuple else "store_const"
        same = f"The same as {named.flags[0]} {constant}."
        group.add_argument(flag, **shared, action=action, const=constant, help=same)


def _value_of_flag(named: NamedOption, *, bounded: bool) -> dict[str, Any]:
    """How argparse reads the value, or values, of a flag."""
    several = named.type.kind in (tuple, dict)
    value: dict[str, Any] = {"type": _reader(named, bounded=bounded)}
    if several and named.option.text is None:
        value |= {"nargs": "+", "action": "extend" if named.option.repeats else "store"}
    elif several and named.option.repeats:
        value |= {"action": "append"}
    if not named.type.choices or named.option.metavar:
        value |= {"metavar": metavar_of(named)}
    else:
        value |= {"choices": named.type.choices}
        value |= {"metavar": "NAME"} if several else {}
    return value | ({"required": True} if named.required else {})


def _reader(named: NamedOption, *, bounded: bool) -> Callable[[str], object]:
    """What reads one argument: argparse prints the reason of an ArgumentTypeError, and of no other."""
    option, item = named.option, named.type.item
    text = option.text
    if text is None and bounded and item is int and option.least is not None and option.most is not None:
        text = whole_number(int(option.least), int(option.most))
    if text is None:
        return item
    reads = text

    def read_text(argument: str) -> object:
        try:
            return reads(argument)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_text


def describe(named: NamedOption) -> str:
    """An option's help with its default, escaped for argparse."""
    text = named.option.help
    if named.type.choices and named.type.kind is tuple:
        text += f" Names: {', '.join(map(str, named.type.choices))}."
    default = named.default_text()
    return (f"{text} (default: {default})" if default else text).replace("%", "%%")
