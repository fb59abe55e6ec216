"""The calibration dataset: what each pass sees, what is kept in memory, what is held out."""

from collections.abc import Iterator

import numpy as np
import pytest

from onnxvitq.calibration import dataset as module
from onnxvitq.calibration.dataset import KEPT_FEEDS, CalibrationDataset
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.arrays import sample_digests
from onnxvitq.data.source import Source, open_source

INPUTS = (InputSpec(name="x", dtype="float32", shape=(None, 2)),)


def source(count: int, *, generator: bool = False) -> Source:
    feeds = [np.full((1, 2), number, np.float32) for number in range(count)]

    def generate() -> Iterator[np.ndarray]:
        yield from feeds

    return open_source(generate() if generator else feeds, INPUTS, None)


def numbers(dataset: CalibrationDataset) -> list[int]:
    return [int(feed["x"][0, 0]) for feed in dataset]


def test_every_pass_over_a_repeatable_source_sees_all_samples() -> None:
    dataset = CalibrationDataset(source(KEPT_FEEDS + 4), again=True)
    assert dataset.kept is None
    assert numbers(dataset) == numbers(dataset) == list(range(KEPT_FEEDS + 4))


def test_later_passes_over_a_generator_see_the_first_samples() -> None:
    dataset = CalibrationDataset(source(KEPT_FEEDS + 4, generator=True), again=False)
    assert numbers(dataset) == list(range(KEPT_FEEDS + 4))
    assert dataset.kept == KEPT_FEEDS
    assert numbers(dataset) == numbers(dataset) == list(range(KEPT_FEEDS))


def test_every_fourth_sample_is_held_out() -> None:
    dataset = CalibrationDataset(source(9), again=True)
    numbers(dataset)
    assert [(number, int(feed["x"][0, 0])) for number, feed in dataset.held_out()] == [(3, 3), (7, 7)]


def test_with_few_samples_the_first_one_is_held_out() -> None:
    dataset = CalibrationDataset(source(3), again=True)
    numbers(dataset)
    assert [number for number, _ in dataset.held_out()] == [0]


def test_held_out_samples_are_kept_up_to_a_limit_but_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_OUT_BYTES", 0)
    dataset = CalibrationDataset(source(12), again=True)
    numbers(dataset)
    assert [number for number, _ in dataset.held_out()] == [3]


def test_digests_are_of_every_sample_where_they_are_asked_for() -> None:
    plain, told = (CalibrationDataset(source(3), again=True, keep_digests=keep) for keep in (False, True))
    numbers(plain)
    numbers(told)
    assert plain.digests == set()
    assert told.digests == {digest for feed in source(3) for digest in sample_digests(feed)}
    assert len(told.digests) == 3
