from itertools import product

import numpy as np
import pytest

from onnxvitq.core.formats import NumberFormat, PerChannel, PerTensor, QParams, TensorFormat, weight_format
from onnxvitq.numerics import rounding
from onnxvitq.numerics.affine import dequantize, fake_quantize, params_from_weight, quantize
from onnxvitq.numerics.rounding import BLOCK, ROWS_BLOCK, RowFeedback, refit_scale, round_with_feedback, rounding_error

SEEDS = pytest.mark.parametrize("seed", range(6))
BITS = pytest.mark.parametrize("bits", [2, 4, 8])


def spec_of(bits: int, axis: int | None = 1) -> TensorFormat:
    return TensorFormat(
        NumberFormat(bits=bits, signed=True, symmetric=True), PerTensor() if axis is None else PerChannel(axis)
    )


def read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)
    return x


def case(seed: int, inputs: int = 24, outputs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """A weight (I, O), and the gram of correlated inputs whose sizes differ."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((4 * inputs, max(inputs // 3, 2))) @ rng.standard_normal((max(inputs // 3, 2), inputs))
    a = (a + 0.3 * rng.standard_normal(a.shape)) * np.exp(rng.normal(0, 0.7, inputs))
    return read_only(rng.standard_normal((inputs, outputs)).astype(np.float32)), read_only(a.T @ a)


def error_of(weight: np.ndarray, rounded: np.ndarray, gram: np.ndarray) -> np.ndarray:
    difference = weight.astype(np.float64) - rounded
    return np.einsum("io,ij,jo->o", difference, gram, difference)


def published(weight: np.ndarray, params: QParams, gram: np.ndarray, damping: float = 0.01) -> np.ndarray:
    """GPTQ as its paper writes it: the upper Cholesky factor of the damped inverse, one input at a time."""
    order = np.argsort(-gram.diagonal(), kind="stable")
    damped = gram[np.ix_(order, order)] + damping * gram.diagonal().mean() * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T  # inverse = upper^T upper
    left, rounded = weight[order].astype(np.float64), np.empty_like(weight)
    for row in range(len(weight)):
        rounded[order[row]] = fake_quantize(left[row : row + 1].astype(np.float32), params)[0]
        error = (left[row] - rounded[order[row]]) / upper[row, row]
        left[row + 1 :] -= np.outer(upper[row, row + 1 :], error)
    return rounded


def test_feedback_worked() -> None:
    # Two inputs nearly equal, steps of 1: 1.4 and 0.4 are rounded plainly to 1 and 0, and the output reads 0.8 too little.
    # With feedback the first leaves 0.4 to the second, which then wants 0.8 and becomes 1.
    weight = np.array([[1.4], [0.4]], np.float32)
    gram = np.array([[1.01, 1.0], [1.0, 1.0]])
    params = QParams(spec=spec_of(4), scale=np.ones(1, np.float32), zero_point=np.zeros(1, int))
    assert round_with_feedback(weight, params, gram).tolist() == [[1], [1]]


@SEEDS
@BITS
def test_feedback_beats_baseline(seed: int, bits: int) -> None:
    weight, gram = case(seed)
    params = params_from_weight(weight, spec_of(bits), 1.0)
    plain, rounded = fake_quantize(weight, params), round_with_feedback(weight, params, gram)
    before, after = error_of(weight, plain, gram), error_of(weight, rounded, gram)
    assert after.sum() < before.sum()
    assert (after <= before).all()  # output by output


@SEEDS
@BITS
def test_feedback_differs(seed: int, bits: int) -> None:
    weight, gram = case(seed)
    params = params_from_weight(weight, spec_of(bits))
    plain, rounded = fake_quantize(weight, params), round_with_feedback(weight, params, gram)
    assert 0.05 < (rounded != plain).mean() < 0.95


@SEEDS
def test_feedback_is_the_published_procedure(seed: int) -> None:
    weight, gram = case(seed, inputs=2 * BLOCK + 40, outputs=16)  # across blocks
    params = params_from_weight(weight, spec_of(4))
    expected = published(weight, params, gram)
    plain = fake_quantize(weight, params)
    assert (error_of(weight, expected, gram) < error_of(weight, plain, gram)).all()  # or an output would keep plain
    np.testing.assert_array_equal(round_with_feedback(weight, params, gram), expected)


@pytest.mark.parametrize("inputs", [2, 3, 4])
@SEEDS
def test_feedback_oracle(seed: int, inputs: int) -> None:
    weight, gram = case(seed, inputs=inputs, outputs=40)
    params = params_from_weight(weight, spec_of(2), 0.8)
    codes = np.array(list(product((-1, 0, 1), repeat=inputs))).T  # (I, 3 ** I): every choice there is
    best = np.array([error_of(weight[:, [o]], codes * params.scale[o], gram).min() for o in range(weight.shape[1])])
    plain = error_of(weight, fake_quantize(weight, params), gram)
    found = error_of(weight, round_with_feedback(weight, params, gram), gram)
    assert (found <= plain).all()
    assert (found >= best * (1 - 1e-6) - 1e-9).all()  # float32 values against float64 ones
    assert found.sum() - best.sum() < 0.9 * (
        plain.sum() - best.sum()
    )  # with few inputs there is little to feed back to


@BITS
def test_diagonal_gram_is_plain_rounding(bits: int) -> None:
    weight, _ = case(0, inputs=300)
    params = params_from_weight(weight, spec_of(bits), 0.7)  # some weights are clipped
    gram = np.diag(np.random.default_rng(0).uniform(0.1, 9, 300))
    np.testing.assert_array_equal(round_with_feedback(weight, params, gram), fake_quantize(weight, params))


@BITS
@pytest.mark.parametrize("axis", [None, 1])
def test_values_are_codes_in_range(bits: int, axis: int | None) -> None:
    weight, gram = case(1)
    params = params_from_weight(weight, spec_of(bits, axis), 0.6)
    rounded = round_with_feedback(weight, params, gram)
    codes = quantize(rounded, params)
    assert rounded.dtype == np.float32
    assert codes.min() >= params.spec.qmin
    assert codes.max() <= params.spec.qmax
    np.testing.assert_array_equal(dequantize(codes, params), rounded)


def test_dead_inputs_are_plainly_rounded_and_change_nothing() -> None:
    weight, gram = case(2)
    alive = np.array([i for i in range(24) if i not in (0, 7, 23)])
    with_dead = np.zeros_like(gram)
    with_dead[np.ix_(alive, alive)] = gram[np.ix_(alive, alive)]
    params = params_from_weight(weight, spec_of(4))
    rounded = round_with_feedback(weight, params, with_dead)
    plain = fake_quantize(weight, params)
    np.testing.assert_array_equal(rounded[[0, 7, 23]], plain[[0, 7, 23]])
    # The same as without them; their share in the mean diagonal is made up for in the damping.
    alone = round_with_feedback(weight[alive], params, gram[np.ix_(alive, alive)], 0.01 * len(alive) / 24)
    np.testing.assert_array_equal(rounded[alive], alone)
    np.testing.assert_array_equal(round_with_feedback(weight, params, np.zeros_like(gram)), plain)


def test_rank_deficient_gram() -> None:
    weight, _ = case(3)
    a = np.random.default_rng(0).standard_normal((5, 24))
    params = params_from_weight(weight, spec_of(4))
    rounded = round_with_feedback(weight, params, a.T @ a)
    assert (
        error_of(weight, rounded, a.T @ a).sum() < 0.3 * error_of(weight, fake_quantize(weight, params), a.T @ a).sum()
    )


def test_rounding_is_deterministic_and_has_no_unit() -> None:
    weight, gram = case(4)
    params = params_from_weight(weight, spec_of(4))
    first = round_with_feedback(weight, params, gram)
    np.testing.assert_array_equal(round_with_feedback(weight, params, gram), first)
    np.testing.assert_array_equal(round_with_feedback(weight, params, 1024 * gram), first)
    order = np.random.default_rng(0).permutation(24)
    permuted = round_with_feedback(weight[order], params, gram[np.ix_(order, order)])
    np.testing.assert_array_equal(permuted, first[order])


def test_representable_weights_stay() -> None:
    weight, gram = case(5)
    params = params_from_weight(weight, spec_of(4))
    on_grid = fake_quantize(weight, params)
    np.testing.assert_array_equal(round_with_feedback(on_grid, params, gram), on_grid)


def rows_case(seed: int, inputs: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Centred rows (60, I) of correlated inputs, and two weights that read them."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((max(inputs // 3, 2), inputs))
    rows = rng.standard_normal((60, len(mixing))) @ mixing + 0.3 * rng.standard_normal((60, inputs))
    rows *= np.exp(rng.normal(0, 0.7, inputs))
    weights = [rng.standard_normal((inputs, outputs)).astype(np.float32) for outputs in (10, 7)]
    return read_only((rows - rows.mean(axis=0)).astype(np.float32)), weights


def output_error(rows: np.ndarray, weight: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    return ((rows.astype(np.float64) @ (weight - rounded)) ** 2).sum(axis=0)


@pytest.mark.parametrize("inputs", [12, 24, 2 * ROWS_BLOCK + 11])  # the last: more than rows
@SEEDS
def test_rows_feedback_beats_baseline_and_differs(seed: int, inputs: int) -> None:
    rows, weights = rows_case(seed, inputs)
    formats = [(weight, params_from_weight(weight, spec_of(bits))) for weight in weights for bits in (2, 4, 8)]
    before = after = 0.0
    for (weight, params), rounded in zip(formats, RowFeedback(rows).round(formats), strict=True):
        plain = fake_quantize(weight, params)
        worse, better = (output_error(rows, weight, one).sum() for one in (plain, rounded))
        assert better < worse  # of a weight; a single output may lose
        before, after = before + worse, after + better
        assert (rounded != plain).any()
        np.testing.assert_array_equal(fake_quantize(rounded, params), rounded)
    assert after < 0.9 * before


@SEEDS
def test_several_formats_are_rounded_as_each_alone(seed: int) -> None:
    rows, weights = rows_case(seed, 2 * ROWS_BLOCK + 11)
    formats = [
        (
            weight,
            params_from_weight(
                weight,
                TensorFormat(
                    NumberFormat(bits=bits, signed=True, symmetric=True),
                    PerTensor() if axis is None else PerChannel(axis),
                ),
            ),
        )
        for weight in weights
        for bits, axis in ((2, 1), (5, None), (8, 1))
    ]
    feedback = RowFeedback(rows)
    for one, rounded in zip(formats, feedback.round(formats), strict=True):
        np.testing.assert_array_equal(rounded, feedback.round([one])[0])


@pytest.mark.parametrize("inputs", [24, 2 * ROWS_BLOCK + 11])
@SEEDS
def test_rows_one_at_a_time_are_what_the_gram_gives(seed: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "TOGETHER", 1)
    rows, weights = rows_case(seed, inputs)
    params = params_from_weight(weights[0], spec_of(4))
    gram = rows.T.astype(np.float64) @ rows
    found = RowFeedback(rows).round([(weights[0], params)])[0]
    assert (
        found != round_with_feedback(weights[0], params, gram)
    ).mean() < 0.02  # float32: a near tie goes the other way


@SEEDS
def test_several_at_a_time_lose_little(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, (weight, _) = rows_case(seed, 2 * ROWS_BLOCK + 11)
    params = params_from_weight(weight, spec_of(4))
    errors = []
    for together in (1, 8, ROWS_BLOCK):
        monkeypatch.setattr(rounding, "TOGETHER", together)
        errors.append(output_error(rows, weight, RowFeedback(rows).round([(weight, params)])[0]).sum())
    assert errors[1] < errors[2]
    assert errors[1] < 2 * errors[0]


def test_rows_feedback_limits_pairs() -> None:
    rows, (weight, _) = rows_case(0, 24)
    params = params_from_weight(weight, weight_format(8, saturation_free=True), 0.7)
    codes = quantize(RowFeedback(rows).round([(weight, params)])[0], params).astype(int)
    assert np.abs(codes[0::2] + codes[1::2])[codes[0::2] * codes[1::2] > 0].max() <= 128


@pytest.mark.parametrize("factor", [1e2, 1e6])
def test_one_direction_may_have_all_of_the_rows_power(factor: float) -> None:
    """float32 holds what the damping leaves of it."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((60, 40)) + factor * rng.standard_normal((60, 1)) * rng.standard_normal(40)
    rows, weight = spread.astype(np.float32), rng.standard_normal((40, 8)).astype(np.float32)
    params = params_from_weight(weight, spec_of(4))
    rounded, plain = RowFeedback(rows).round([(weight, params)])[0], fake_quantize(weight, params)
    assert output_error(rows, weight, rounded).sum() < 0.05 * output_error(rows, weight, plain).sum()


def test_rows_feedback_rounds_dead_inputs_plainly() -> None:
    rows, (weight, _) = rows_case(0, 24)
    params, dead = params_from_weight(weight, spec_of(4)), rows.copy()
    dead[:, [3, 20]] = 0
    rounded, plain = RowFeedback(dead).round([(weight, params)])[0], fake_quantize(weight, params)
    np.testing.assert_array_equal(rounded[[3, 20]], plain[[3, 20]])
    np.testing.assert_array_equal(RowFeedback(0 * rows).round([(weight, params)])[0], plain)


def test_refit_worked() -> None:
    # Codes 1 and 2 stand for 1.1 and 2.2: the scale is 1.1. With a gram that sees the first input only, it is 1.3.
    codes, one = np.array([[1], [2]]), np.ones(1, np.float32)
    params = QParams(spec=spec_of(4), scale=one, zero_point=np.zeros(1, int))
    new = refit_scale(codes, np.array([[1.1], [2.2]], np.float32), np.eye(2), params)
    assert new.scale.tolist() == pytest.approx([1.1])
    new = refit_scale(codes, np.array([[1.3], [2.2]], np.float32), np.diag([1.0, 0.0]), params)
    assert new.scale.tolist() == pytest.approx([1.3])
    assert new.spec == params.spec


@SEEDS
@pytest.mark.parametrize("axis", [None, 1])
def test_refit_beats_baseline(seed: int, axis: int | None) -> None:
    weight, gram = case(seed)
    params = params_from_weight(weight, spec_of(3, axis))
    codes = quantize(round_with_feedback(weight, params, gram), params)
    new = refit_scale(codes, weight, gram, params)
    before, after = rounding_error(codes, params, weight, gram), rounding_error(codes, new, weight, gram)
    assert after.sum() < before.sum()
    assert axis is None or (after <= before).all()
    np.testing.assert_allclose(after, error_of(weight, dequantize(codes, new), gram), rtol=1e-10)


@SEEDS
@pytest.mark.parametrize("axis", [None, 1])
def test_refit_oracle(seed: int, axis: int | None) -> None:
    weight, gram = case(seed)
    params = params_from_weight(weight, spec_of(3, axis))
    codes = quantize(weight, params)
    root = np.linalg.cholesky(gram).T  # gram = root^T root
    columns = (slice(None),) if axis is None else tuple([o] for o in range(weight.shape[1]))
    oracle = [
        np.linalg.lstsq((root @ codes[:, c]).reshape(-1, 1), (root @ weight[:, c]).ravel(), rcond=None)[0].item()
        for c in columns
    ]
    found = np.atleast_1d(refit_scale(codes, weight, gram, params).scale)
    assert (found != np.atleast_1d(params.scale)).all()
    np.testing.assert_allclose(found, oracle, rtol=1e-6)  # float32


def test_refit_keeps_what_it_cannot_better() -> None:
    gram = np.eye(2)
    params = QParams(spec=spec_of(4), scale=np.ones(4, np.float32), zero_point=np.zeros(4, int))
    codes = np.array([[0, 3, 1, 1], [0, -2, 1, 1]])
    target = np.array([[1, 3, -1, 5], [1, -2, -1, 5]], np.float32)
    new = refit_scale(codes, target, gram, params)
    # No code, a perfect fit, codes of the wrong sign (half), codes far too small (double).
    assert new.scale.tolist() == [1, 1, 0.5, 2]
    np.testing.assert_array_equal(refit_scale(codes, target, np.zeros((2, 2)), params).scale, params.scale)


def test_bad_arguments_are_refused() -> None:
    weight, gram = case(0)
    params = params_from_weight(weight, spec_of(4))
    with pytest.raises(ValueError, match="damping"):
        round_with_feedback(weight, params, gram, 0.0)
    with pytest.raises(ValueError, match="gram \\(I, I\\)"):
        round_with_feedback(weight, params, gram[1:, 1:])
    with pytest.raises(ValueError, match="finite"):
        round_with_feedback(weight, params, gram * np.nan)
    with pytest.raises(ValueError, match="axis 0"):
        round_with_feedback(weight, params_from_weight(weight, spec_of(4, 0)), gram)
    with pytest.raises(ValueError, match="symmetric codes"):
        refit_scale(np.zeros((24, 9), int), weight, gram, params)
