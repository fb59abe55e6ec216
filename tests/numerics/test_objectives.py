import numpy as np
import pytest

from onnxvitq.numerics.objectives import (
    GAMMA,
    OBJECTIVES,
    THETA,
    Objective,
    against,
    mse,
    pearson_loss,
    ranking_hinge,
    ranking_loss,
)

EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
ROUNDING = 1e-6  # relative: operands and sums are float32


def scores(seed: int = 0) -> np.ndarray:
    """(S, H, T, K) attention scores, not to be written."""
    values = np.random.default_rng(seed).standard_normal((2, 3, 5, 40)).astype(np.float32)
    values.setflags(write=False)
    return values


def samples(*rows: list[float]) -> np.ndarray:
    """(S, n) from one list a sample."""
    return np.array(rows, np.float32)


@EVERY
def test_zero_at_equality(objective: Objective) -> None:
    for scale in (1e-6, 1.0, 1e6):
        x = scores() * np.float32(scale)
        assert objective(x, x.copy()) == 0.0


@EVERY
@pytest.mark.parametrize("size", [2.0**-100, 2.0**100], ids=["tiny", "huge"])
def test_values_whose_squares_float32_does_not_have_are_told_apart(objective: Objective, size: float) -> None:
    """Near 1e-31 every square is zero, near 1e30 it is infinite: a search would take whatever it tried first."""
    x, unit = scores(), np.float32(size)
    near, far = ((x + share * x[..., ::-1]).astype(np.float32) for share in (0.001, 1.0))
    plain, scaled = against(objective, x), against(objective, x * unit)
    assert 0 < scaled(near * unit) < scaled(far * unit)
    assert [scaled(near * unit), scaled(far * unit)] == [plain(near), plain(far)]  # the unit is a power of two


@EVERY
@pytest.mark.parametrize("level", [0.0, 0.1, -3.0, 1e5])
def test_finite_on_constant_input(objective: Objective, level: float) -> None:
    constant, varied = np.full_like(scores(), level), scores()
    assert objective(constant, constant) == 0.0
    assert np.isfinite(objective(varied, constant))
    assert np.isfinite(objective(constant, varied))
    assert objective(varied, constant) > 0


@EVERY
def test_lower_for_a_closer_approximation(objective: Objective) -> None:
    noise = scores(seed=1)
    losses = [objective(scores(), scores() + np.float32(size) * noise) for size in (1e-3, 1e-2, 1e-1, 1.0)]
    assert all(type(loss) is float for loss in losses)
    assert losses == sorted(losses)
    assert len(set(losses)) == 4
    assert losses[0] > 0


@EVERY
def test_the_mean_over_samples(objective: Objective) -> None:
    x = scores()[:1]
    near, far = x + np.float32(0.1) * scores(2)[:1], x + scores(3)[:1]
    # The second sample is four times as large: it counts as much as the first.
    together = objective(np.concatenate([x, 4 * x]), np.concatenate([near, 4 * far]))
    assert together == pytest.approx((objective(x, near) + objective(x, far)) / 2, rel=ROUNDING, abs=0)


@EVERY
@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_the_same_for_data_scaled_by_a_power_of_two(objective: Objective, factor: float) -> None:
    x, y = scores(), scores() + scores(1)
    assert objective(x * np.float32(factor), y * np.float32(factor)) == objective(x, y)


def test_mse_worked() -> None:
    # Errors 0, -1, 1 against 1 + 4 + 9; errors 2, 0, 0 against 16.
    assert mse(samples([1, 2, 3]), samples([1, 3, 2])) == pytest.approx(2 / 14, rel=ROUNDING, abs=0)
    both = mse(samples([1, 2, 3], [4, 0, 0]), samples([1, 3, 2], [2, 0, 0]))
    assert both == pytest.approx((2 / 14 + 4 / 16) / 2, rel=ROUNDING, abs=0)


def test_pearson_worked() -> None:
    # Centred: (-1, 0, 1) and (-1, 1, 0): 1 / 2.
    assert pearson_loss(samples([1, 2, 3]), samples([1, 3, 2])) == pytest.approx(0.5, rel=ROUNDING, abs=0)
    assert pearson_loss(samples([1, 2, 3]), samples([3, 2, 1])) == pytest.approx(2.0, rel=ROUNDING, abs=0)


