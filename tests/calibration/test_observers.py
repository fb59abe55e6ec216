from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

from onnxvitq.calibration.observers import (
    FIRST_SHARE,
    IMAGES,
    MATRICES,
    QUERIES,
    ROWS,
    WHOLE_BYTES,
    ChannelObserver,
    OperandObserver,
    RangeObserver,
    RowObserver,
    WholeObserver,
    operand_samples,
)

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])


def numbered(sample: int, rows: int, features: int = 3) -> np.ndarray:
    """(1, rows, features): every row holds its sample's number, its own number, and zeros."""
    values = np.zeros((1, rows, features), np.float32)
    values[..., 0], values[..., 1] = sample, np.arange(rows)
    return values


def results(samples: int, rows: int) -> Iterator[np.ndarray]:
    """The result after each of so many samples."""
    observer = RowObserver(0)
    for sample in range(samples):
        assert observer.update(numbered(sample, rows), sample)
        yield observer.result()


def last(samples: int, rows: int, seed: int = 0) -> np.ndarray:
    """The result after all of them."""
    observer = RowObserver(seed)
    for sample in range(samples):
        assert observer.update(numbered(sample, rows), sample)
    return observer.result()


def test_range_over_samples_of_any_shape() -> None:
    observer = RangeObserver()
    for sample, values in enumerate(([[1.0, -2.0]], [0.5], [[[3.0]], [[-1.0]]])):
        assert observer.update(np.array(values, np.float32), sample)
    assert observer.result() == (-2.0, 3.0)


def test_range_of_nothing_is_empty() -> None:
    observer = RangeObserver()
    assert observer.update(np.zeros((0, 4), np.float32), 0)
    low, high = observer.result()
    assert low > high


@BAD
def test_range_refuses_what_is_not_finite(bad: float) -> None:
    observer = RangeObserver()
    assert observer.update(np.array([1.0, 2.0], np.float32), 0)
    values = np.zeros(1000, np.float32)
    values[700] = bad
    assert not observer.update(values, 1)
    assert observer.result() == (1.0, 2.0)


@BAD
@pytest.mark.parametrize("kind", ["rows", "left", "right"])
def test_samplers_refuse_what_is_not_finite(kind: Literal["rows", "left", "right"], bad: float) -> None:
    observer = RowObserver(0) if kind == "rows" else OperandObserver(0, kind)
    values = np.zeros((2, 4, 4), np.float32)
    assert observer.update(values, 0)
    values[1, 2, 3] = bad
    assert not observer.update(values, 0)


@pytest.mark.parametrize("rows", [1, 17, 50, 64, 197])
@pytest.mark.parametrize("samples", [8, 500])
def test_rows_are_never_more_than_the_bound(samples: int, rows: int) -> None:
    held = [result.shape[0] * result.shape[1] for result in results(samples, rows)]
    assert max(held) <= ROWS
    if rows * samples >= ROWS:
        assert max(held) > ROWS // 2  # and the bound is used


def test_rows_past_one_a_sample_keep_the_bound() -> None:
    result = last(3 * ROWS, 3)
    assert result.shape == (ROWS, 1, 3)
    samples = result[:, 0, 0]
    assert len(set(samples.tolist())) == ROWS  # no sample twice
    # Of three parts of the stream each as likely: 512 / 3 = 171 of each, give or take 10.
    counts = np.histogram(samples, 3, (0, 3 * ROWS))[0]
    assert counts.sum() == ROWS
    assert 140 < counts.min() <= counts.max() < 200


@pytest.mark.parametrize(
    ("samples", "share"), [(1, 64), (FIRST_SHARE, 64), (FIRST_SHARE + 1, 32), (16, 32), (17, 16), (128, 4), (500, 1)]
)
def test_every_sample_gives_as_many_rows(samples: int, share: int) -> None:
    result = last(samples, 197)
    assert result.shape == (samples, share, 3)
    assert result.dtype == np.float32
    assert samples * share > ROWS // 2 or samples < FIRST_SHARE
    for sample, rows in enumerate(result):
        assert set(rows[:, 0].tolist()) == {sample}
        assert len(set(rows[:, 1].tolist())) == share  # drawn without replacement
        assert set(rows[:, 2].tolist()) == {0.0}


def test_small_samples_are_kept_whole_until_the_bound() -> None:
    assert last(30, 17).shape == (30, 17, 3)
    assert last(31, 17).shape == (31, 16, 3)
    assert sorted(last(3, 5)[2, :, 1].tolist()) == [0, 1, 2, 3, 4]


