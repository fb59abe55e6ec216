from collections.abc import Sequence

import numpy as np
import pytest

from onnxvitq.core.formats import activation_format, weight_format
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_weight
from onnxvitq.numerics.fit import HIGHEST, LOWEST, OUTPUTS, ProductFit, Search, fit_linear, fit_product, times
from onnxvitq.numerics.objectives import OBJECTIVES, Objective, mse

EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
INPUT = activation_format(8)
WEIGHT = weight_format(8)
SPECS = (INPUT, WEIGHT)
SEARCH = Search(candidates=8, rounds=3)  # steps of 0.1
FINE = Search(candidates=15, rounds=2)  # steps of 0.05


FOUR_BITS = activation_format(4)
GRID = SEARCH.grid(FOUR_BITS)
WEIGHT_GRID = SEARCH.grid(weight_format(4))


def cut(multiplier: float, low: float, high: float) -> tuple[float, float]:
    """A range clipped at a part of its longer side, or widened."""
    end = multiplier * max(-low, high)
    return (max(low, -end), min(high, end)) if multiplier < 1 else (multiplier * low, multiplier * high)


def bounds(x: np.ndarray) -> tuple[float, float]:
    return float(x.min()), float(x.max())


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    x.setflags(write=False)
    return x


def linear_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(S, r, I) rows and an (I, O) weight, both with a few values far out, and correlated features."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((12, 12))
    rows = rng.standard_normal((3, 40, 12)) @ mix
    rows[:, 0] *= 3
    weight = rng.standard_normal((12, 10))
    weight[0] *= 2
    return read_only(rows), read_only(weight)


def product_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(S, L, m, k) and (S, L, k, n) with a few values far out."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, 3, 16, 8)), rng.standard_normal((2, 3, 8, 20))
    left[:, :, 0, 0] *= 8
    right[:, :, 0, 0] *= 8
    return read_only(left), read_only(right)


def fit_l(
    rows: np.ndarray, weight: np.ndarray, objective: Objective, *, bits: int = 4, search: Search = SEARCH
) -> ProductFit:
    specs = (
        activation_format(bits),
        weight_format(bits),
    )
    return fit_linear(rows, weight, specs, bounds(rows), objective, search)


def fit_p(
    left: np.ndarray, right: np.ndarray, objective: Objective, *, bits: int = 4, search: Search = SEARCH
) -> ProductFit:
    spec = activation_format(bits)
    return fit_product(left, right, (spec, spec), (bounds(left), bounds(right)), objective, search)


def loss_of(left: np.ndarray, right: np.ndarray, fit: ProductFit, objective: Objective) -> float:
    product = times if right.ndim == 2 else np.matmul
    return objective(product(left, right), product(fake_quantize(left, fit.left), fake_quantize(right, fit.right)))


def test_grid_is_the_papers_with_min_max_on_it() -> None:
    assert Search(candidates=2).grid(INPUT) == [LOWEST, 1.0, HIGHEST] == [0.5, 1.0, 1.2]
    grid = Search(candidates=24).grid(WEIGHT)
    assert len(grid) == 25
    assert np.diff([step for step in grid if step != 1.0]) == pytest.approx(0.7 / 23, abs=2e-6)  # rounded to 6 places
    assert len(SEARCH.grid(INPUT)) == 8  # 1 was on it already


def test_fewer_bits_are_searched_further_down() -> None:
    specs = [activation_format(bits) for bits in range(8, 1, -1)]
    lowest = [Search().grid(spec)[0] for spec in specs]
    assert lowest == sorted(lowest, reverse=True)
    assert (lowest[0], lowest[2], lowest[4]) == (0.5, 0.3, 0.1)
    assert all(1.0 in Search().grid(spec) and Search().grid(spec)[-1] == HIGHEST for spec in specs)


def test_the_shorter_side_of_a_range_outlives_the_tail_of_the_longer() -> None:
    """A GELU's values: most lie below zero, a few far above. Four bits: the tail is worth clipping, the rest is not."""
    rng = np.random.default_rng(0)
    rows = read_only(-0.17 * rng.random((4, 200, 6)))
    rows = read_only(np.where(rng.random(rows.shape) < 0.002, 1.5, rows))
    weight = read_only(rng.standard_normal((6, 5)))
    fit = fit_l(rows, weight, mse)
    top = float(fit.left.scale) * (15 - int(fit.left.zero_point))
    bottom = -float(fit.left.scale) * int(fit.left.zero_point)
    assert top < 1.2  # clipped
    assert bottom < -0.15  # whole: -0.12 if it were clipped alike


