"""The configuration of a quantization: every option, and what follows from them together."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.options import documented
from onnxvitq.core.quantize_options import (
    CANDIDATES,
    INTEGER_WIDTHS,
    ROUNDS,
    Effort,
    FittingOptions,
    FormatOptions,
    InputForm,
    LearningOptions,
    OutputOptions,
    PrecisionOptions,
    Products,
    RunningOptions,
    StepName,
)

SKIPPED: Mapping[Effort, frozenset[StepName]] = {
    "fast": frozenset({"rotation", "scales", "weights"}),  # the latter two are three in four parts of the time
    "default": frozenset({"rotation"}),  # its gain is within the noise of that of its folded norms: tools/rotation.py
    "best": frozenset({"rotation"}),
}


# The bases are in the reverse order of the fields: Python collects fields from the last base on.
@documented
@dataclass(frozen=True, kw_only=True)
class QuantConfig(RunningOptions, OutputOptions, PrecisionOptions, FormatOptions, LearningOptions, FittingOptions):
    """What to do, not where: paths of models and data are arguments. It is checked when it is made.

    Example:
        >>> QuantConfig(bits="w4a8", skip=("weights",)).runs("weights")
        False

    Raises:
        ConfigError: a value is not allowed, or two options contradict each other.
    """

    in_files = True

    @property
    def evaluated(self) -> bool:
        """Whether a step's proposals are evaluated by the model's output on held-out samples.

        The baseline "minmax" stays quick: it searches and changes nothing, and its bias correction is accepted layer by
        layer only.
        """
        return self.acceptance == "held-out" and self.objective != "minmax"

    def runs(self, step: StepName) -> bool:
        """Whether a step is to run. The baseline "minmax" runs bias correction alone.

        Bias correction runs where weights are not solved again or where it is asked for: solving the weights fits each
        bias, too, and a correction before that gains nothing (tools/ablation.py).
        """
        if step in self.skip or (step not in self.also and step in SKIPPED[self.effort]):
            return False
        if step == "bias":
            return "bias" in self.also or not self.runs("weights")
        return self.objective != "minmax" and not (step == "weights" and self.method == "search")

    @property
    def chooses_products(self) -> bool:
        """Whether the model's output decides which products of attentions stay float; with attention "auto", not where the
        fit is to be quick.
        """
        form = self.product_form
        return form == "mixed" or (form == "auto" and self.evaluated and self.effort != "fast")

    @property
    def product_form(self) -> Products:
        """How the products of attentions are quantized."""
        return "float" if self.attention == "auto" and self.preset == "accuracy" else self.attention

    @property
    def outer_in_float(self) -> bool:
        """Whether all layers outside the blocks stay float, not only those that ruin the output."""
        return self.preset == "accuracy" and "outer-linears" not in self.skip

    @property
    def input_form(self) -> InputForm:
        """How the inputs of linear layers are quantized: as asked, else by preset, else by effort."""
        if self.activations is not None:
            return self.activations
        if self.preset == "accuracy":
            return "token"
        return "auto" if self.effort == "best" else "static"

    @property
    def sized(self) -> bool:
        """Whether there is a budget of bits or bytes."""
        return self.average_bits is not None or self.target_size is not None

    @property
    def mixed(self) -> bool:
        """Whether weights of different layers get different bits: within a budget, or as few as max_drop allows."""
        return self.sized or (self.max_drop is not None and self.bit_candidates is not None)

    @property
    def widths(self) -> tuple[str, ...]:
        """Widths of weights that mixed precision chooses from, "2" to "8" and "float"."""
        return INTEGER_WIDTHS if self.bit_candidates is None else self.bit_candidates

    @property
    def search(self) -> tuple[int, int]:
        """(candidates, rounds) of the scale search."""
        return self.candidates or CANDIDATES[self.effort], self.rounds or ROUNDS[self.effort]

    @property
    def learns(self) -> bool:
        """Whether blocks are learned by gradients."""
        return self.method == "aiqvit" and self.objective != "minmax"


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
