"""What steps ask to be measured on the calibration samples, and the record in which a sweep answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from onnxvitq.core.tensors import FloatArray

Kind = Literal["range", "channels", "rows", "left", "right", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRequest:
    """One statistic of one tensor of the canonical graph.

    Attributes:
        tensor: its name.
        kind: what to measure. ``range``: lowest and highest value. ``channels``: lowest and highest value of each channel,
            the last axis. ``rows``: a bounded sample of its rows, as many of each image. ``left`` and ``right``: matrices of
            a few images, of the left or right operand of a product of two activations; of a left operand a sample of the
            matrices' rows. ``whole``: the tensor itself, of the first images.
    """

    tensor: str
    kind: Kind


# Kind of a request -> the field of ``Statistics`` that answers it.
FIELDS = {
    "range": "ranges",
    "channels": "channels",
    "rows": "rows",
    "left": "lefts",
    "right": "rights",
    "whole": "wholes",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What was measured, by tensor name. S images, r rows of each, C channels, L matrices (heads, or heads x windows).

    Attributes:
        count: number of samples (images) that were run.
        ranges: (lowest, highest) value.
        channels: (2, C), lowest and highest value of each channel.
        rows: (S, r, C), sampled rows.
        lefts: (S, L, m, k), left operands of products; m sampled rows of each matrix.
        rights: (S, L, k, n), right operands of products.
        wholes: the tensor's values for the first images, one array an image.
    """

    count: int = 0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    channels: Mapping[str, FloatArray] = field(default_factory=dict)
    rows: Mapping[str, FloatArray] = field(default_factory=dict)
    lefts: Mapping[str, FloatArray] = field(default_factory=dict)
    rights: Mapping[str, FloatArray] = field(default_factory=dict)
    wholes: Mapping[str, tuple[FloatArray, ...]] = field(default_factory=dict)

    def joined(self, other: "Statistics") -> "Statistics":
        """These statistics and others of the same samples; the others win where both have a tensor."""
        fields: dict[str, Any] = {name: {**getattr(self, name), **getattr(other, name)} for name in FIELDS.values()}
        return replace(self, **fields)

    def has_pairs(self, left: str, right: str) -> bool:
        """Whether sampled matrices of two operands belong to each other one by one, or one to all.

        Grouped heads have fewer matrices on one side; of several samples at once it is not known which belong together.
        """
        if left not in self.lefts or right not in self.rights:
            return False
        a, b = self.lefts[left].shape, self.rights[right].shape
        return a[0] == b[0] and (a[1] == b[1] or 1 in (a[1], b[1]))
