"""Every option of a quantization, as one frozen record that goes to and comes from JSON and TOML."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from onnxvitq.errors import ConfigError

CONFIG_VERSION = 1
ObjectiveName = Literal["minmax", "mse", "pearson", "ranking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """What to do, not where: paths are arguments.

    objective: how scales are chosen; "minmax" searches nothing. candidates, rounds: size of the search.
    bias_correction: subtract the expected output error from each bias. acceptance: of what a step proposes, keep what the
    model's output gains from on held-out calibration samples, or everything. reparametrise: shift and scale channels, exactly.
    rebuild: solve the weights again against the quantized inputs. activations: "static" calibrates the range of every linear's
    input, "dynamic" measures it at run time, "token" the same after each token was divided by its largest value (more
    accurate, costs time), "auto" takes for each kind of layer the cheapest that costs the output little on held-out samples.
    attention: "int8" quantizes both products, "float" none, "mixed" the scores, and probabilities times values where floats
    gain nothing on held-out samples, "auto" as mixed, after the late division of the softmax was tried.
    weight_bits: 8, or 7 for processors whose u8 x s8 products saturate (AVX2 and AVX512 without VNNI).
    nodes_to_exclude: glob patterns of node names or roles that stay float. num_samples: calibration samples at most.
    threads: of onnxruntime; 0 takes one a core. seed: of every random draw.
    """

    version: int = CONFIG_VERSION
    objective: ObjectiveName = "pearson"
    candidates: int = 16
    rounds: int = 2
    bias_correction: bool = True
    acceptance: Literal["held-out", "always"] = "held-out"
    reparametrise: bool = True
    rebuild: bool = True
    activations: Literal["static", "dynamic", "token", "auto"] = "static"
    attention: Literal["int8", "mixed", "float", "auto"] = "int8"
    weight_bits: int = 8
    nodes_to_exclude: tuple[str, ...] = ()
    num_samples: int | None = None
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.version != CONFIG_VERSION:
            raise ConfigError("version", f"expected {CONFIG_VERSION}, got {self.version}")
        _one_of("objective", self.objective, get_args(ObjectiveName))
        _one_of("acceptance", self.acceptance, ("held-out", "always"))
        _one_of("activations", self.activations, ("static", "dynamic", "token", "auto"))
        _one_of("attention", self.attention, ("int8", "mixed", "float", "auto"))
        _one_of("weight_bits", self.weight_bits, (7, 8))
        _between("candidates", self.candidates, 2, 1000)
        _between("rounds", self.rounds, 1, 20)
        _between("threads", self.threads, 0, 1024)
        _between("seed", self.seed, 0, 2**32 - 1)
        if self.num_samples is not None:
            _between("num_samples", self.num_samples, 1, 10**9)

    @property
    def judged(self) -> bool:
        """Whether steps are accepted by the model's output. The baseline "minmax" stays quick: it searches and changes
        nothing, and its bias correction is accepted layer by layer only.
        """
        return self.acceptance == "held-out" and self.objective != "minmax"

    @property
    def reparametrises(self) -> bool:
        """Whether channels are mapped; not for the baseline "minmax"."""
        return self.reparametrise and self.objective != "minmax"

    @property
    def rebuilds(self) -> bool:
        """Whether weights are solved again; not for the baseline "minmax"."""
        return self.rebuild and self.objective != "minmax"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "nodes_to_exclude": list(self.nodes_to_exclude)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "QuantConfig":
        """The record of such a dictionary; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type or out of range.
        """
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(unknown[0], f"unknown option; known: {', '.join(sorted(known))}")
        given = dict(values)
        for name, value in given.items():
            default = known[name].default
            expected = int if name == "num_samples" else type(default)
            accepted = value is None and name == "num_samples"
            if expected is tuple:
                accepted = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
                given[name] = tuple(value) if accepted else value
            elif expected is not bool and isinstance(value, bool):
                accepted = False
            else:
                accepted = accepted or isinstance(value, expected)
            if not accepted:
                raise ConfigError(name, f"expected {expected.__name__}, got {value!r}")
        return cls(**given)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(name, f"expected one of {', '.join(map(str, allowed))}, got {value!r}")


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(name, f"expected {low} to {high}, got {value}")


def load_config(path: Path) -> dict[str, Any]:
    """Options of a .json or .toml file, unchecked.

    Raises:
        ConfigError: missing, unreadable, or not a table of options.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # both parsers' errors, and a text that is not UTF-8
        raise ConfigError(str(path), f"not valid {path.suffix or 'JSON'}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(str(path), "expected a table of options")
    return values
