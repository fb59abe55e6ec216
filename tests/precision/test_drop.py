"""Decisions counted by hand, with labels and without."""

import numpy as np
import pytest

from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.numerics.drop import ExpectedDrop
from onnxvitq.precision.drop import ROUNDING, Drop, drop_of

SCORES = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 1, 0]], np.float32)  # decides 0, 1, 2, 0
CHANGED = np.array([[2, 0, 0], [0, 0, 2], [0, 2, 0], [1, 2, 0]], np.float32)  # decides 0, 2, 1, 1


def decisions(labels: list[int] | None) -> Decisions:
    known = None if labels is None else np.array(labels, np.int64)
    return Decisions(feeds=(), scores=SCORES, margins=SCORES, labels=known)


def test_every_other_decision_is_lost_without_labels() -> None:
    drop = drop_of(CHANGED, decisions(None))
    assert (drop.lost, drop.gained, drop.count, drop.labelled) == (3, 0, 4, False)
    assert drop.share == 0.75


def test_of_labelled_samples_right_ones_are_lost_and_wrong_ones_gained() -> None:
    drop = drop_of(CHANGED, decisions([0, 1, 1, 2]))  # the second is lost, the third gained, the fourth wrong as before
    assert (drop.lost, drop.gained, drop.labelled) == (1, 1, True)
    assert drop.share == 0


def test_rows_that_fill_up_the_last_batch_do_not_count() -> None:
    padded = np.concatenate([SCORES, CHANGED])
    assert (drop_of(padded, decisions(None)).lost, drop_of(padded, decisions(None)).count) == (0, 4)


@pytest.mark.parametrize(
    ("lost", "bound", "kept"), [(0, 0.0, True), (1, 0.0, False), (0, ROUNDING / 2, True), (0, 0.02, False)]
)
def test_a_promise_needs_the_count_and_the_bound(lost: int, bound: float, kept: bool) -> None:
    expected = ExpectedDrop(share=0.0, bound=bound)
    assert Drop(lost=lost, gained=0, count=64, labelled=False, expected=expected).keeps(0.0) == kept


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 0]])
def test_the_interval_holds_the_share(labels: list[int] | None) -> None:
    figures = drop_of(CHANGED, decisions(labels)).figures()
    low, high = figures.interval
    assert low < figures.drop < high
    assert figures.bound >= figures.expected > 0
