"""The closed form against oracles: gradient descent on the same objective, exhaustive ranks, and its own energy."""

import itertools

import numpy as np
import pytest
from fitted_cases import moments_of

from onnxvitq.numerics.lowrank import errors_by_rank, low_rank, share_budget
from onnxvitq.numerics.moments import Moments, output_error
from onnxvitq.numerics.ridge import best_bias

SEEDS = pytest.mark.parametrize("seed", range(4))


def case(seed: int, rank: int = 6, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, Moments]:
    """Correlated inputs with a mean, and residuals that depend on them through a matrix of that rank."""
    rng = np.random.default_rng(seed)
    z = (rng.standard_normal((400, 8)) @ rng.standard_normal((8, 8)) + 2).astype(np.float32)
    factors = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 5))
    target = (z @ factors + noise * rng.standard_normal((400, 5)) + 1).astype(np.float32)
    return z, target, moments_of(z, target, np.ones(len(z), np.float32))


def error(moments: Moments, product: np.ndarray) -> float:
    product = product.astype(np.float32)
    return float(output_error(moments, product, best_bias(moments, product)).sum())


@SEEDS
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_descent_from_a_random_start_finds_better(seed: int, rank: int) -> None:
    z, target, moments = case(seed)
    fit = low_rank(moments, rank, [1e-9])[0]
    z, target = z - z.mean(axis=0, dtype=np.float64), target - target.mean(axis=0, dtype=np.float64)
    rng = np.random.default_rng(seed + 100)
    b = rng.standard_normal((rank, 5))
    for _ in range(300):  # alternating least squares: each half is solved exactly
        a = np.linalg.lstsq(z, target @ np.linalg.pinv(b), rcond=None)[0]
        b = np.linalg.lstsq(z @ a, target, rcond=None)[0]
    oracle = float(((target - z @ a @ b) ** 2).sum())
    assert error(moments, fit.a @ fit.b) <= oracle * (1 + 1e-5)  # factors are float32
    assert error(moments, fit.a @ fit.b) == pytest.approx(oracle, rel=1e-3)  # and the oracle gets there too


@SEEDS
def test_energy_is_what_each_rank_takes_off(seed: int) -> None:
    _, _, moments = case(seed)
    fit = low_rank(moments, 5, [1e-9])[0]
    reached = [error(moments, fit.first(rank).a @ fit.first(rank).b) for rank in range(6)]
    assert -np.diff(reached) == pytest.approx(fit.energy, rel=1e-3, abs=1e-2)
    assert (np.diff(fit.energy) <= 0).all()


@SEEDS
def test_the_error_of_every_rank_on_other_rows_is_that_of_its_factors(seed: int) -> None:
    _, _, fitted = case(seed)
    _, _, held_out = case(seed + 50)
    fit = low_rank(fitted, 5, [1e-2])[0]
    direct = []
    for rank in range(6):
        product = fit.first(rank).a @ fit.first(rank).b
        direct.append(float(output_error(held_out, product, best_bias(fitted, product)).sum()))
    assert errors_by_rank(held_out, fitted, fit) == pytest.approx(direct, rel=1e-5)  # the direct product is float32


@pytest.mark.parametrize("outputs", [3, 8, 20], ids=["tall", "square", "wide"])
def test_the_strongest_directions_are_those_of_the_full_decomposition(outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    z = rng.standard_normal((300, 8)).astype(np.float32)
    target = rng.standard_normal((300, outputs)).astype(np.float32)
    moments = moments_of(z, target, np.ones(300, np.float32))
    values, vectors = np.linalg.eigh(moments.gram)
    for damping, fit in zip((1e-3, 1.0), low_rank(moments, 2, (1e-3, 1.0)), strict=True):
        whitener = vectors / np.sqrt(values + damping * moments.gram.diagonal().mean())
        left, strength, right = np.linalg.svd(whitener.T @ moments.cross, full_matrices=False)
        np.testing.assert_allclose(fit.energy, strength[:2] ** 2, rtol=1e-9)
        expected = whitener @ left[:, :2] @ np.diag(strength[:2]) @ right[:2]
        np.testing.assert_allclose(fit.a @ fit.b, expected, atol=1e-5 * np.abs(expected).max())


def test_it_weighs_inputs_by_how_much_they_vary() -> None:
    # The coefficient of the quiet input is ten times larger, its contribution ten times smaller: rank one takes the loud one.
    rng = np.random.default_rng(0)
    z = (rng.standard_normal((1000, 2)) * [10, 0.1]).astype(np.float32)
    factors = np.array([[1, 0], [0, 10]], np.float32)
    fit = low_rank(moments_of(z, z @ factors, np.ones(1000, np.float32)), 1)[0]
    assert np.abs(fit.a @ fit.b - [[1, 0], [0, 0]]).max() < 0.05


def test_every_column_of_the_inner_product_varies_by_one() -> None:
    z, _, moments = case(3)
    assert (z @ low_rank(moments, 4, [1e-6])[0].a).std(axis=0) == pytest.approx(np.ones(4), rel=1e-3)


def test_fewer_ranks_where_fewer_explain_anything() -> None:
    _, _, moments = case(1, rank=2, noise=0.0)
    fit = low_rank(moments, 5, [1e-9])[0]
    assert fit.energy[2:].sum() < 1e-6 * fit.energy.sum()
    constant = np.ones((50, 8), np.float32)
    nothing = low_rank(moments_of(constant, constant[:, :5], np.ones(50, np.float32)), 5)[0]
    assert nothing.a.shape == (8, 0)
    assert nothing.b.shape == (0, 5)


@pytest.mark.parametrize(("rank", "damping"), [(-1, 1e-3), (1, 0.0), (1, float("nan"))])
def test_senseless_arguments_are_refused(rank: int, damping: float) -> None:
    with pytest.raises(ValueError, match="expected rank >= 0 and damping > 0"):
        low_rank(case(0)[2], rank, [damping])


@SEEDS
def test_the_budget_goes_where_it_gains_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = {name: np.sort(rng.exponential(size=3))[::-1] for name in "abc"}
    costs = dict.fromkeys("abc", 7)  # of one cost the greedy way is the best one

    def gain(ranks: tuple[int, ...]) -> float:
        return float(sum(gains[name][:rank].sum() for name, rank in zip("abc", ranks, strict=True)))

    for budget in range(0, 70, 5):
        ranks = share_budget(gains, costs, budget)
        best = max(gain(some) for some in itertools.product(range(4), repeat=3) if 7 * sum(some) <= budget)
        assert sum(7 * rank for rank in ranks.values()) <= budget
        assert gain(tuple(ranks.values())) == pytest.approx(best)


def test_what_one_layer_is_too_dear_for_another_may_take() -> None:
    gains = {"dear": np.array([9.0, 8.0]), "cheap": np.array([0.5, 0.4]), "none": np.array([])}
    assert share_budget(gains, {"dear": 10, "cheap": 1, "none": 1}, 13) == {"dear": 1, "cheap": 2, "none": 0}
