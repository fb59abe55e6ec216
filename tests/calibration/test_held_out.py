"""The rule by which calibration samples are held out."""

import numpy as np
import pytest

from onnxvitq.calibration.held_out import is_held_out, split_samples


@pytest.mark.parametrize(
    ("count", "held"), [(4, [3]), (5, [3]), (7, [3]), (8, [3, 7]), (64, list(range(3, 64, 4)))], ids=str
)
def test_every_fourth_sample_is_held_out(count: int, held: list[int]) -> None:
    samples = np.arange(count, dtype=np.float32)[:, None, None]
    fitting, held_out = split_samples(samples)
    assert held_out.ravel().tolist() == held
    assert fitting.ravel().tolist() == [i for i in range(count) if i not in held]
    assert fitting.shape[1:] == held_out.shape[1:] == (1, 1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_few_samples_all_serve_as_both(count: int) -> None:
    samples = np.arange(count, dtype=np.float32)[:, None]
    fitting, held_out = split_samples(samples)
    assert np.array_equal(fitting, samples)
    assert np.array_equal(held_out, samples)


def test_the_split_of_samples_is_the_rule_of_their_numbers() -> None:
    _, held_out = split_samples(np.arange(9, dtype=np.float32)[:, None])
    assert held_out.ravel().tolist() == [number for number in range(9) if is_held_out(number)] == [3, 7]