def test_fit_linear_worked() -> None:
    # y is the weight itself: 10,000 rows read 1, one row reads 6. Three bits hold -3 to 3.
    # Min-max: scale 2, so every 1 becomes 0 (a tie, to even). Half of it: scale 1, every 1 is exact and 6 becomes 3.
    rows = np.zeros((1, 10_001, 2), np.float32)
    rows[0, :-1, 0], rows[0, -1, 1] = 1, 1
    weight = np.array([[1.0], [6.0]], np.float32)
    specs = (INPUT, weight_format(3))
    fit = fit_linear(rows, weight, specs, (0.0, 1.0), mse, Search(candidates=2))
    assert fit.right.scale.tolist() == [1.0]
    assert fit.left.scale == np.float32(1 / 255)
    assert fit.minmax_loss == pytest.approx(10_000 / 10_036, rel=1e-6, abs=0)  # float32 operands
    assert fit.loss == pytest.approx(9 / 10_036, rel=1e-6, abs=0)


def test_fit_product_worked() -> None:
    # The same in the left operand, and two bits, codes 0 to 3: min-max has scale 10, a tenth of it scale 1; 30 becomes 3.
    left = np.ones((1, 1, 1001, 1), np.float32)
    left[..., -1, 0] = 30
    right = np.ones((1, 1, 1, 1), np.float32)
    spec = activation_format(2)
    fit = fit_product(left, right, (spec, spec), ((0.0, 30.0), (0.0, 1.0)), mse, Search(candidates=2))
    assert fit.left.scale == 1.0
    assert fit.left.zero_point == 0
    assert fit.right.scale == np.float32(1 / 3)
    assert fit.right.zero_point == 0
    assert fit.minmax_loss == pytest.approx(1000 / 1900, rel=1e-6, abs=0)
    assert fit.loss == pytest.approx(27**2 / 1900, rel=1e-6, abs=0)


@EVERY
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_fit_linear_beats_baseline(objective: Objective, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weight = rng.standard_normal((6, 128, 16), np.float32), rng.standard_normal((16, 10), np.float32)
    rows[0, 0, 0] = 7  # one value of 12,288, in one image of six: a finer scale for the others is worth its error
    fit = fit_l(rows, weight, objective, bits=bits, search=FINE)
    assert fit.loss < fit.minmax_loss
    assert fit.loss == loss_of(rows, weight, fit, objective)  # what is reported is what the parameters do


@EVERY
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_fit_product_beats_baseline(objective: Objective, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((12, 2, 32, 16), np.float32), rng.standard_normal((12, 2, 16, 20), np.float32)
    left[0, 0, 0, 0] = 7
    fit = fit_p(left, right, objective, bits=bits, search=FINE)
    assert fit.loss < fit.minmax_loss
    assert fit.loss == loss_of(left, right, fit, objective)


@EVERY
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_min_max_never_lost(objective: Objective, bits: int, seed: int) -> None:
    linear, product = linear_case(seed), product_case(seed)
    for operands, fit in (
        (linear, fit_l(*linear, objective, bits=bits)),
        (product, fit_p(*product, objective, bits=bits)),
    ):
        assert fit.loss <= fit.minmax_loss
        assert fit.loss == loss_of(*operands, fit, objective)


@EVERY
def test_fit_linear_differs(objective: Objective) -> None:
    rows, weight = linear_case()
    fit = fit_l(rows, weight, objective)
    minmax = params_from_weight(weight, fit.right.spec), params_from_range(*bounds(rows), fit.left.spec)
    assert not np.array_equal(fit.right.scale, minmax[0].scale)
    assert fit.left.scale != minmax[1].scale
    # One multiplier for all channels, within the paper's range.
    multiplier = fit.right.scale / minmax[0].scale
    assert multiplier.max() - multiplier.min() < 1e-6  # of a float32 of about 1
    assert LOWEST <= multiplier[0] <= HIGHEST
    assert GRID[0] <= fit.left.scale / minmax[1].scale <= HIGHEST


@EVERY
def test_fit_product_differs(objective: Objective) -> None:
    left, right = product_case()
    fit = fit_p(left, right, objective)
    assert fit.left.scale < params_from_range(*bounds(left), fit.left.spec).scale
    assert fit.right.scale < params_from_range(*bounds(right), fit.right.spec).scale


@EVERY
def test_data_that_min_max_holds_exactly_is_left_alone(objective: Objective) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 256, (2, 20, 6)) / 16).astype(np.float32)
    rows[0, 0, :2] = 0, 255 / 16
    weight = (rng.integers(-127, 128, (6, 5)) / 32).astype(np.float32)
    weight[0] = 127 / 32
    fit = fit_linear(rows, weight, SPECS, bounds(rows), objective, SEARCH)
    assert (fit.loss, fit.minmax_loss) == (0.0, 0.0)
    assert fit.left.scale == 1 / 16
    assert fit.right.scale.tolist() == [1 / 32] * 5


