"""How an option is described: once, as a field of a record.

    @dataclass(frozen=True, kw_only=True)
    class Running(Options):
        title = "Running"

        seed: int = option(0, help="Seed of every random draw.", least=0, most=2**32 - 1)

The field's name is the key in a configuration file, its annotation says the type, the choices (``Literal``) and whether None
is allowed, its value is the default, and the rest stands in its `Option`. From this one place come the record's checks
(`Options.from_dict` and its construction), the flags of the command line with their help (``cli.arguments``), the JSON
schema (``core.schema``) and the reference pages (``cli.reference``).

Records of options can be combined by inheritance, each of them a group with a title of its own. They have no slots, because
Python cannot lay out an object of several bases that have.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxvitq.core.errors import ConfigError

DESCRIPTION = "option"  # the key of a field's metadata
Value = TypeVar("Value")
Record = TypeVar("Record", bound="Options")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What an option's name, type and default do not say.

    Attributes:
        help: what it does, in full sentences.
        brief: the same in a few words; the README's table has the options that have it.
        flags: spellings on the command line, the usual one first, then those of other tools; () for none; None for the
            name's own, "--num-samples" of num_samples.
        positional: it is given on the command line without a flag.
        shortcuts: further flags, each with the value that it stands for.
        metavar: what the help calls its value. Choices are then checked by the record, not by the command's parser.
        least: lower bound of a number, itself allowed; None is unbounded.
        most: upper bound of a number, itself allowed; None is unbounded.
        unit: of the value in files and in Python, such as "MB".
        none: what None means.
        pattern: regular expression that a text, or each text of a table, matches as a whole; for the schema.
        contents: what a table holds, for errors ("patterns and bits").
        check: further check of a value that is not None, called with the option's name; it raises ConfigError.
        text: reads the argument of the flag; it raises ValueError with the reason.
        repeats: of a list, whether a flag that is given again adds to it instead of replacing it.
        since: the version that brought it.
    """

    help: str
    brief: str = ""
    flags: tuple[str, ...] | None = None
    positional: bool = False
    shortcuts: Mapping[str, object] = field(default_factory=dict)
    metavar: str = ""
    least: float | None = None
    most: float | None = None
    unit: str = ""
    none: str = ""
    pattern: str = ""
    contents: str = ""
    check: Callable[[str, Any], object] | None = None
    text: Callable[[str], object] | None = None
    repeats: bool = False
    since: str = "0.1"


def option(default: Value, **description: Any) -> Value:
    """A field with that default; the other arguments are those of `Option`."""
    made: Value = field(default=default, metadata={DESCRIPTION: Option(**description)})
    return made