def test_the_sample_with_fewest_rows_sets_how_many() -> None:
    observer = RowObserver(0)
    for sample, rows in enumerate((20, 7, 30)):
        observer.update(numbered(sample, rows), sample)
    assert observer.result().shape == (3, 7, 3)


def test_rows_join_the_leading_axes() -> None:
    observer = RowObserver(0)
    observer.update(np.arange(24, dtype=np.float32).reshape(2, 3, 4), 0)
    assert sorted(observer.result()[0, :, 0].tolist()) == [0, 4, 8, 12, 16, 20]


def test_rows_of_nothing() -> None:
    assert RowObserver(0).result().shape == (0, 0, 0)


@pytest.mark.parametrize("samples", [3, 40, ROWS + 50])
def test_two_tensors_with_as_many_rows_give_the_same_rows(samples: int) -> None:
    narrow, wide = RowObserver(5), RowObserver(5)
    for sample in range(samples):
        values = numbered(sample, 100, 9)
        narrow.update(values[..., :2], sample)
        wide.update(values.reshape(2, 50, 9), sample)
    assert np.array_equal(narrow.result(), wide.result()[..., :2])


def test_rows_depend_on_the_seed_and_differ_between_samples() -> None:
    first, again, other = (last(4, 197, seed)[..., 1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_rows_are_drawn_evenly() -> None:
    # 500 samples of 32 rows, one kept of each: every row 500 / 32 = 15.6 times on average, give or take 3.9.
    counts = np.bincount(last(500, 32)[:, 0, 1].astype(int), minlength=32)
    assert counts.sum() == 500
    assert counts.min() > 0
    assert counts.max() < 35


def test_the_observed_array_may_be_reused() -> None:
    # onnxruntime may hand out one buffer again: what was kept must be a copy.
    rows, operand, whole, buffer = (
        RowObserver(0),
        OperandObserver(0, "right"),
        WholeObserver(),
        np.ones((2, 4, 4), np.float32),
    )
    rows.update(buffer, 0)
    operand.update(buffer, 0)
    whole.update(buffer, 0)
    buffer[:] = 7
    assert rows.result().max() == 1
    assert operand.result().max() == 1
    assert whole.result()[0].max() == 1


def product(sample: int, heads: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1, H, T, 4), (1, H, 4, T) and their product; whole numbers, so that every sum is exact in any order."""
    rng = np.random.default_rng(sample)
    left = rng.integers(-9, 10, (1, heads, tokens, 4)).astype(np.float32)
    right = rng.integers(-9, 10, (1, heads, 4, tokens)).astype(np.float32)
    return left, right, left @ right


@pytest.mark.parametrize(("heads", "tokens"), [(2, 5), (3, 50), (40, 5), (40, 50)])
@pytest.mark.parametrize("samples", [1, IMAGES, 3 * IMAGES])
def test_operands_of_a_product_are_sampled_alike(heads: int, tokens: int, samples: int) -> None:
    left, right, whole = OperandObserver(3, "left"), OperandObserver(3, "right"), OperandObserver(3, "left")
    for sample in range(samples):
        for observer, values in zip((left, right, whole), product(sample, heads, tokens), strict=True):
            assert observer.update(values, sample)
    kept, matrices, queries = min(samples, IMAGES), min(heads, MATRICES), min(tokens, QUERIES)
    assert left.result().shape == (kept, matrices, queries, 4)
    assert right.result().shape == (kept, matrices, 4, tokens)
    assert np.array_equal(left.result() @ right.result(), whole.result())
    everything = np.concatenate([product(sample, heads, tokens)[2].reshape(-1, tokens) for sample in range(samples)])
    true = {row.tobytes() for row in everything}
    assert all(row.tobytes() in true for row in whole.result().reshape(-1, tokens))


def test_operands_keep_different_samples_and_rows() -> None:
    operand = OperandObserver(0, "left")
    for sample in range(IMAGES):
        operand.update(numbered(sample, 100)[None], sample)
    result = operand.result()
    assert result[:, 0, 0, 0].tolist() == list(range(IMAGES))
    for matrix in result[:, 0]:
        assert len(set(matrix[:, 1].tolist())) == QUERIES
    assert len({matrix[:, 1].tobytes() for matrix in result[:, 0]}) == IMAGES  # other rows of every sample


def test_operands_past_the_bound_are_a_sample_of_all() -> None:
    seen: set[float] = set()
    for seed in range(30):
        operand = OperandObserver(seed, "right")
        for sample in range(40):
            operand.update(np.full((1, 2, 2), sample, np.float32), sample)
        numbers = operand.result()[:, 0, 0, 0].tolist()
        assert len(set(numbers)) == IMAGES
        seen.update(numbers)
    assert len(seen) > 35  # of 40: no part of the stream is left out


def test_samples_of_another_size_are_left_out_of_both_operands() -> None:
    # More tokens change the keys' shape, and would not show in the queries', of which QUERIES are kept.
    left, right = OperandObserver(0, "left"), OperandObserver(0, "right")
    for sample, tokens in enumerate((50, 65, 50)):
        queries, keys, _ = product(sample, 2, tokens)
        left.update(queries, sample)
        right.update(keys, sample)
    assert left.result().shape == (2, 2, QUERIES, 4)
    assert right.result().shape == (2, 2, 4, 50)
    expected = np.concatenate([product(sample, 2, 50)[1] for sample in (0, 2)])
    assert np.array_equal(right.result(), expected)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 40])
def test_the_samples_that_operands_are_kept_of_are_known_beforehand(count: int) -> None:
    for seed in range(5):
        every, few = OperandObserver(seed, "right"), OperandObserver(seed, "right")
        kept = operand_samples(seed, count)
        for sample in range(count):
            values = np.full((1, 2, 2), sample, np.float32)
            every.update(values, sample)
            if sample in kept:
                few.update(values, sample)
        assert len(kept) == min(count, 6)
        assert set(every.result()[:, 0, 0, 0]) == kept
        np.testing.assert_array_equal(every.result(), few.result())


def test_bounds_of_channels_over_samples_of_any_size() -> None:
    observer = ChannelObserver()
    for values in ([[1, -2, 3]], [[0, 5, 3], [2, 1, -1]]):
        assert observer.update(np.array([values], np.float32), 0)
    assert observer.update(np.zeros((1, 0, 3), np.float32), 2)
    np.testing.assert_array_equal(observer.result(), [[0, -2, -1], [2, 5, 3]])
    assert not observer.update(np.array([[1, np.nan, 0]], np.float32), 3)
    assert ChannelObserver().result().shape == (2, 0)


def test_whole_tensors_are_kept_from_the_first_until_the_bound() -> None:
    observer, size = WholeObserver(), WHOLE_BYTES // 4 // 4  # a quarter of the bound each
    for sample in range(6):
        assert observer.update(np.full((1, size), sample, np.float32), sample)
    assert observer.update(np.zeros((1, 1), np.float32), 6)  # a small one behind a gap is not taken
    result = observer.result()
    assert [values.shape for values in result] == [(1, size)] * 4
    assert [values[0, 0] for values in result] == [0, 1, 2, 3]


def test_one_whole_tensor_is_kept_however_large() -> None:
    observer = WholeObserver()
    for sample in range(2):
        assert observer.update(np.zeros(WHOLE_BYTES // 4 + 1, np.float32), sample)
    assert len(observer.result()) == 1


@BAD
def test_a_whole_tensor_that_is_not_finite_is_refused(bad: float) -> None:
    assert not WholeObserver().update(np.array([0.0, bad], np.float32), 0)


@pytest.mark.parametrize("kind", ["rows", "left"])
def test_rows_come_as_often_as_their_token_weighs(kind: str) -> None:
    weights = np.ones(64, np.float32)
    weights[3] = 64.0
    values = np.tile(np.arange(64, dtype=np.float32)[:, None], (2, 1, 3))  # two heads, tokens numbered
    counts = np.zeros(64)
    for seed in range(50):
        observer = RowObserver(seed, weights) if kind == "rows" else OperandObserver(seed, "left", weights)
        assert observer.update(values, 0)
        counts += np.bincount(observer.result()[..., 0].reshape(-1).astype(int), minlength=64)
    share = counts / counts.sum()
    assert share[3] == pytest.approx(64 / 127, abs=0.05)
    assert np.delete(share, 3).max() < 0.03


def test_weights_of_other_tokens_change_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    plain, weighed = (
        RowObserver(1),
        RowObserver(1, np.array([9.0, 1.0, 1.0], np.float32)),
    )  # ten rows are not tokens by three
    for observer in (plain, weighed):
        observer.update(values, 0)
    np.testing.assert_array_equal(plain.result(), weighed.result())