def table_of(candidates: Sequence[Sequence[np.ndarray]], reference: np.ndarray, objective: Objective) -> np.ndarray:
    """The objective of every pair of multipliers: (left, right)."""
    product = times if candidates[1][0].ndim == 2 else np.matmul
    return np.array([[objective(reference, product(a, b)) for b in candidates[1]] for a in candidates[0]])


def product_table(left: np.ndarray, right: np.ndarray, fit: ProductFit, objective: Objective) -> np.ndarray:
    candidates = tuple(
        [fake_quantize(x, params_from_range(*cut(m, low, high), fit.left.spec)) for m in GRID]
        for x, (low, high) in ((left, bounds(left)), (right, bounds(right)))
    )
    return table_of(candidates, left @ right, objective)


def linear_table(rows: np.ndarray, weight: np.ndarray, fit: ProductFit, objective: Objective) -> np.ndarray:
    low, high = bounds(rows)
    inputs = [fake_quantize(rows, params_from_range(*cut(m, low, high), fit.left.spec)) for m in GRID]
    weights = [fake_quantize(weight, params_from_weight(weight, fit.right.spec, m)) for m in WEIGHT_GRID]
    return table_of((inputs, weights), times(rows, weight), objective)


@EVERY
@pytest.mark.parametrize("seed", [0, 2, 5])
def test_fit_product_oracle(objective: Objective, seed: int) -> None:
    operands = product_case(seed)
    fit = fit_p(*operands, objective)
    table = product_table(*operands, fit, objective)
    one = GRID.index(1.0)
    assert fit.minmax_loss == table[one, one]
    assert fit.loss == table.min()  # brute force over both multipliers
    assert fit.loss < table[one].min()  # the right operand alone
    assert fit.loss < table[:, one].min()  # the left operand alone


@EVERY
@pytest.mark.parametrize("seed", [0, 7, 11])
def test_fit_linear_oracle(objective: Objective, seed: int) -> None:
    operands = linear_case(seed)
    fit = fit_l(*operands, objective)
    table = linear_table(*operands, fit, objective)
    one, weight_one = GRID.index(1.0), WEIGHT_GRID.index(1.0)
    assert fit.minmax_loss == table[one, weight_one]
    assert fit.loss == table.min()
    assert fit.loss < table[one].min()
    assert fit.loss < table[:, weight_one].min()


@EVERY
@pytest.mark.parametrize("seed", range(5))
def test_one_operand_in_turn_ends_on_a_pair_that_neither_improves_alone(objective: Objective, seed: int) -> None:
    # Brute force over both may find a better pair: the search is a descent along one operand at a time.
    operands = linear_case(seed)
    fit = fit_linear(
        *operands,
        (activation_format(4), weight_format(4)),
        bounds(operands[0]),
        objective,
        Search(candidates=8, rounds=20),
    )
    table = linear_table(*operands, fit, objective)
    ((i, j),) = np.argwhere(table == fit.loss)
    assert table.min() <= fit.loss
    assert fit.loss == table[i].min() == table[:, j].min()
    assert fit.loss <= table[GRID.index(1.0)].min()  # the weight goes first, so it is never worse than it alone


def test_more_rounds_never_lose() -> None:
    for seed in range(6):
        rows, weight = linear_case(seed)
        losses = [
            fit_linear(rows, weight, SPECS, bounds(rows), mse, Search(candidates=8, rounds=rounds)).loss
            for rounds in (1, 2, 4)
        ]
        assert losses == sorted(losses, reverse=True)


