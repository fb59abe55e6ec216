"""What is said of a model: what was found in it, what was written, how far its outputs moved; one line a field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxvitq.report.records import INLINE, SkippedFile, keyed, to_dict

LOST_DB = 3.0  # of an output's SQNR: below it the error has more than half the power of the signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How many layers of one kind were found.

    Attributes:
        found: number of layers in the graph.
    """

    found: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundProduct:
    """A matrix product outside attentions.

    Attributes:
        name: of its node.
        left: name of its first operand.
        right: name of its second operand.
        constant: name of the operand that is a constant; empty where both are computed.
        reason: why no attention explains it.
    """

    name: str
    left: str
    right: str
    constant: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedNode:
    """A node that multiplies, or a softmax, that no pattern accounts for.

    Attributes:
        name: of the node.
        op: its operator, such as ``Conv``.
        reason: why it stays float.
    """

    name: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundGraph:
    """What was found in the model.

    Attributes:
        blocks: number of transformer blocks.
        attention: number of attentions.
        linears: linear layers, without patch embeddings.
        patch_embedding: patch embeddings: convolutions that are written as products.
        norms: number of layer and root-mean-square normalisations.
        products: matrix products outside attentions.
        unmatched: nodes that no pattern accounts for.
    """

    blocks: int
    attention: int
    linears: Found
    patch_embedding: Found
    norms: int
    products: tuple[FoundProduct, ...] = ()
    unmatched: tuple[UnmatchedNode, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionReport:
    """What ``inspect`` says of a model.

    Attributes:
        model: path of the file.
        graph: what was found in it.
        inputs: name, type and sizes of each input.
        outputs: names of the outputs.
        canonical_edits: number of edits by pass, of passes that edited anything.
        map: every layer, attention and normalisation that was found (``BlockMap.to_dict``).
    """

    model: str
    graph: FoundGraph = field(metadata=INLINE)
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[str, ...]
    canonical_edits: Mapping[str, int]
    map: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The JSON structure."""
        return to_dict(self)


# ------------------------------------------------------------------------------------------------- what was written


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayer:
    """A layer that does not run on an integer kernel.

    Attributes:
        name: of its node in the canonical graph.
        reason: why.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """Of one kind of layer, how many the audit found where.

    Attributes:
        found: layers in the graph.
        quantized: layers that the plan quantizes.
        integer_kernels: layers that the optimised session runs on an integer kernel.
        dynamic: of these, the ones that measure their input's range at run time.
        simulated: of those quantized, the layers that float operators compute on values rounded to their codes, because the
            target has no kernel of their format; each is in ``in_float``, too, with that reason.
        in_float: layers that no integer kernel runs, each with the reason.
    """

    found: int
    quantized: int
    integer_kernels: int
    dynamic: int = 0
    simulated: int = 0
    in_float: tuple[FloatLayer, ...] = field(default=(), metadata=keyed("float"))

    @property
    def sound(self) -> bool:
        """Whether every layer that the plan quantizes runs on an integer kernel, but for those that no kernel could run."""
        return self.quantized == self.integer_kernels + self.simulated

    @property
    def reasons(self) -> dict[str, str]:
        """Why each layer that no integer kernel runs is in float, by name."""
        return {layer.name: layer.reason for layer in self.in_float}


NO_LAYERS = LayerCounts(found=0, quantized=0, integer_kernels=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Which kernels really run: the optimised session against the plan.

    Attributes:
        linears: linear layers.
        patch_embedding: patch embeddings.
        attention_products: the two products of each attention.
        other_products: matrix products outside attentions.
        branches: the two products of each low-rank branch.
        unpacked_at_run_time: nodes that unpack weights at every run, which should be gone once a session has loaded.
        input_shapes: sizes of each input of the written model by name; None where a size is free.
        sound: whether all that the plan quantizes runs on integer kernels, and nothing is unpacked at run time.
    """

    linears: LayerCounts
    patch_embedding: LayerCounts
    attention_products: LayerCounts
    other_products: LayerCounts
    branches: LayerCounts = NO_LAYERS
    unpacked_at_run_time: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    sound: bool = field(init=False, metadata=keyed("audit_passed"))

    def __post_init__(self) -> None:
        layers = (self.linears, self.patch_embedding, self.attention_products, self.other_products, self.branches)
        sound = not self.unpacked_at_run_time and all(counts.sound for counts in layers)
        object.__setattr__(self, "sound", sound)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBits:
    """The bits of one quantized linear layer.

    Attributes:
        name: of its node.
        role: where it stands, such as ``block3.mlp.fc1``.
        bits: of its weight and of its input, such as ``w4a8``.
    """

    name: str
    role: str
    bits: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsReport:
    """Bits of every quantized layer, and what the file should weigh: weights x bits / 8, and every float or 32-bit value.

    Attributes:
        layers: every quantized linear layer and patch embedding.
        weights_mb: MB of the quantized weights by their bits; a shared weight counts once.
        values_mb: MB of biases, scales and what stays float.
        expected_mb: the sum of both, in MB.
    """

    layers: tuple[LayerBits, ...]
    weights_mb: Mapping[str, float]
    values_mb: float
    expected_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturatedLayer:
    """A linear some of whose products can saturate where two of them are added in 16 bits.

    Attributes:
        name: of its node.
        role: where it stands.
        pairs: share of its pairs of weights that saturate for some input, 0 to 1.
        largest: largest sum of such a pair over calibration rows, in units of the largest that fits; 0 where none can.
        cut: share of all sums over those rows that were cut, 0 to 1.
        at_risk: whether calibration data saturates: ``largest`` is over 1.
    """

    name: str
    role: str
    pairs: float
    largest: float
    cut: float
    at_risk: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationReport:
    """What processors without VNNI would make of the model.

    Attributes:
        looked_at: number of linears that were looked at.
        at_risk: number of those that saturate on calibration data.
        layers: linears that saturate for some input, the worst first.
    """

    looked_at: int
    at_risk: int
    layers: tuple[SaturatedLayer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """The evaluated output of the written model against the float model's, on calibration samples.

    Attributes:
        output: name of the output.
        samples: number of samples, those included that fill up the last static batch.
        sqnr_db: signal power over error power, in dB, -120 to 120.
        cosine: cosine similarity of all outputs as one vector, -1 to 1.
        top1_agreement: share of equal decisions, 0 to 1; None where nothing is decided.
        optimised_vs_plain: norm of the difference between the quantized model with and without graph optimisation, over the
            norm of the output. Not zero in a deep model: what float rounding flips grows to the size of the quantization error.
    """

    output: str
    samples: int
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    optimised_vs_plain: float

    @property
    def lost(self) -> bool:
        """Whether hardly anything of the output is left: its error has more than half the power of the signal."""
        return self.sqnr_db < LOST_DB


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What ``evaluate`` says of two models on labelled data.

    Attributes:
        samples: number of samples.
        reference: metric of the float model; top-1 in per cent for classification.
        quantized: the same of the quantized model.
        agreement: share of equal decisions, 0 to 1; None where nothing is decided.
        sqnr_db: of the second model's output against the first's, in dB.
        task: name of the task that says what outputs mean.
        metric: name of the metric, such as ``top1``.
        skipped: files that could not be read.
    """

    samples: int
    reference: float = field(metadata=keyed("{self.metric}_reference"))
    quantized: float = field(metadata=keyed("{self.metric}_quantized"))
    agreement: float | None
    sqnr_db: float
    task: str
    metric: str
    skipped: tuple[SkippedFile, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON structure."""
        return to_dict(self)
