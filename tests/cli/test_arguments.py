"""A parser is made of records of options, and of nothing else."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from config_cases import Extended

from onnxvitq.cli import export, quantize
from onnxvitq.cli.arguments import Parser, given, read
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.option_text import megabytes
from onnxvitq.core.options import Options, option, options_of, required
from onnxvitq.export.exporter import ExportOptions

Colour = Literal["red", "green"]


@dataclass(frozen=True, kw_only=True)
class Paint(Options):
    """Described outside the package."""

    title = "paint"

    walls: tuple[Path, ...] = required(help="Walls.", positional=True)
    colour: Colour = option("red", help="Colour, 50% of it.", flags=("-c", "--colour", "--color"))
    layers: tuple[Colour, ...] = option((), help="Colours on top.", repeats=True, shortcuts={"--mud": "green"})
    tags: tuple[str, ...] | None = option(None, help="Tags.", metavar="TAG")
    coats: int = option(2, help="Coats.", least=1, most=9, shortcuts={"--thick": 9})
    room: float | None = option(None, help="Room in MB.", metavar="SIZE", text=megabytes)
    glossy: bool = option(False, help="Whether it shines.")
    smooth: bool = option(True, help="Whether it is smooth.")
    secret: int = option(3, help="In files only.", flags=())


def parsed(*arguments: str) -> Paint:
    return read(Parser("paint", "Paint walls.", Paint).parse_args(arguments), Paint)


def test_defaults_are_the_records() -> None:
    assert parsed("a", "b") == Paint(walls=(Path("a"), Path("b")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--color", "green"), {"colour": "green"}),
        (("-c", "green"), {"colour": "green"}),
        (("--layers", "red", "green", "--layers", "red", "--mud"), {"layers": ("red", "green", "red", "green")}),
        (("--tags", "a", "b", "--tags", "c"), {"tags": ("c",)}),
        (("--coats", "1"), {"coats": 1}),
        (("--thick",), {"coats": 9}),
        (("--room", "12kB"), {"room": 0.012}),
        (("--glossy",), {"glossy": True}),
        (("--no-smooth",), {"smooth": False}),
        (("--smooth",), {"smooth": True}),
    ],
)
def test_flags_set_their_fields(arguments: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert parsed("a", *arguments) == Paint(walls=(Path("a"),), **expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the following arguments are required: walls"),
        (("a", "--colour", "blue"), "argument -c/--colour/--color: invalid choice: 'blue'"),
        (("a", "--layers", "blue"), "argument --layers: invalid choice: 'blue'"),
        (("a", "--coats", "0"), "argument --coats: expected 1 to 9, got 0"),
        (("a", "--coats", "some"), "argument --coats: expected a whole number, got 'some'"),
        (("a", "--room", "big"), "argument --room: expected a size such as 12MB, got 'big'"),
        (("a", "--secret", "3"), "unrecognized arguments: --secret"),
        (("a", "--gloss"), "unrecognized arguments: --gloss"),
    ],
)
def test_wrong_use_is_named_with_its_flag(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(*arguments)
    assert words in str(caught.value)
    assert str(caught.value).endswith("(see --help)")


def test_the_help_says_what_the_fields_say() -> None:
    text = Parser("paint", "Paint walls.", Paint).help_text(400)
    assert text.startswith("usage: paint WALLS ... [options]\n\nPaint walls.\n\n")
    assert "\npaint:\n" in text
    assert "-c, --colour, --color {red,green}" in text
    assert "Colour, 50% of it. (default: red)" in text
    assert "The same as --coats 9." in text
    assert "secret" not in text


def test_records_of_one_title_stand_together() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Brush(Options):
        """More of the same group."""

        title = Paint.title

        hair: str = option("pig", help="Its hair.")

    text = Parser("paint", "Paint walls.", Paint, quantize.FileOptions, Brush).help_text(400)
    assert text.count("\npaint:\n") == 1
    assert text.index("--smooth") < text.index("--hair TEXT")


# ------------------------------------------------------------------------------------------ the configuration's options


def test_an_option_from_outside_has_a_flag_and_the_records_own_error() -> None:
    parser = Parser("more", "The configuration and more.", Extended)
    assert Extended.from_dict(given(parser.parse_args(["--noise", "3"]), Extended)) == Extended(noise=3)
    with pytest.raises(ConfigError, match=r"^noise: expected 1 to 5, got 9$"):
        Extended.from_dict(given(parser.parse_args(["--noise", "9"]), Extended))
    assert "Noise that is added. (default: what the data has)" in parser.help_text(400)


OTHERS: dict[str, tuple[str, Any]] = {  # an argument of each flag that takes one, and what it means
    "bit_overrides": ("head=float", {"head": "float"}),
    "bits": ("w4a6", "w4a6"),
    "average_bits": ("4.5", 4.5),
    "target_size": ("500kB", 0.5),
    "max_drop": ("0.5%", 0.005),
    "judged_on": ("data.npz", "data.npz"),
    "cache": ("folder", "folder"),
    "nodes_to_exclude": ("*.fc1", ["*.fc1"]),
    "branch_budget": ("0.25", 0.25),
}


@pytest.mark.parametrize(
    "named", [named for named in options_of(QuantConfig) if named.flags], ids=lambda named: named.name
)
def test_every_spelling_of_every_option_is_accepted(named: Any) -> None:
    expected: Any
    for flag in named.flags:
        if named.type.kind is bool:
            arguments, expected = [flag], True
        elif named.type.choices:
            choice = named.type.choices[-1]
            arguments, expected = [flag, choice], [choice] if named.type.kind is tuple else choice
        else:
            argument, expected = OTHERS.get(named.name, ("7", 7))
            arguments = [flag, argument]
        namespace = quantize.parser().parse_args(["model.onnx", *arguments])
        assert given(namespace, QuantConfig) == {named.name: expected}


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--no-bias-correction", "skip", ("bias",)),
        ("--no-rebuild", "skip", ("weights",)),
        ("--no-edges-at-8-bits", "edges_at_8_bits", False),
    ],
)
def test_shortcuts(flag: str, name: str, value: object) -> None:
    values = given(quantize.parser().parse_args([flag]), QuantConfig)
    assert getattr(QuantConfig.from_dict(values), name) == value


def test_nothing_given_is_nothing_said() -> None:
    namespace = quantize.parser().parse_args([])
    assert given(namespace, QuantConfig) == {}
    assert read(namespace, quantize.QuantizeOptions) == quantize.QuantizeOptions()


def test_the_help_says_every_default_of_the_configuration() -> None:
    text = " ".join(quantize.parser().help_text(400).split())
    defaults = QuantConfig().to_dict()
    for named in options_of(QuantConfig):
        if named.flags and defaults[named.name] not in (None, False, True, [], {}):
            assert f"{named.option.help} (default: {defaults[named.name]})" in text
        elif named.flags and named.option.none:
            assert f"(default: {named.option.none})" in text


def test_no_option_of_the_command_hides_one_of_the_configuration() -> None:
    keys = {item.name for item in fields(QuantConfig)}
    assert keys & {item.name for item in fields(quantize.QuantizeOptions)} == set()


def test_the_export_commands_defaults_are_the_exporters() -> None:
    command = {item.name: item.default for item in fields(export.ExportCommandOptions)}
    exporter = ExportOptions()
    assert command["static_batch"] is None
    assert exporter.dynamic_batch
    for name in ("exporter", "opset", "image_size", "seed"):
        assert command[name] == getattr(exporter, name)
