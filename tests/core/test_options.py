"""An option that is described outside the package, in one field, is checked and read like the package's own."""

from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.options import Options, documented, option, options_of, required

Colour = Literal["red", "green"]


def even(name: str, value: int) -> None:
    if value % 2:
        raise ConfigError(name, f"expected an even number, got {value}")


@dataclass(frozen=True, kw_only=True)
class Paint(Options):
    """What to paint with."""

    title = "paint"

    colour: Colour = option("red", help="Colour of the paint.")
    layers: tuple[Colour, ...] = option((), help="Colours on top.", repeats=True)
    brushes: int | None = option(None, help="Brushes.", least=1, most=9, none="as many as there are")
    thickness: float = option(0.5, help="Thickness in mm.", least=0, unit="mm")
    places: tuple[tuple[str, str], ...] = option((), help="Names of places.", contents="places and colours")
    glossy: bool = option(False, help="Whether it shines.")
    pots: int = option(2, help="Pots.", check=even)


@dataclass(frozen=True, kw_only=True)
class Wall(Paint):
    """Where to paint."""

    title = "wall"

    height: int = required(help="Height in m.", least=1, most=3)
    photo: Path | None = option(None, help="How it looks.")

    def check_together(self) -> None:
        super().check_together()
        if self.glossy and self.height == 3:
            raise ConfigError("glossy", "expected a lower wall")


def test_a_document_becomes_the_record_and_back() -> None:
    document = {
        "colour": "green",
        "layers": ["red", "red"],
        "brushes": 3,
        "thickness": 2,
        "glossy": True,
        "height": 2,
        "places": {"door": "red"},
        "pots": 4,
        "photo": None,
    }
    wall = Wall.from_dict(document)
    assert wall.layers == ("red", "red")
    assert wall.places == (("door", "red"),)
    assert isinstance(wall.thickness, float)
    assert wall.to_dict() == document
    assert hash(wall) == hash(Wall.from_dict(wall.to_dict()))
    with pytest.raises(FrozenInstanceError):
        wall.pots = 6  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("colour", "blue", "expected one of red, green, got 'blue'"),
        ("colour", None, "expected str, got None"),
        ("layers", ["red", "blue"], "expected one of red, green, got 'blue'"),
        ("layers", "red", "expected tuple, got 'red'"),
        ("layers", [1], "expected tuple, got [1]"),
        ("brushes", 0, "expected 1 to 9, got 0"),
        ("brushes", 10, "expected 1 to 9, got 10"),
        ("brushes", 2.0, "expected int, got 2.0"),
        ("brushes", True, "expected int, got True"),
        ("thickness", -0.5, "expected 0 or more, got -0.5"),
        ("thickness", float("nan"), "expected 0 or more, got nan"),
        ("thickness", "thin", "expected float, got 'thin'"),
        ("places", ["door"], "expected a table of places and colours, got ['door']"),
        ("places", {"door": 1}, "expected a table of places and colours, got {'door': 1}"),
        ("glossy", 1, "expected bool, got 1"),
        ("pots", 3, "expected an even number, got 3"),
        ("wall", 1, "unknown option; known: brushes, colour, glossy, layers, places, pots, thickness"),
    ],
)
def test_what_a_field_does_not_allow_is_refused(name: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Paint.from_dict({name: value})
    assert str(caught.value) == f"{name}: {problem}"


@pytest.mark.parametrize("values", [{"brushes": 1}, {"brushes": 9}, {"brushes": None}, {"thickness": 0}, {"pots": 0}])
def test_bounds_and_none_are_allowed(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    assert getattr(Paint.from_dict(values), name) == value


def test_checks_run_however_the_record_is_made() -> None:
    with pytest.raises(ConfigError, match="pots: expected an even number"):
        Paint(pots=3)
    with pytest.raises(ConfigError, match="pots: expected an even number"):
        replace(Paint(), pots=3)
    with pytest.raises(ConfigError, match="glossy: expected a lower wall"):
        Wall(height=3, glossy=True)
    with pytest.raises(TypeError, match="height"):
        Wall.from_dict({})


def test_an_option_knows_its_group_flags_and_default() -> None:
    options = {named.name: named for named in options_of(Wall)}
    assert list(options) == [item.name for item in fields(Wall)]
    assert {name: named.group for name, named in options.items() if named.group != "paint"} == {
        "height": "wall",
        "photo": "wall",
    }
    assert options["glossy"].flags == ("--glossy",)
    assert options["height"].required
    assert not options["photo"].required
    texts = {name: named.default_text() for name, named in options.items()}
    assert (texts["colour"], texts["brushes"], texts["photo"]) == ("red", "as many as there are", "")


def test_help_lists_the_options() -> None:
    assert "Attributes:\n    colour: Colour of the paint.\n" in str(documented(Paint).__doc__)
    assert "    bits: Bits of the weights and of the activations, 2 to 8 each" in str(QuantConfig.__doc__)


def test_a_type_that_no_file_can_hold_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Options):
        numbers: complex = option(1j, help="A number.")

    with pytest.raises(TypeError, match="expected bool, int, float, str, Path"):
        options_of(Odd)


def test_every_option_of_the_configuration_is_described_in_sentences() -> None:
    for named in options_of(QuantConfig):
        assert named.option.help.endswith("."), named.name
        assert named.option.help[0].isupper() or named.option.help.startswith("onnx"), named.name
        assert named.group, named.name
        assert not named.type.optional or named.option.none, f"{named.name}: what does None mean?"