def test_pearson_ignores_gain_and_offset() -> None:
    assert pearson_loss(scores(), 2 * scores()) == 0.0
    assert pearson_loss(scores(), np.float32(0.3) * scores() + np.float32(5)) < ROUNDING
    assert (
        mse(scores(), np.float32(0.3) * scores() + np.float32(5)) > 1
    )  # so the search bounds the scale, the objective does not
    assert pearson_loss(scores(), -scores()) == pytest.approx(2.0, rel=ROUNDING, abs=0)


def test_pearson_of_a_constant_sample() -> None:
    for size in (3, 100, 1000):  # a float32 mean of so many is not the constant itself
        assert pearson_loss(samples([0.1] * size), samples([0.7] * size)) == 0.0
        assert pearson_loss(samples([0.1] * size), samples([1.0] * size)) == 0.0
        assert pearson_loss(samples([100.1] * size), samples(list(range(size)))) == 1.0
    assert pearson_loss(samples([2, 2, 2]), samples([1, 2, 3])) == 1.0
    assert pearson_loss(samples([1, 2, 3], [1, 2, 3]), samples([1, 2, 3], [5, 5, 5])) == 0.5


def test_ranking_hinge_worked() -> None:
    # The reference's standard deviation is 0.5, so its two keys are 2 apart; reversed, each pair pays theta + 2.
    reference = samples([0, 1])
    assert ranking_hinge(reference, samples([1, 0])) == pytest.approx(THETA + 2, rel=ROUNDING, abs=0)
    # A twentieth of the distance is 0.1 of a standard deviation, half of the margin.
    assert ranking_hinge(reference, samples([0, 0.05])) == pytest.approx(THETA - 0.1, rel=ROUNDING, abs=0)
    assert ranking_hinge(reference, samples([3, 3])) == pytest.approx(THETA, rel=ROUNDING, abs=0)


@pytest.mark.parametrize("factor", [1.0, 1.5, 10.0])
def test_ranking_hinge_of_the_float_tensor_and_of_larger_copies_is_zero(factor: float) -> None:
    assert ranking_hinge(scores(), np.float32(factor) * scores()) == 0.0
    assert ranking_hinge(scores(), np.float32(factor) * scores() + 3) == 0.0


def test_ranking_hinge_of_a_flattened_copy_is_positive() -> None:
    assert ranking_hinge(scores(), np.float32(0.1) * scores()) > 0


@pytest.mark.parametrize("keys", [2, 3, 17, 197])
def test_ranking_hinge_sees_two_keys_swapped(keys: int) -> None:
    reference = np.random.default_rng(4).permutation(keys).astype(np.float32)[None, None]
    swapped = reference.copy()
    low, high = int(reference.argmin()), int(reference.argmax())
    swapped[..., [low, high]] = swapped[..., [high, low]]
    assert ranking_hinge(reference, reference) == 0.0
    assert ranking_hinge(reference, swapped) > 0


def test_ranking_hinge_lets_near_ties_swap() -> None:
    reference, swapped = samples([0, 0.01, 10]), samples([0.01, 0, 10])
    assert ranking_hinge(reference, swapped) == 0.0


def test_ranking_compares_the_keys_of_one_query_only() -> None:
    reference = np.array([[[0, 5, 10], [20, 25, 30]]], np.float32)
    moved = reference + np.array([[[50], [0]]], np.float32)  # one query's scores moved past the other's
    assert ranking_hinge(reference, moved) == 0.0
    assert ranking_hinge(reference, reference[..., ::-1]) > 0


def test_one_key_has_no_order() -> None:
    assert ranking_hinge(samples([3], [4]), samples([4], [3])) == 0.0


def test_ranking_loss_is_pearson_plus_gamma_hinge() -> None:
    x, y = scores(), scores() + scores(1)
    assert ranking_hinge(x, y) > 0
    assert ranking_loss(x, y) == pearson_loss(x, y) + GAMMA * ranking_hinge(x, y)
    assert (GAMMA, THETA) == (0.1, 0.2)  # as published


@EVERY
def test_against_one_reference_many_times_is_the_same(objective: Objective) -> None:
    reference, noise = scores(), scores(seed=1)
    loss = against(objective, reference)
    for size in (0.0, 0.1, 1.0, 0.1):  # what one call looks at is not changed for the next
        approximation = reference + np.float32(size) * noise
        assert loss(approximation) == objective(reference, approximation)