@EVERY
@pytest.mark.parametrize("factor", [0.125, 32.0])
def test_scaling_the_data_scales_the_scale_exactly(objective: Objective, factor: float) -> None:
    power = np.float32(factor)
    rows, weight = linear_case()
    plain = fit_l(rows, weight, objective)
    for data in ((power * rows, weight), (rows, power * weight)):
        scaled = fit_l(data[0], data[1], objective)
        assert scaled.loss == plain.loss
        assert scaled.left.scale == plain.left.scale * (power if data[1] is weight else 1)
        assert np.array_equal(scaled.right.scale, plain.right.scale * (1 if data[1] is weight else power))
        assert scaled.left.zero_point == plain.left.zero_point
    left, right = product_case()
    before, after = fit_p(left, right, objective), fit_p(left, power * right, objective)
    assert (after.left.scale, after.right.scale) == (before.left.scale, before.right.scale * power)


@pytest.mark.parametrize("objective", [OBJECTIVES["mse"], OBJECTIVES["pearson"]], ids=["mse", "pearson"])
def test_permuting_weight_channels_permutes_the_scales(objective: Objective) -> None:
    # Not the ranking loss: it looks at pairs of neighbours, and a linear's outputs have no order.
    rows, weight = linear_case()
    order = np.random.default_rng(3).permutation(weight.shape[1])
    plain, permuted = fit_l(rows, weight, objective), fit_l(rows, weight[:, order], objective)
    assert np.array_equal(permuted.right.scale, plain.right.scale[order])
    assert len(set(plain.right.scale.tolist())) == weight.shape[1]
    assert permuted.left.scale == plain.left.scale


def test_permuting_input_features_changes_no_scale() -> None:
    rows, weight = linear_case()
    order = np.random.default_rng(4).permutation(weight.shape[0])
    plain, permuted = fit_l(rows, weight, mse), fit_l(rows[..., order], weight[order], mse)
    assert np.array_equal(permuted.right.scale, plain.right.scale)
    assert permuted.left.scale == plain.left.scale


def test_the_range_comes_from_all_calibration_data_not_from_the_rows() -> None:
    rows, weight = linear_case()
    low, high = bounds(rows)
    wide = fit_linear(rows, weight, SPECS, (4 * low, 4 * high), mse, SEARCH)
    assert (
        wide.left.scale == params_from_range(0.5 * 4 * low, 0.5 * 4 * high, INPUT).scale
    )  # as far in as the grid goes


def test_search_is_deterministic() -> None:
    first, second = (fit_l(*linear_case(), OBJECTIVES["ranking"]) for _ in range(2))
    assert (first.loss, first.left.scale) == (second.loss, second.left.scale)
    assert np.array_equal(first.right.scale, second.right.scale)


# ------------------------------------------------------------------------------------------------- what a search costs


def test_nothing_is_tried_twice_beside_the_same_operand() -> None:
    """A gain of constant rows does not change a correlation: only the weight moves, and a second round tells nothing new."""
    rows, calls = np.ones((2, 20, 12), np.float32), []
    specs = (INPUT, weight_format(4))

    def counted(reference: np.ndarray, approximation: np.ndarray) -> float:
        calls.append(approximation)
        return round(OBJECTIVES["pearson"](reference, approximation), 6)

    fit = fit_linear(rows, linear_case()[1], specs, (0.0, 1.0), counted, SEARCH)
    assert fit.multiplier != 1
    assert fit.left.scale == params_from_range(0.0, 1.0, INPUT).scale
    assert len(calls) == 1 + len(SEARCH.grid(specs[1])) + len(SEARCH.grid(specs[0]))


def test_of_a_wide_layer_some_outputs_are_looked_at_and_all_are_scaled() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 40, 12)).astype(np.float32)
    weight = rng.laplace(size=(12, 3 * OUTPUTS - 5)).astype(np.float32)
    seen: set[int] = set()

    def watched(reference: np.ndarray, approximation: np.ndarray) -> float:
        seen.add(reference.shape[-1])
        return mse(reference, approximation)

    fit = fit_l(rows, weight, watched)
    assert seen == {OUTPUTS - 1}
    spec = fit.right.spec
    assert fit.right.scale.tobytes() == params_from_weight(weight, spec, fit.multiplier).scale.tobytes()
    left = params_from_range(*bounds(rows), fit.left.spec)
    minmax = times(fake_quantize(rows, left), fake_quantize(weight, params_from_weight(weight, spec)))
    searched = times(fake_quantize(rows, fit.left), fake_quantize(weight, fit.right))
    reference = times(rows, weight)
    assert mse(reference, searched) < 0.95 * mse(reference, minmax)  # on all outputs
