"""Every option of a quantization, each described once; ``core.config.QuantConfig`` is all of them together.

To add one, add a field to the record of its group, and read it where it matters: the checks, the command line, its help, the
JSON schema and the reference pages follow from the field (``core.options``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import LAYER_BITS, parse_bits
from onnxvitq.core.option_text import MOST_THREADS, megabytes, pattern_and_bits, share
from onnxvitq.core.options import Options, option

CONFIG_VERSION = 1
FLOAT = "float"  # instead of a number of bits: the layer stays float
Method = Literal["search", "closed-form", "aiqvit"]
RankSearchName = Literal["energy", "darts"]
ObjectiveName = Literal["minmax", "mse", "pearson", "ranking"]
StepName = Literal["rotation", "channels", "online-channels", "softmax", "outer-linears", "scales", "bias", "weights"]
InputForm = Literal["static", "dynamic", "token", "auto"]
Products = Literal["int8", "mixed", "float", "auto"]
Effort = Literal["fast", "default", "best"]
Preset = Literal["performance", "accuracy"]
BitGranularity = Literal["module", "layer"]
Criterion = Literal["measured", "nuclear"]
Acceptance = Literal["held-out", "always"]
Width = Literal["2", "3", "4", "5", "6", "7", "8", "float"]
TargetName = Literal["auto", "x86-vnni", "x86-avx2", "arm64"]

INTEGER_WIDTHS: tuple[Width, ...] = get_args(Width)[:-1]
CANDIDATES: Mapping[Effort, int] = {"fast": 16, "default": 16, "best": 48}
ROUNDS: Mapping[Effort, int] = {"fast": 2, "default": 2, "best": 4}


def _by_effort(numbers: Mapping[Effort, int]) -> str:
    usual = numbers["default"]
    others = (f"{number} with effort {effort}" for effort, number in numbers.items() if number != usual)
    return ", ".join((str(usual), *others))


def _check_version(name: str, version: int) -> None:
    if version != CONFIG_VERSION:
        raise ConfigError(name, f"expected {CONFIG_VERSION}, got {version}")


def _check_overrides(name: str, overrides: tuple[tuple[str, str], ...]) -> None:
    for pattern, bits in overrides:
        if bits != FLOAT:
            parse_bits(f"{name}: {pattern}", bits)


def _check_not_empty(name: str, widths: tuple[Width, ...]) -> None:
    if not widths:
        raise ConfigError(name, "expected at least one width")


@dataclass(frozen=True, kw_only=True)
class FittingOptions(Options):
    """How the fit works."""

    title = "fitting"

    version: int = option(
        CONFIG_VERSION,
        help="Version of the configuration's format; a file of another version is refused.",
        flags=(),
        check=_check_version,
    )
    method: Method = option(
        "closed-form",
        brief="How far the fit goes: scales, weights, learned blocks.",
        help="How far the fit goes: search chooses the quantizers' scales, closed-form also solves the weights again, aiqvit "
        "then learns every block by gradients with low-rank branches beside its weights (needs torch). Each starts "
        "from the one before it.",
    )
    objective: ObjectiveName = option(
        "pearson",
        help="What the scale search minimises: the squared error (mse), one minus the correlation with the float result "
        "(pearson), or that plus a penalty for attention scores that change their order (ranking). minmax is the quick "
        "baseline: it takes ranges as they are and of the steps runs bias correction alone.",
        flags=("--objective", "--calibration-method"),
    )
    effort: Effort = option(
        "default",
        brief="How much time the fit takes.",
        help="How much time the fit may take. fast leaves out the scale search and the weight reconstruction, about three "
        "quarters of the time; best searches finer and chooses the form of every layer's input by the model's output.",
    )
    preset: Preset = option(
        "performance",
        brief="The fastest or the most accurate form of 8 bits.",
        help="What is done where activations and attention are not given: accuracy takes activations token and attention "
        "float, and leaves layers outside the blocks (patch embedding and head, too) in float unless a pattern of "
        "bit_overrides (--bits-for) gives them bits or outer-linears is skipped.",
    )
    acceptance: Acceptance = option(
        "held-out",
        help="What is kept of a step's proposals: those that do the model's output no harm on held-out calibration samples, "
        "or always everything.",
    )
    skip: tuple[StepName, ...] = option(
        (),
        help="Steps to leave out. rotation, channels, online-channels and softmax change the float model exactly before it "
        "is quantized; outer-linears returns layers outside the blocks to float where they make most of the output's error; "
        "scales, bias and weights fit (bias runs where weights does not).",
        shortcuts={"--no-bias-correction": "bias", "--no-rebuild": "weights"},
        repeats=True,
    )
    also: tuple[StepName, ...] = option(
        (),
        help="Steps to run although they are left out otherwise, such as rotation, which no effort runs.",
        repeats=True,
    )
    candidates: int | None = option(
        None,
        help="Scales that the search tries for each tensor in each round.",
        metavar="N",
        least=2,
        most=1000,
        none=_by_effort(CANDIDATES),
    )
    rounds: int | None = option(
        None,
        help="Rounds of the alternating scale search, at most.",
        metavar="N",
        least=1,
        most=20,
        none=_by_effort(ROUNDS),
    )

    def check_together(self) -> None:
        """A step cannot be left out and run as well."""
        super().check_together()
        for step in self.also:
            if step in self.skip:
                allowed = ", ".join(name for name in get_args(StepName) if name not in self.skip)
                raise ConfigError("also", f"expected one of {allowed}, got {step!r}")


@dataclass(frozen=True, kw_only=True)
class LearningOptions(Options):
    """How blocks are learned by gradients."""

    title = "learned blocks (method aiqvit)"

    iterations: int = option(
        200, help="Gradient steps that each block is learned with.", metavar="N", least=0, most=10**6
    )
    branch_budget: float = option(
        0.1,
        help="Bytes of all low-rank branches together, at most, as a share of the bytes of the packed weights.",
        metavar="SHARE",
        least=0,
        most=1,
    )
    ranks: RankSearchName = option(
        "energy",
        help="How the branches' budget is shared out: energy by what each rank takes off the error on held-out samples, "
        "in closed form; darts by gradients.",
    )
    curriculum: bool = option(
        False,
        help="Learn every block from easy samples first, as in the AIQViT paper. Off, because it changes nothing beyond noise.",
    )


@dataclass(frozen=True, kw_only=True)
class FormatOptions(Options):
    """Which numbers replace the floats."""

    title = "number formats"

    bits: str = option(
        "w8a8",
        brief="Bits of weights and of activations, 2 to 8 each.",
        help="Bits of the weights and of the activations, 2 to 8 each: w4a8 is 4 bits a weight and 8 bits an activation.",
        metavar="wNaM",
        pattern=LAYER_BITS.pattern,
        check=parse_bits,
    )
    bit_overrides: tuple[tuple[str, str], ...] = option(
        (),
        brief="Other bits, or float, for some layers.",
        help="Other bits, or float, for layers whose node name or role matches a glob pattern; the last pattern that matches "
        "a layer counts. A table of patterns and bits in a file.",
        flags=("--bits-for",),
        metavar="PATTERN=wNaM",
        pattern=f"{LAYER_BITS.pattern}|{FLOAT}",
        contents="patterns and bits",
        check=_check_overrides,
        text=pattern_and_bits,
        repeats=True,
    )
    edges_at_8_bits: bool = option(
        True,
        help="Keep 8 bits in the patch embedding and in the first and the last linear layer outside the blocks where bits "
        "has fewer (7 where its weights have 7) and no pattern says otherwise.",
    )
    activations: InputForm | None = option(
        None,
        brief="Ranges of layer inputs: calibrated or measured at run time.",
        help="How inputs of linear layers are quantized: static with calibrated ranges; dynamic with the range measured at "
        "run time; token the same after every token was divided by its largest value (more accurate, costs time); auto by "
        "kind of layer with the cheapest form that costs the output little on held-out samples.",
        none="static; token with preset accuracy, auto with effort best",
    )
    attention: Products = option(
        "auto",
        brief="Which products of attentions are integers.",
        help="Which products of each attention are quantized: int8 both, float none, mixed the scores, and probabilities "
        "times values unless floats gain a little there on held-out samples; auto as mixed, but floats have to gain much, "
        "measured after the late division of the softmax was tried.",
    )
    nodes_to_exclude: tuple[str, ...] = option(
        (),
        help="Glob patterns of node names or roles (block*.mlp.fc2) that stay float. A pattern that matches nothing is an "
        "error.",
        metavar="PATTERN",
        repeats=True,
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(Options):
    """Fewer bits where they cost least."""

    title = "mixed precision and promised accuracy"

    average_bits: float | None = option(
        None,
        help="Mixed precision by the mean bits of those weights that may differ.",
        metavar="N",
        least=2,
        most=32,
        none="no such budget",
    )
    target_size: float | None = option(
        None,
        brief="A file of that size, with bits chosen by layer.",
        help="Mixed precision by the size of the written file in MB; on the command line with a unit, as 12MB.",
        metavar="SIZE",
        least=1e-6,
        most=1e6,
        unit="MB",
        none="no such budget",
        text=megabytes,
    )
    bit_candidates: tuple[Width, ...] | None = option(
        None,
        help="Widths of weights that mixed precision chooses from.",
        metavar="BITS",
        none=f"{INTEGER_WIDTHS[0]} to {INTEGER_WIDTHS[-1]}",
        check=_check_not_empty,
    )
    granularity: BitGranularity = option(
        "layer",
        help="What gets bits of its own: each linear layer, or each module, which is the attention or the MLP of a block.",
    )
    criterion: Criterion = option(
        "measured",
        help="What bits are chosen by: the output's error measured with one layer or module quantized at a time, or "
        "the nuclear norm of its output times its squared error (nuclear).",
    )
    max_drop: float | None = option(
        None,
        brief="Promise how many decisions may change.",
        help="Share of decisions that may be lost, from 0 to 1; on the command line also as 0.5%. Bits are raised and layers "
        "return to float until the drop stays below it; with a budget, only where that costs no byte. With bit_candidates and "
        "no budget, weights first get as few bits as are expected to keep it. Where it is not kept, the exit code is 3.",
        metavar="SHARE",
        least=0,
        most=1,
        none="nothing is promised",
        text=share,
    )
    judged_on: str | None = option(
        None,
        help="Data that max_drop is checked on, none of which is calibrated with: a folder with a sub-folder for each class "
        "or an .npz file with x and y, of which top-1 accuracy may fall by max_drop, or data without labels.",
        flags=("--eval",),
        metavar="DATA",
        none="held-out calibration samples",
    )
    sensitivity: bool = option(
        False,
        help="Report the output's error with one kind of site of one block quantized at a time. The command line asks for it "
        "by --sensitivity FILE.",
        flags=(),
    )

    def check_together(self) -> None:
        """There is one budget at most, and data to evaluate a promise on need a promise."""
        super().check_together()
        if self.average_bits is not None and self.target_size is not None:
            raise ConfigError("target_size", "expected one budget, got average_bits as well")
        if self.judged_on is not None and self.max_drop is None:
            raise ConfigError(
                "judged_on (--eval)", "expected max_drop as well: nothing else is evaluated on these data"
            )


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """What file is written."""

    title = "written model"

    target: TargetName = option(
        "auto",
        brief="Processors to be right on.",
        help="Processors to write for. auto and x86-avx2 limit neighbouring weights so that no sum of two products "
        "saturates on processors that add them in 16 bits (AVX2, AVX512 without VNNI); such a model is right "
        "everywhere. x86-vnni and arm64 go without that limit, a little more accurate and faster there.",
    )
    static_batch: int | None = option(
        None,
        help="Freeze the written model to this batch size.",
        metavar="N",
        least=1,
        most=10**9,
        none="as in the float model",
    )
    external_data: bool = option(
        False,
        brief="Weights in a second file, mapped by onnxruntime.",
        help="Write the weights to a second file beside the model, named after its contents. onnxruntime maps it, so that a "
        "session loads faster and needs less memory. Over 2 GB this is done without being asked.",
        flags=("--external-data", "--use-external-data-format"),
    )


@dataclass(frozen=True, kw_only=True)
class RunningOptions(Options):
    """What the fit runs on."""

    title = "calibration and running"

    num_samples: int | None = option(
        None,
        help="Calibration samples that are used, at most.",
        flags=("--num-samples", "--samples", "--subset-size"),
        metavar="N",
        least=1,
        most=10**9,
        none="all",
    )
    cache: str | None = option(
        None,
        help="Folder that keeps what calibration measured, so that a second run on the same model and data with other bits "
        "need not measure it again.",
        metavar="FOLDER",
        none="nothing is kept",
    )
    threads: int = option(
        0, help="Threads of onnxruntime; 0 takes one a core.", metavar="N", least=0, most=MOST_THREADS
    )
    seed: int = option(0, help="Seed of every random draw.", metavar="N", least=0, most=2**32 - 1)
