import doctest
import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from config_cases import OTHER

from onnxvitq.core import config as config_module
from onnxvitq.core.config import QuantConfig, load_config
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.quantize_options import CONFIG_VERSION, Effort, StepName

TOML = """
objective = "pearson"
skip = ["bias"]
nodes_to_exclude = ["*.fc1"]
seed = 5
"""


def test_the_example_sets_every_option() -> None:
    assert set(OTHER) == {field.name for field in fields(QuantConfig)}
    defaults = QuantConfig().to_dict()
    assert [name for name in OTHER if OTHER[name] == defaults[name]] == ["version", "target_size"]


@pytest.mark.parametrize(
    "values", [{}, OTHER, {"num_samples": None, "candidates": None}], ids=["defaults", "other", "null"]
)
def test_dictionary_round_trip(values: dict[str, Any]) -> None:
    config = QuantConfig.from_dict(values)
    assert QuantConfig.from_dict(config.to_dict()) == config
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert {name: config.to_dict()[name] for name in values} == values


def test_from_dict_takes_what_it_is_given_and_defaults_for_the_rest() -> None:
    assert QuantConfig.from_dict({}) == QuantConfig()
    assert QuantConfig.from_dict({"seed": 3, "nodes_to_exclude": ("a",)}) == QuantConfig(
        seed=3, nodes_to_exclude=("a",)
    )
    given = {"nodes_to_exclude": ["a"]}
    QuantConfig.from_dict(given)
    assert given == {"nodes_to_exclude": ["a"]}


def test_a_config_is_hashable_and_frozen() -> None:
    assert len({QuantConfig(), QuantConfig(), QuantConfig(seed=1)}) == 2
    config = QuantConfig()
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["objectives", "Objective", "", "weight_bits"])
def test_an_unknown_key_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown option; known: acceptance, activations, also, attention") as caught:
        QuantConfig.from_dict({"seed": 1, name: 1})
    assert caught.value.where == name


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("candidates", "24", "int"),
        ("candidates", 24.0, "int"),
        ("candidates", True, "int"),  # a bool is an int to Python, not to a reader of the file
        ("num_samples", True, "int"),
        ("num_samples", False, "int"),
        ("num_samples", 2.5, "int"),
        ("seed", False, "int"),
        ("bits", 8, "str"),
        ("version", "1", "int"),
        ("version", True, "int"),
        ("skip", "bias", "tuple"),
        ("skip", [1], "tuple"),
        ("effort", 1, "str"),
        ("objective", 1, "str"),
        ("objective", True, "str"),
        ("attention", None, "str"),
        ("nodes_to_exclude", "*.fc1", "tuple"),
        ("nodes_to_exclude", [1], "tuple"),
        ("nodes_to_exclude", [["*.fc1"]], "tuple"),
        ("nodes_to_exclude", True, "tuple"),
        ("nodes_to_exclude", {"a": 1}, "tuple"),
    ],
)
def test_a_value_of_the_wrong_type(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QuantConfig.from_dict({name: value})
    assert caught.value.where == name
    assert caught.value.problem == f"expected {expected}, got {value!r}"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("version", CONFIG_VERSION + 1, f"expected {CONFIG_VERSION}"),
        ("objective", "cosine", "expected one of minmax, mse, pearson, ranking"),
        ("objective", "MSE", "expected one of"),
        ("activations", "int8", "expected one of static, dynamic, token, auto"),
        ("attention", "uint8", "expected one of int8, mixed, float, auto"),
        ("effort", "slow", "expected one of fast, default, best"),
        (
            "skip",
            ("rounding",),
            "expected one of rotation, channels, online-channels, softmax, outer-linears, scales, bias, weights",
        ),
        ("also", ("rounding",), "expected one of rotation, channels"),
        ("bits", "w9a8", "expected wNaM with N and M 2 to 8"),
        ("candidates", 1, "expected 2 to 1000"),
        ("candidates", 1001, "expected 2 to 1000"),
        ("rounds", 0, "expected 1 to 20"),
        ("rounds", 21, "expected 1 to 20"),
        ("threads", -1, "expected 0 to 1024"),
        ("seed", -1, "expected 0 to 4294967295"),
        ("seed", 2**32, "expected 0 to 4294967295"),
        ("num_samples", 0, "expected 1 to 1000000000"),
        ("static_batch", 0, "expected 1 to 1000000000"),
        ("num_samples", -3, "expected 1 to 1000000000"),
    ],
)
def test_a_value_out_of_range(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QuantConfig.from_dict({name: value})
    assert caught.value.where == name
    assert caught.value.problem.startswith(expected)
    with pytest.raises(ConfigError):
        QuantConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("candidates", 2), ("candidates", 1000), ("rounds", 1), ("rounds", 20), ("seed", 2**32 - 1), ("num_samples", 1)],
)
def test_the_bounds_themselves_are_allowed(name: str, value: int) -> None:
    assert getattr(QuantConfig.from_dict({name: value}), name) == value


