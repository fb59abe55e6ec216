"""How many decisions a plan loses: counted on samples, and expected from margins (``numerics.drop``)."""

from dataclasses import dataclass

from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.numerics.drop import ExpectedDrop, binomial_interval, paired_interval
from onnxvitq.report.records import DropFigures

ROUNDING = 1e-5  # of decisions, that float sums in another order may lose: a promise to lose none can be kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Decisions lost by a quantized model.

    Attributes:
        lost: samples on which it decides otherwise than the float model; of labelled samples those that were decided right
            and no longer are.
        gained: labelled samples that were decided wrong and are right.
        count: samples.
        labelled: whether the right decisions are known.
        expected: share that is expected to be lost, from margins.
    """

    lost: int
    gained: int
    count: int
    labelled: bool
    expected: ExpectedDrop

    @property
    def share(self) -> float:
        """Of the samples, -1 to 1: of labelled ones, what top-1 falls by."""
        return (self.lost - self.gained) / self.count

    def keeps(self, limit: float) -> bool:
        """Whether what was counted is within the limit, and what is expected is so with certainty (``numerics.drop.LEVEL``)."""
        return self.share <= limit and self.expected.bound <= limit + ROUNDING

    def figures(self) -> DropFigures:
        """For the report; the interval is that of the share, at 95 %, and the bound that of what is expected."""
        if self.labelled:
            low, high = paired_interval(self.lost, self.gained, self.count)
        else:
            low, high = binomial_interval(self.lost, self.count)
        return DropFigures(
            drop=round(self.share, 5),
            lost=self.lost,
            gained=self.gained,
            samples=self.count,
            interval=(round(low, 5), round(high, 5)),
            expected=round(self.expected.share, 6),
            bound=round(self.expected.bound, 6),
        )


def drop_of(outputs: FloatArray, decisions: Decisions) -> Drop:
    """What a model loses that puts out these (N or more, ..) where the float model decides as said."""
    scores = outputs[: len(decisions.scores)]
    lost, gained = decisions.changed(scores)
    return Drop(
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        count=len(scores),
        labelled=decisions.labels is not None,
        expected=decisions.expected_drop(decisions.scores, scores),
    )
