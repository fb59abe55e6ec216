"""What steps ask to be measured of a network on calibration samples, and what one sweep answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from onnxvitq.core.tensors import FloatArray

Kind = Literal["range", "channels", "rows", "left", "right", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRequest:
    """One statistic that a step needs of one tensor.

    ``range``: lowest and highest value. ``channels``: the same of each channel, the last axis. ``rows``: a bounded sample of
    its rows, grouped by image. ``left`` and ``right``: the matrices of a few images, as operands of a product; of a left
    operand a sample of the rows. ``whole``: everything, for the first images.
    """

    tensor: str
    kind: Kind


# Which field of ``Statistics`` answers a request.
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
    """What one sweep measured.

    ranges: tensor -> (lowest, highest). channels: tensor -> (2, C), the lowest and the highest value of each channel.
    rows: tensor -> (S, r, C), S images, r sampled rows each, C features.
    lefts, rights: tensor -> (S, L, m, k), L matrices of each of S images. wholes: tensor -> the values of the first
    images. count: images seen.
    """

    count: int = 0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    channels: Mapping[str, FloatArray] = field(default_factory=dict)
    rows: Mapping[str, FloatArray] = field(default_factory=dict)
    lefts: Mapping[str, FloatArray] = field(default_factory=dict)
    rights: Mapping[str, FloatArray] = field(default_factory=dict)
    wholes: Mapping[str, tuple[FloatArray, ...]] = field(default_factory=dict)

    def joined(self, other: "Statistics") -> "Statistics":
        """These, and the other's of the same samples."""
        fields: dict[str, Any] = {name: {**getattr(self, name), **getattr(other, name)} for name in FIELDS.values()}
        return replace(self, **fields)
