"""Statistics joined with others of the same samples."""

import numpy as np
import pytest

from onnxvitq.core.statistics import FIELDS, Statistics


def test_every_kind_of_request_has_a_field() -> None:
    assert set(FIELDS.values()) == set(Statistics.__dataclass_fields__) - {"count"}


def test_joined_statistics_have_what_either_has() -> None:
    first = Statistics(count=4, ranges={"a": (0.0, 1.0)}, rows={"a": np.zeros((2, 1, 3), np.float32)})
    second = Statistics(
        count=2, ranges={"b": (-1.0, 2.0), "a": (0.0, 3.0)}, channels={"b": np.ones((2, 3), np.float32)}
    )
    both = first.joined(second)
    assert both.count == 4
    assert both.ranges == {"a": (0.0, 3.0), "b": (-1.0, 2.0)}  # the other's value where both have one
    assert (list(both.rows), list(both.channels)) == (["a"], ["b"])
    assert first.ranges == {"a": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("left", "right", "paired"),
    [
        ((2, 4, 3, 5), (2, 4, 5, 3), True),
        ((2, 4, 3, 5), (2, 1, 5, 3), True),  # one key head for all query heads
        ((2, 8, 3, 5), (2, 2, 5, 3), False),  # two samples of a batch with one key head each: which is whose?
        ((2, 4, 3, 5), (1, 4, 5, 3), False),
    ],
)
def test_operands_are_paired_where_their_matrices_belong_together(
    left: tuple[int, ...], right: tuple[int, ...], paired: bool
) -> None:
    stats = Statistics(lefts={"q": np.zeros(left, np.float32)}, rights={"k": np.zeros(right, np.float32)})
    assert stats.has_pairs("q", "k") == paired
    assert not stats.has_pairs("q", "never measured")
