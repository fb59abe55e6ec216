from dataclasses import replace

import numpy as np
import pytest

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams, weight_format
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.fit.initial_plan import ACTIVATION, make_plan
from onnxvitq.fit.step import LayerGain
from onnxvitq.fit.steps.bias import correct_biases, expected_error, row_requests
from onnxvitq.fit.steps.ranges import fit_ranges
from onnxvitq.numerics.affine import fake_quantize

QUERY, KEY, FC1 = "/attn/qkv/MatMul_part0", "/attn/qkv/MatMul_part1", "/mlp/fc1/MatMul"
# Steps, weights and inputs below are multiples of powers of two, so that every sum is exact.
STEP = QParams(spec=ACTIVATION, scale=np.array(0.25, np.float32), zero_point=np.array(0))
ABOVE, BELOW = 0.3125, 0.1875  # both become 0.25: errors of -1/16 and +1/16


def exact(layers: Layers, name: str, weight: np.ndarray) -> Layers:
    return replace(layers, constants={**layers.constants, f"{name}.weight": weight.astype(np.float32)})


def grid_weight(rows: int, columns: int) -> np.ndarray:
    """Multiples of 1/32 that the scale 1/32 holds exactly; every column sums to something."""
    weight = np.random.default_rng(0).integers(-60, 100, (rows, columns)) / 32
    assert (weight.sum(axis=0) != 0).all()
    return weight


def grid_params(columns: int) -> QParams:
    return QParams(spec=weight_format(8), scale=np.full(columns, 1 / 32), zero_point=np.zeros(columns, int))


@pytest.fixture
def fc1(layers: Layers, stats: Statistics) -> tuple[Layers, QuantPlan]:
    """A problem whose fc1 has an exact weight, and a plan of fc1 alone with exact scales."""
    layers = exact(layers, FC1, grid_weight(7, 3))
    plan = make_plan(layers.blockmap, QuantConfig(nodes_to_exclude=("block0.attn*",)))
    return layers, plan.with_params({"h": STEP, f"{FC1}.weight": grid_params(3)})


def rows_of(fitting: float, held: float, features: int) -> np.ndarray:
    rows = np.full((8, 5, features), fitting, np.float32)
    rows[3::4] = held
    return rows


def test_needs_rows_of_every_linears_input(layers: Layers, plan: QuantPlan, stats: Statistics) -> None:
    assert row_requests(layers, plan) == (
        StatisticsRequest(tensor="x", kind="rows"),
        StatisticsRequest(tensor="h", kind="rows"),
    )
    alone = make_plan(layers.blockmap, QuantConfig(nodes_to_exclude=("*qkv*",)))
    assert row_requests(layers, alone) == (StatisticsRequest(tensor="h", kind="rows"),)


def test_expected_error_worked() -> None:
    rows = np.array([[[1.0, 2.0]], [[3.0, 4.0]]], np.float32)
    weight = np.array([[1.0], [10.0]], np.float32)
    # Inputs 0.5 too large, the second weight 1 too large: (2.5 + 3.5 * 11) - (2 + 30).
    assert expected_error(rows, weight, (rows + 0.5, weight + np.array([[0.0], [1.0]], np.float32))) == 9.0


def test_expected_error_is_the_mean_of_the_three_terms_of_eq_16() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rng.standard_normal((4, 9, 6)), rng.standard_normal((6, 5))
    error_x, error_w = 0.1 * rng.standard_normal(rows.shape), 0.1 * rng.standard_normal(weight.shape)
    expected = (rows @ error_w + error_x @ weight + error_x @ error_w).mean(axis=(0, 1))
    single = [values.astype(np.float32) for values in (rows, weight, rows + error_x, weight + error_w)]
    got = expected_error(single[0], single[1], (single[2], single[3]))
    assert (got.shape, got.dtype) == ((5,), np.dtype(np.float32))
    assert np.abs(got - expected).max() < 1e-6  # operands of about 1 were rounded to float32


