"""Every option of a quantization, as one frozen record that goes to and comes from JSON and TOML."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import parse_bits

CONFIG_VERSION = 1
FLOAT = "float"
Method = Literal["search", "closed-form", "aiqvit"]
RankSearchName = Literal["energy", "darts"]
ObjectiveName = Literal["minmax", "mse", "pearson", "ranking"]
StepName = Literal["rotation", "channels", "online-channels", "softmax", "outer-linears", "scales", "bias", "weights"]
InputForm = Literal["static", "dynamic", "token", "auto"]
Products = Literal["int8", "mixed", "float", "auto"]
Effort = Literal["fast", "default", "best"]
Preset = Literal["performance", "accuracy"]
Granularity = Literal["module", "layer"]
Criterion = Literal["measured", "nuclear"]
WIDTHS = ("2", "3", "4", "5", "6", "7", "8", FLOAT)
Target = Literal["auto", "x86-vnni", "x86-avx2", "arm64"]
# Options that may be None, and what they are otherwise.
OPTIONAL: Mapping[str, type] = {
    "activations": str,
    "average_bits": float,
    "bit_candidates": tuple,
    "cache": str,
    "candidates": int,
    "judged_on": str,
    "max_drop": float,
    "num_samples": int,
    "rounds": int,
    "static_batch": int,
    "target_size": float,
}
SKIPPED: Mapping[Effort, frozenset[StepName]] = {
    "fast": frozenset({"rotation", "scales", "weights"}),  # the latter two are three in four parts of the time
    "default": frozenset({"rotation"}),  # its gain is within the noise of that of its folded norms: tools/rotation.py
    "best": frozenset({"rotation"}),
}
SEARCHES: Mapping[Effort, tuple[int, int]] = {
    "fast": (16, 2),
    "default": (16, 2),
    "best": (48, 4),
}  # candidates, rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """What to do, not where: paths are arguments.

    method: how far the fit goes. "search" chooses scales, "closed-form" also solves the weights again, "aiqvit" then learns
    every block by gradients, branches of low rank beside its weights (needs torch); each starts from the one before it.
    iterations: of learning a block. branch_budget: bytes of the branches over those of the packed weights, at most.
    ranks: how that is shared out, "energy" by what each rank takes off the held-out error in closed form, "darts" by gradients.
    curriculum: learn blocks from easy samples first (Paper B); off, as it changes nothing beyond noise (tools/aiqvit_ablation).
    objective: how scales are chosen; "minmax" searches nothing. effort: "fast" leaves the two slow steps out, "best" searches
    finer and chooses the form of every input. skip: steps to leave out (rotation, channels, online-channels and softmax change
    the float model exactly; outer-linears leaves layers outside the blocks in float where these make most of the error; scales,
    bias and weights fit; bias runs where weights does not). also: steps to run although they are left out otherwise (no effort
    rotates). candidates, rounds: size of the search; None goes with the effort.
    acceptance: of what a step proposes, keep what does the model's output no harm on held-out samples, or everything.
    preset: what is done where options leave it open. "accuracy": activations "token", attention "float", and the layers outside
    the blocks (patch embedding and head, too) in float unless a pattern says otherwise or outer-linears is skipped.
    activations: "static" calibrates the range of every linear's input, "dynamic" measures it at run time, "token" the same
    after each token was divided by its largest value (more accurate, costs time), "auto" takes for each kind of layer the
    cheapest that costs the output little on held-out samples; None goes with the effort. attention: "int8" quantizes both
    products, "float" none, "mixed" the scores, and probabilities times values where floats gain little on held-out samples,
    "auto" as mixed where floats gain much, after the late division of the softmax was tried.
    bits: "wNaM", N bits a weight and M bits an activation, each 2 to 8.
    bit_overrides: (glob pattern of node names or roles, "wNaM" or "float"), the last that matches a layer counts; a mapping
    in files. edges_at_8_bits: the patch embedding and the first and last linear outside
    the blocks keep 8 bits where ``bits`` has fewer (7 where its weights have 7) and no pattern says otherwise.
    average_bits, target_size: mixed precision, by the mean bits of the weights that may differ, or by the written file's
    size in MB. bit_candidates: widths to choose from, "2" to "8" and "float"; None takes 2 to 8. granularity: what gets a width
    of its own, the attention and the MLP of each block (Paper A) or each layer. criterion: by what, the output's error with one
    of them quantized, or Paper A's nuclear norm times squared error.
    max_drop: share of decisions that may be lost, 0 to 1: bits are raised and layers returned to float until the samples that
    judge keep it; with a budget as well only where that costs no byte. With bit_candidates and no budget, weights first get as
    few bits as are expected to keep it. judged_on: data that judge it, none of which is calibrated with: a folder a class or
    .npz with x and y, and top-1 may fall by max_drop, or data without labels; None takes held-out calibration samples.
    sensitivity: report the output's error with one kind of site of one block quantized, for each.
    nodes_to_exclude: glob patterns of node names or roles that stay float. num_samples: calibration samples at most.
    static_batch: the batch size that the written model is frozen to. external_data: weights in a file beside the written
    model, called by its contents: onnxruntime maps it, so that a session needs less memory; over 2 GB it is done unasked.
    target: "x86-avx2" for processors that add two u8 x s8 products in 16 bits (AVX2, AVX512 without VNNI): neighbouring
    weights are limited so that none saturates, whatever the input; "auto" the same, as such a model is right everywhere;
    "x86-vnni" and "arm64" without that limit. cache: a folder for what was measured of calibration data, so that a second
    run with other bits need not measure it again. threads: of onnxruntime; 0 takes one a core. seed: of every random draw.
    """

    version: int = CONFIG_VERSION
    method: Method = "closed-form"
    iterations: int = 200
    branch_budget: float = 0.1
    ranks: RankSearchName = "energy"
    curriculum: bool = False
    objective: ObjectiveName = "pearson"
    effort: Effort = "default"
    skip: tuple[StepName, ...] = ()
    also: tuple[StepName, ...] = ()
    candidates: int | None = None
    rounds: int | None = None
    acceptance: Literal["held-out", "always"] = "held-out"
    preset: Preset = "performance"
    activations: InputForm | None = None
    attention: Products = "auto"
    bits: str = "w8a8"
    bit_overrides: tuple[tuple[str, str], ...] = ()
    edges_at_8_bits: bool = True
    average_bits: float | None = None
    target_size: float | None = None
    bit_candidates: tuple[str, ...] | None = None
    granularity: Granularity = "layer"
    criterion: Criterion = "measured"
    max_drop: float | None = None
    judged_on: str | None = None
    sensitivity: bool = False
    nodes_to_exclude: tuple[str, ...] = ()
    num_samples: int | None = None
    static_batch: int | None = None
    external_data: bool = False
    target: Target = "auto"
    cache: str | None = None
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.version != CONFIG_VERSION:
            raise ConfigError("version", f"expected {CONFIG_VERSION}, got {self.version}")
        _one_of("objective", self.objective, get_args(ObjectiveName))
        _one_of("method", self.method, get_args(Method))
        _one_of("ranks", self.ranks, get_args(RankSearchName))
        _between("iterations", self.iterations, 0, 10**6)
        _between("branch_budget", self.branch_budget, 0, 1)
        _one_of("acceptance", self.acceptance, ("held-out", "always"))
        if self.activations is not None:
            _one_of("activations", self.activations, get_args(InputForm))
        _one_of("attention", self.attention, get_args(Products))
        _one_of("preset", self.preset, get_args(Preset))
        _one_of("effort", self.effort, get_args(Effort))
        _one_of("target", self.target, get_args(Target))
        self._check_steps()
        parse_bits("bits", self.bits)
        for pattern, bits in self.bit_overrides:
            if bits != FLOAT:
                parse_bits(f"bit_overrides: {pattern}", bits)
        if self.candidates is not None:
            _between("candidates", self.candidates, 2, 1000)
        if self.rounds is not None:
            _between("rounds", self.rounds, 1, 20)
        self._check_precision()
        _between("threads", self.threads, 0, 1024)
        _between("seed", self.seed, 0, 2**32 - 1)
        if self.num_samples is not None:
            _between("num_samples", self.num_samples, 1, 10**9)
        if self.static_batch is not None:
            _between("static_batch", self.static_batch, 1, 10**9)

    def _check_steps(self) -> None:
        for step in self.skip:
            _one_of("skip", step, get_args(StepName))
        for step in self.also:
            _one_of("also", step, tuple(one for one in get_args(StepName) if one not in self.skip))

    def _check_precision(self) -> None:
        if self.average_bits is not None:
            _between("average_bits", self.average_bits, 2, 32)
        if self.target_size is not None:
            _between("target_size", self.target_size, 1e-6, 1e6)
        if self.average_bits is not None and self.target_size is not None:
            raise ConfigError("target_size", "expected one budget, got average_bits as well")
        if self.max_drop is not None:
            _between("max_drop", self.max_drop, 0, 1)
        elif self.judged_on is not None:
            raise ConfigError("judged_on (--eval)", "expected max_drop as well: nothing else is judged")
        for width in self.widths:
            _one_of("bit_candidates", width, WIDTHS)
        if not self.widths:
            raise ConfigError("bit_candidates", "expected at least one width")
        _one_of("granularity", self.granularity, get_args(Granularity))
        _one_of("criterion", self.criterion, get_args(Criterion))

    @property
    def judged(self) -> bool:
        """Whether steps are accepted by the model's output. The baseline "minmax" stays quick: it searches and changes
        nothing, and its bias correction is accepted layer by layer only.
        """
        return self.acceptance == "held-out" and self.objective != "minmax"

    def runs(self, step: StepName) -> bool:
        """Whether a step is to run. The baseline "minmax" runs bias correction alone.

        Where weights are solved again, each with its bias, a correction before it gains nothing (tools/ablation.py).
        """
        if step in self.skip or (step not in self.also and step in SKIPPED[self.effort]):
            return False
        if step == "bias":
            return "bias" in self.also or not self.runs("weights")
        return self.objective != "minmax" and not (step == "weights" and self.method == "search")

    @property
    def saturation_free(self) -> bool:
        """Whether no sum of two products of codes may leave 16 bits. "auto" is one model for every processor: on this
        machine's own, whatever it is, a file that others cannot run would be found out by its users.
        """
        return self.target in ("auto", "x86-avx2")

    @property
    def chooses_products(self) -> bool:
        """Whether the output says which products of attentions stay float; unasked not where the fit is to be quick."""
        form = self.product_form
        return form == "mixed" or (form == "auto" and self.judged and self.effort != "fast")

    @property
    def product_form(self) -> Products:
        """How the products of attentions are quantized."""
        return "float" if self.attention == "auto" and self.preset == "accuracy" else self.attention

    @property
    def outer_in_float(self) -> bool:
        """Whether layers outside the blocks stay float whatever the output gains from it."""
        return self.preset == "accuracy" and "outer-linears" not in self.skip

    @property
    def input_form(self) -> InputForm:
        """How the inputs of linears are quantized: static unless said otherwise, or accuracy is preferred, or no effort is
        spared.
        """
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
        """Whether layers' weights get different bits: under a budget, or as few as a promise allows of these widths."""
        return self.sized or (self.max_drop is not None and self.bit_candidates is not None)

    @property
    def widths(self) -> tuple[str, ...]:
        """To choose from."""
        return WIDTHS[:-1] if self.bit_candidates is None else self.bit_candidates

    @property
    def search(self) -> tuple[int, int]:
        """(candidates, rounds) of the scale search."""
        candidates, rounds = SEARCHES[self.effort]
        return self.candidates or candidates, self.rounds or rounds

    @property
    def learns(self) -> bool:
        """Whether blocks are learned by gradients."""
        return self.method == "aiqvit" and self.objective != "minmax"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return values | {"bit_overrides": dict(self.bit_overrides)}

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
            expected = OPTIONAL.get(name, type(default))
            accepted = value is None and default is None
            if expected is float and type(value) is int:
                value = given[name] = float(value)
            if name == "bit_overrides":
                given[name] = _overrides(value)
                continue
            if expected is tuple:
                listed = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
                given[name] = tuple(value) if listed else value
                accepted = accepted or listed
            elif expected is not bool and isinstance(value, bool):
                accepted = False
            else:
                accepted = accepted or isinstance(value, expected)
            if not accepted:
                raise ConfigError(name, f"expected {expected.__name__}, got {value!r}")
        return cls(**given)


def _overrides(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ConfigError("bit_overrides", f"expected a table of patterns and bits, got {value!r}")
    return tuple(value.items())


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(name, f"expected one of {', '.join(map(str, allowed))}, got {value!r}")


def _between(name: str, value: float, low: float, high: float) -> None:
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