def test_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text(json.dumps(OTHER), encoding="utf-8")
    assert QuantConfig.from_dict(load_config(path)).to_dict() == OTHER


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(TOML, encoding="utf-8")
    assert QuantConfig.from_dict(load_config(path)) == QuantConfig(
        objective="pearson", skip=("bias",), nodes_to_exclude=("*.fc1",), seed=5
    )


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("cut.json", b'{"seed": ', "not valid .json"),
        ("list.json", b"[1, 2]", "expected a table of options"),
        ("number.json", b"3", "expected a table of options"),
        ("empty.json", b"", "not valid .json"),
        ("wrong.toml", b'seed: 5\n"x"', "not valid .toml"),
        ("json.toml", b'{"seed": 5}', "not valid .toml"),
        ("toml.json", TOML.encode(), "not valid .json"),
        ("binary.json", b"\xff\xfe\x00", "not valid .json"),
        ("binary.toml", b"\xff\xfe\x00", "not valid .toml"),
        ("noextension", b"seed = 5", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_table_of_options(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.where == str(path)
    assert caught.value.problem.startswith(problem)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


STEPS = get_args(StepName)


def test_the_baseline_runs_none_of_what_is_not_published_with_it() -> None:
    config = QuantConfig(objective="minmax")
    assert [step for step in STEPS if config.runs(step)] == ["bias"]
    assert not config.evaluated
    assert QuantConfig().evaluated


@pytest.mark.parametrize(
    ("options", "runs"),
    [({"skip": ("weights",)}, True), ({"method": "search"}, True), ({"also": ("bias",)}, True), ({}, False)],
)
def test_biases_are_corrected_where_nothing_else_fits_them(options: dict[str, Any], runs: bool) -> None:
    assert QuantConfig(**options).runs("bias") == runs


@pytest.mark.parametrize("step", STEPS)
def test_each_step_can_be_left_out_alone(step: StepName) -> None:
    others = tuple(one for one in STEPS if one != step)
    assert tuple(one for one in STEPS if QuantConfig(skip=(step,), also=others).runs(one)) == others


def test_effort_says_what_runs_and_how_far_the_search_goes() -> None:
    fast, default, best = (QuantConfig(effort=effort) for effort in get_args(Effort))
    assert [step for step in STEPS if not fast.runs(step)] == ["rotation", "scales", "weights"]
    assert [step for step in STEPS if not (default.runs(step) and best.runs(step))] == ["rotation", "bias"]
    assert default.search < best.search
    assert QuantConfig(effort="best", candidates=3).search == (3, best.search[1])
    assert not QuantConfig(acceptance="always").evaluated


@pytest.mark.parametrize("effort", get_args(Effort))
def test_what_an_effort_leaves_out_runs_where_it_is_asked_for(effort: Effort) -> None:
    plain, asked = QuantConfig(effort=effort), QuantConfig(effort=effort, also=("rotation",))
    assert not plain.runs("rotation")
    assert [step for step in STEPS if asked.runs(step)] == ["rotation", *(step for step in STEPS if plain.runs(step))]


def test_a_step_cannot_be_left_out_and_run_as_well() -> None:
    assert QuantConfig(effort="fast", also=("weights",)).runs("weights")
    with pytest.raises(ConfigError, match=r"expected one of rotation, .*, scales, bias, got 'weights'"):
        QuantConfig(skip=("weights",), also=("weights",))


@pytest.mark.parametrize("value", [["*.fc1"], "w4a8", {"*.fc1": 4}, {4: "w4a8"}])
def test_overrides_are_a_table_of_text(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a table of patterns and bits"):
        QuantConfig.from_dict({"bit_overrides": value})


def test_bits_of_an_override_are_checked() -> None:
    with pytest.raises(ConfigError, match="expected wNaM") as caught:
        QuantConfig.from_dict({"bit_overrides": {"head": "w4"}})
    assert caught.value.where == "bit_overrides: head"


def test_the_documented_example() -> None:
    outcome = doctest.testmod(config_module)
    assert (outcome.attempted, outcome.failed) == (1, 0)