def required(**description: Any) -> Any:
    """A field without a default; the arguments are those of `Option`."""
    return field(metadata={DESCRIPTION: Option(**description)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueType:
    """What values an option takes, as its annotation says.

    Attributes:
        kind: type of a value; tuple for a list, dict for a table (a tuple of pairs of text).
        item: type of a list's items; ``kind`` itself for anything else.
        choices: allowed values, or items of a list; empty where anything of the type is allowed.
        optional: whether None is allowed.
    """

    kind: type
    item: type
    choices: tuple[object, ...]
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedOption:
    """An option of a record.

    Attributes:
        name: of the field, and key in a configuration file.
        option: its description.
        group: title of the record that defines it.
        default: dataclasses.MISSING where a value must be given.
        type: the values it takes.
    """

    name: str
    option: Option
    group: str
    default: Any
    type: ValueType

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    @property
    def flags(self) -> tuple[str, ...]:
        """Spellings on the command line, the usual one first; empty for a positional argument, too."""
        if self.option.flags is None and not self.option.positional:
            return ("--" + self.name.replace("_", "-"),)
        return self.option.flags or ()

    @property
    def on_command_line(self) -> bool:
        """Whether the command line can give it."""
        return self.option.positional or bool(self.flags)

    def check(self, value: Any) -> None:
        """Check a value of the right type.

        Raises:
            ConfigError: it is not among the choices, out of bounds, or refused by the option's own check.
        """
        if value is None and self.type.optional:
            return
        for item in value if self.type.kind is tuple else (value,):
            if self.type.choices and item not in self.type.choices:
                allowed = ", ".join(map(str, self.type.choices))
                raise ConfigError(self.name, f"expected one of {allowed}, got {item!r}")
            self._check_bounds(item)
        if self.option.check is not None:
            self.option.check(self.name, value)

    def _check_bounds(self, number: Any) -> None:
        least, most = self.option.least, self.option.most
        if least is not None and most is not None and not least <= number <= most:  # not: a NaN is refused
            raise ConfigError(self.name, f"expected {least} to {most}, got {number}")
        if least is not None and most is None and not least <= number:
            raise ConfigError(self.name, f"expected {least} or more, got {number}")

    def read(self, value: object) -> Any:
        """The field's value for one of a JSON or TOML document.

        Raises:
            ConfigError: it is of the wrong type.
        """
        kind = self.type.kind
        if value is None and self.type.optional:
            return None
        if kind is dict:
            if isinstance(value, Mapping) and _all_text([*value.keys(), *value.values()]):
                return tuple(value.items())
            raise ConfigError(self.name, f"expected a table of {self.option.contents}, got {value!r}")
        if (
            kind is tuple
            and isinstance(value, (list, tuple))
            and all(isinstance(item, self.type.item) for item in value)
        ):
            return tuple(value)
        if kind is float and type(value) is int:
            return float(value)
        if kind is tuple or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(self.name, f"expected {kind.__name__}, got {value!r}")
        return value

    def write(self, value: Any) -> Any:
        """What ``read`` reads, for JSON."""
        if self.type.kind is dict and value is not None:
            return dict(value)
        return list(value) if isinstance(value, tuple) else value

    def default_text(self) -> str:
        """The default as documents show it; empty where there is nothing to say."""
        if self.required or self.default is None:
            return self.option.none
        if isinstance(self.default, bool):
            return "on" if self.default else ""
        return " ".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)


@dataclass(frozen=True, kw_only=True)
class Options:
    """A record of options: every field is made by `option` or `required`."""

    # Its options' group in help and reference pages; none for "".
    title: ClassVar[str] = ""
    # Whether a configuration file can give them, too: errors then name the key, not the flag.
    in_files: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for named in options_of(type(self)):
            named.check(getattr(self, named.name))
        self.check_together()

    def check_together(self) -> None:
        """Check rules that several options take part in; a record that has some calls this one, too.

        Raises:
            ConfigError: options contradict each other.
        """

    def to_dict(self) -> dict[str, Any]:
        """Every option by name, ready for JSON."""
        return {named.name: named.write(getattr(self, named.name)) for named in options_of(type(self))}

    @classmethod
    def from_dict(cls: type[Record], values: Mapping[str, Any]) -> Record:
        """The record of such a dictionary; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type or out of range.
        """
        known = {named.name: named for named in options_of(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(unknown[0], f"unknown option; known: {', '.join(sorted(known))}")
        return cls(**{name: known[name].read(value) for name, value in values.items()})


def options_of(record: type[Options]) -> tuple[NamedOption, ...]:
    """The options of a record in the order of its fields."""
    hints = get_type_hints(record)
    return tuple(
        NamedOption(
            name=item.name,
            option=item.metadata[DESCRIPTION],
            group=_owner(record, item.name).title,
            default=item.default,
            type=_value_type(hints[item.name]),
        )
        for item in fields(record)
    )


def _owner(record: type[Options], name: str) -> type[Options]:
    """The record that defines a field: ``record`` itself or one that it inherits from."""
    bases = (base for base in record.__mro__ if issubclass(base, Options))
    return next(base for base in bases if name in get_annotations(base))


def documented(record: type[Record]) -> type[Record]:
    """Decorate a record: its docstring gets one line for each option, so that ``help()`` has them."""
    lines = "\n".join(f"    {named.name}: {named.option.help}" for named in options_of(record))
    record.__doc__ = f"{record.__doc__}\n\nAttributes:\n{lines}\n"
    return record


def _all_text(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _value_type(annotation: Any) -> ValueType:
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    optional = type(None) in parts
    (plain,) = (part for part in parts if part is not type(None))
    if get_origin(plain) is not tuple:
        kind, choices = _choices(plain)
        return ValueType(kind=kind, item=kind, choices=choices, optional=optional)
    content, _ = get_args(plain)  # the other is an ellipsis
    if get_origin(content) is tuple:
        return ValueType(kind=dict, item=str, choices=(), optional=optional)
    item, choices = _choices(content)
    return ValueType(kind=tuple, item=item, choices=choices, optional=optional)


def _choices(annotation: Any) -> tuple[type, tuple[object, ...]]:
    if get_origin(annotation) is Literal:
        allowed = get_args(annotation)
        return type(allowed[0]), allowed
    if annotation not in (bool, int, float, str, Path):
        raise TypeError(f"expected bool, int, float, str, Path, a Literal or a tuple of them, got {annotation}")
    return annotation, ()
