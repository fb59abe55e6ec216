"""What a report is made of: frozen records, one line a field with its unit. Renderers only read them.

Every room fills in its own records, so this module knows none of them: it imports nothing but the standard library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

REPORT_VERSION = 2

Figure = float | int | str | bool | None


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
    accepted: bool | None = None
    before: float | None = None
    after: float | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)


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
