"""What steps say of what they did: frozen records, one line a field with its unit. Renderers only read them.

Every room fills in its own records, so this module knows none of them: it imports nothing but the standard library.
``to_dict`` makes the JSON structure: a field's key is its name, unless its metadata say otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

REPORT_VERSION = 2

Figure = float | int | str | bool | None

INLINE: Mapping[str, Any] = {"inline": True}  # the keys of the content stand where the field's own key would
OPTIONAL: Mapping[str, Any] = {"optional": True}  # without a key where the value is None


def keyed(key: str) -> Mapping[str, Any]:
    """Metadata of a field whose key is not its name; ``{self.x}`` in it is the value of another field."""
    return {"key": key}


def to_dict(value: object) -> Any:
    """A record as dicts, lists and figures, in the order of its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        entries: dict[str, Any] = {}
        for one in fields(value):
            content = getattr(value, one.name)
            if content is None and one.metadata.get("optional"):
                continue
            if one.metadata.get("inline"):
                entries |= to_dict(content)
            else:
                entries[one.metadata.get("key", one.name).format(self=value)] = to_dict(content)
        return entries
    if isinstance(value, Mapping):
        return {key: to_dict(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(content) for content in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of what a step proposed: a kind of site, a normalisation's channels, a branch, a block.

    Attributes:
        part: its name.
        accepted: whether it was kept; None where parts are not decided one by one.
        before: output SQNR in dB with what was kept so far; None where it was not evaluated.
        after: the same with this part as well, in dB.
        figures: what else the step says of it, by name: ``gain_db``, ``rank``, ``bytes``, ``reason`` and so on.
    """

    part: str
    accepted: bool | None = field(default=None, metadata=OPTIONAL)
    before: float | None = field(default=None, metadata=OPTIONAL)
    after: float | None = field(default=None, metadata=OPTIONAL)
    figures: Mapping[str, Figure] = field(default_factory=dict, metadata=INLINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one step proposed and what became of it.

    Attributes:
        name: of the step.
        accepted: whether anything of it was kept.
        before: SQNR in dB on held-out samples before it: of the model's output where steps are evaluated by it, else the mean
            of the layers that it looked at; None where neither was measured.
        after: the same with it; where nothing was kept, what it would have been.
        kept: parts that were kept.
        layers: parts that it looked at.
        parts: each of them, where they differ.
        agreement: share of held-out decisions equal to the float model's, 0 to 1, of what is kept by then; None where nothing
            is decided.
        seconds: it took.
    """

    name: str
    accepted: bool
    before: float | None
    after: float | None
    kept: int
    layers: int
    parts: tuple[Part, ...] = ()
    agreement: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report that a step fills in.

    Attributes:
        key: its name in the report: ``sensitivity``, ``precision``, ``quality``, or a new step's own.
        content: a frozen record, rendered field by field.
    """

    key: str
    content: object


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedFile:
    """A file of the data that could not be read.

    Attributes:
        file: its path.
        reason: what is wrong with it.
    """

    file: str
    reason: str


# ----------------------------------------------------------------------------------------------------- sensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSensitivity:
    """The output's error with the sites of one kind in one block quantized, and everything else float.

    Attributes:
        block: number of the block; None outside all blocks.
        kind: of the sites, such as ``mlp.fc1.weight``.
        tensors: names of the quantized tensors.
        bits: the most that one of them has.
        sqnr_db: signal power over error power of the output, in dB.
        agreement: share of decisions equal to the float model's, 0 to 1; None where nothing is decided.
        share: its error power over the sum of all parts', 0 to 1.
    """

    block: int | None
    kind: str
    tensors: tuple[str, ...]
    bits: int
    sqnr_db: float
    agreement: float | None
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityReport:
    """How much of the output's error each kind of site of each block brings in.

    Attributes:
        output: name of the evaluated output.
        outputs: number of outputs that the model has.
        samples: number of held-out samples.
        parts: every site in exactly one of them.
    """

    output: str
    outputs: int
    samples: int
    parts: tuple[SiteSensitivity, ...]


# ------------------------------------------------------------------------------------------------ mixed precision


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One choice of bits: a point of the front between size and error.

    Attributes:
        size_mb: of the file, in MB.
        average_bits: mean bits of the weights whose bits may differ.
        predicted_db: output SQNR predicted from the errors of single subgraphs, before the fit, in dB.
        omega: predicted sum of Paper A's Omega; None where bits are chosen by the measured error.
        measured_db: output SQNR with it before the fit, in dB; None where it was not evaluated.
    """

    size_mb: float
    average_bits: float
    predicted_db: float
    omega: float | None = field(default=None, metadata=OPTIONAL)
    measured_db: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsChoice(FrontPoint):
    """A choice of bits, with the bits themselves.

    Attributes:
        bits: of each subgraph by name: a layer, a module or a block; 32 is float.
    """

    bits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """Which bits mixed precision chose.

    Attributes:
        criterion: what bits are chosen by: ``measured`` or ``omega``.
        granularity: what has bits of its own: ``layer``, ``module`` or ``block``.
        mixed: whether the proposed choice was taken; else the same bits for all are as good.
        chosen: what the model is written with.
        proposed: the best choice within the budget.
        uniform: the best choice of the same bits for all.
        front: every choice that no other one beats in both size and error, by size.
        samples: number of held-out samples that single subgraphs were measured on.
        evaluated_samples: number of those that whole choices were evaluated on.
        runs: of the whole network, that choosing took.
    """

    criterion: str
    granularity: str
    mixed: bool
    chosen: BitsChoice
    proposed: BitsChoice
    uniform: BitsChoice
    front: tuple[FrontPoint, ...]
    samples: int
    evaluated_samples: int = field(metadata=keyed("judged_samples"))
    runs: float


# --------------------------------------------------------------------------------------- the promise on decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseData:
    """What a promise is evaluated on.

    Attributes:
        source: of the samples, in one line.
        labelled: whether the right decisions are known.
        skipped: files that could not be read.
    """

    source: str
    labelled: bool
    skipped: tuple[SkippedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DropFigures:
    """Decisions that are lost.

    Attributes:
        drop: share of decisions lost, less those gained: -1 to 1.
        lost: number of decisions that are no longer the float model's; of labelled samples, that are no longer right.
        gained: number of labelled samples that were wrong and are right.
        samples: number of samples.
        interval: low and high end of the 95 % interval of ``drop``.
        expected: share of decisions that an error of this size is expected to lose, from margins.
        bound: what ``expected`` exceeds in one case of twenty only.
    """

    drop: float
    lost: int
    gained: int
    samples: int
    interval: tuple[float, float]
    expected: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseChange:
    """What was done to keep the promise.

    Attributes:
        action: ``raise`` (to 8 bits) or ``float``.
        layers: nodes that it was done to: linears that read one tensor, or a product.
    """

    action: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseReport:
    """Whether the written model loses as few decisions as was asked for (``--max-drop``).

    Attributes:
        max_drop: share of decisions that may be lost, 0 to 1.
        kept: whether both what was counted and the bound of what is expected are within it.
        data: what it was evaluated on.
        after: decisions lost by the written model.
        before: decisions lost before any change.
        evaluations: number of plans whose decisions were counted.
        changes: what was done, in order.
    """

    max_drop: float
    kept: bool
    data: PromiseData = field(metadata=keyed("judge"))
    after: DropFigures = field(metadata=INLINE)
    before: DropFigures
    evaluations: int
    changes: tuple[PromiseChange, ...] = ()