def test_a_constant_error_is_removed_exactly(fc1: tuple[Layers, QuantPlan], stats: Statistics) -> None:
    layers, plan = fc1
    stats = replace(stats, rows={"h": rows_of(ABOVE, ABOVE, 7)})
    after, outcome = correct_biases(layers, plan, stats)
    assert after.biases[FC1].tolist() == (layers.weight(FC1).sum(axis=0) / 16).tolist()  # fc1 had no bias
    held = stats.rows["h"][3::4]
    quantized = fake_quantize(held, STEP) @ fake_quantize(layers.weight(FC1), grid_params(3))
    assert not np.array_equal(quantized, held @ layers.weight(FC1))
    assert np.array_equal(quantized + after.biases[FC1], held @ layers.weight(FC1))
    # Before: one part in five, 14 dB; after: nothing, which is reported as 120 dB.
    assert outcome == LayerGain(before=round(20 * np.log10(5), 3), after=120.0, kept=1, layers=1)


def test_a_correction_that_does_not_help_held_out_samples_is_refused(
    fc1: tuple[Layers, QuantPlan], stats: Statistics
) -> None:
    layers, plan = fc1
    after, outcome = correct_biases(layers, plan, replace(stats, rows={"h": rows_of(ABOVE, BELOW, 7)}))
    assert after.biases == {}
    before = round(20 * np.log10(3), 3)  # 1/16 of 3/16
    assert outcome == LayerGain(before=before, after=before, kept=0, layers=1)


def test_without_an_error_there_is_no_correction(fc1: tuple[Layers, QuantPlan], stats: Statistics) -> None:
    layers, plan = fc1
    after, outcome = correct_biases(layers, plan, replace(stats, rows={"h": rows_of(0.5, 0.5, 7)}))
    assert after.biases == {}
    assert (outcome.kept, outcome.before, outcome.after) == (0, 120.0, 120.0)


def test_each_linear_of_a_group_is_judged_alone(layers: Layers, stats: Statistics) -> None:
    # The query reads a feature whose error stays, the key one whose error turns round.
    query, key = np.zeros((6, 4)), np.zeros((6, 5))
    query[0], key[1] = 1, 1
    layers = exact(exact(layers, QUERY, query), KEY, key)
    plan = make_plan(layers.blockmap, QuantConfig(nodes_to_exclude=(FC1, "block0.attn")))
    weights = {f"{QUERY}.weight": grid_params(4), f"{KEY}.weight": grid_params(5)}
    plan = plan.with_params({"x": STEP, **weights})
    rows = rows_of(ABOVE, ABOVE, 6)
    rows[3::4, :, 1] = BELOW
    after, outcome = correct_biases(layers, plan, replace(stats, rows={"x": rows}))
    assert list(after.biases) == [QUERY]
    expected = layers.bias(QUERY) + np.float32(1 / 16)  # the model's own bias, corrected
    assert after.biases[QUERY].tolist() == expected.tolist()
    assert (outcome.kept, outcome.layers) == (1, 2)


def test_fitted_plan_gains_and_keeps_its_scales(layers: Layers, plan: QuantPlan, stats: Statistics) -> None:
    rng = np.random.default_rng(5)
    rows = {name: np.abs(values) + rng.uniform(0, 1, values.shape[-1]) for name, values in stats.rows.items()}
    shifted = {name: values.astype(np.float32) for name, values in rows.items()}
    ranges = {**stats.ranges, **{name: (0.0, float(values.max()) / 8) for name, values in shifted.items()}}
    stats = replace(stats, rows=shifted, ranges=ranges)  # ranges too narrow: clipping leaves a mean error
    plan = fit_ranges(layers, plan, stats)
    after, outcome = correct_biases(layers, plan, stats)
    assert set(after.biases) == {QUERY, KEY, FC1}
    fitting, _ = split_samples(stats.rows["h"])
    params = plan.params("h"), plan.params(f"{FC1}.weight")
    assert params[0] is not None
    assert params[1] is not None
    weight = layers.weight(FC1)
    error = expected_error(fitting, weight, (fake_quantize(fitting, params[0]), fake_quantize(weight, params[1])))
    assert np.array_equal(after.biases[FC1], layers.bias(FC1) - error)  # held-out samples only judge
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.after > outcome.before
    assert after.decisions is plan.decisions
    assert plan.biases == {}  # the plan it got is as it was
