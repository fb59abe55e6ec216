"""The schema of a configuration file says what the configuration itself says."""

from typing import Any

import jsonschema
import pytest
from config_cases import OTHER, Extended

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.options import options_of
from onnxvitq.core.schema import json_schema

SCHEMA = json_schema(QuantConfig, "Configuration of onnxvitq")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_it_is_a_schema_and_takes_every_configuration() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(QuantConfig().to_dict())
    VALIDATOR.validate({})
    VALIDATOR.validate(OTHER)


def test_defaults_are_the_configurations() -> None:
    assert {name: item["default"] for name, item in SCHEMA["properties"].items()} == QuantConfig().to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "cosine"),
        ("objective", None),
        ("skip", ["rounding"]),
        ("skip", "bias"),
        ("bits", "w9a8"),
        ("bits", "xw8a8"),
        ("bit_overrides", {"*": "w1a8"}),
        ("bit_overrides", ["*"]),
        ("candidates", 1),
        ("candidates", "24"),
        ("max_drop", 1.5),
        ("bit_candidates", ["9"]),
        ("curriculum", 1),
        ("activations", "int8"),
        ("weight_bits", 7),
    ],
)
def test_both_refuse_the_same(name: str, value: Any) -> None:
    assert not VALIDATOR.is_valid({name: value})
    with pytest.raises(ConfigError):
        QuantConfig.from_dict({name: value})


@pytest.mark.parametrize("name", [named.name for named in options_of(QuantConfig) if named.type.optional])
def test_both_take_null_where_the_value_may_be_left_open(name: str) -> None:
    assert VALIDATOR.is_valid({name: None})
    assert getattr(QuantConfig.from_dict({name: None}), name) is None


def test_an_option_from_outside_is_in_the_schema() -> None:
    added = json_schema(Extended, "more")["properties"]["noise"]
    assert added == {
        "description": "Noise that is added.",
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 5,
        "default": None,
    }
