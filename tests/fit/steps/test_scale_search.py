from dataclasses import replace

import numpy as np
import pytest

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams, weight_format
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.fit.initial_plan import ACTIVATION, make_plan
from onnxvitq.fit.steps.ranges import fit_ranges
from onnxvitq.fit.steps.scale_search import SearchScales, search_requests
from onnxvitq.numerics.affine import fake_quantize, params_from_range
from onnxvitq.numerics.fit import ProductFit, Search, fit_linear, fit_product
from onnxvitq.numerics.objectives import OBJECTIVES, sqnr_db

QUERY, KEY, FC1 = "/attn/qkv/MatMul_part0", "/attn/qkv/MatMul_part1", "/mlp/fc1/MatMul"
SEARCH = Search(candidates=15, rounds=2)


def searching(objective: str) -> SearchScales:
    return SearchScales(objective=objective, search=SEARCH)


def params_of(plan: QuantPlan, tensor: str) -> QParams:
    params = plan.params(tensor)
    assert params is not None
    return params


def same(one: QParams, other: QParams) -> bool:
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.zero_point, other.zero_point)


def moved(before: QuantPlan, after: QuantPlan) -> set[str]:
    """The activations and weights whose parameters differ."""
    return {tensor for tensor in before.decisions if not same(params_of(before, tensor), params_of(after, tensor))}


def planned(layers: Layers, stats: Statistics, *excluded: str) -> QuantPlan:
    """Min-max parameters for what is not excluded."""
    config = QuantConfig(nodes_to_exclude=excluded)
    return fit_ranges(layers, make_plan(layers.blockmap, config), stats)


def edges_in_held_out(samples: np.ndarray) -> np.ndarray:
    """Small values in the samples that are fitted on, large ones in those that judge: a search that clips loses."""
    values = np.random.default_rng(0).uniform(-1, 1, samples.shape).astype(np.float32)
    values[3::4] = np.sign(values[3::4]) * 8
    return values


def fitted_linears(layers: Layers, stats: Statistics, tensor: str, names: list[str], objective: str) -> ProductFit:
    fitting, _ = split_samples(stats.rows[tensor])
    weight = np.concatenate([layers.weight(name) for name in names], axis=1)
    specs = (ACTIVATION, weight_format(8, saturation_free=True))
    return fit_linear(fitting, weight, specs, stats.ranges[tensor], OBJECTIVES[objective], SEARCH)


def fitted_product(stats: Statistics, left: str, right: str, objective: str) -> ProductFit:
    operands = split_samples(stats.lefts[left])[0], split_samples(stats.rights[right])[0]
    bounds = (stats.ranges[left], stats.ranges[right])
    return fit_product(*operands, (ACTIVATION, ACTIVATION), bounds, OBJECTIVES[objective], SEARCH)


def test_linears_are_grouped_by_the_tensor_they_read(layers: Layers, plan: QuantPlan) -> None:
    assert linear_groups(layers, plan) == {"x": [QUERY, KEY], "h": [FC1]}


def test_an_excluded_linear_is_in_no_group(layers: Layers, stats: Statistics) -> None:
    assert linear_groups(layers, planned(layers, stats, KEY)) == {"x": [QUERY], "h": [FC1]}
    assert linear_groups(layers, planned(layers, stats, "*qkv*", FC1)) == {}


def test_needs_rows_of_inputs_and_matrices_of_operands(layers: Layers, plan: QuantPlan) -> None:
    rows = [StatisticsRequest(tensor="x", kind="rows"), StatisticsRequest(tensor="h", kind="rows")]
    scores = [StatisticsRequest(tensor="q", kind="left"), StatisticsRequest(tensor="k", kind="right")]
    context = [StatisticsRequest(tensor="p", kind="left"), StatisticsRequest(tensor="v", kind="right")]
    assert search_requests(layers, plan) == (*rows, *scores, *context)


def test_needs_nothing_of_what_stays_float(layers: Layers, stats: Statistics) -> None:
    wanted = search_requests(layers, planned(layers, stats, "*scores", FC1))
    assert [(request.tensor, request.kind) for request in wanted] == [("x", "rows"), ("p", "left"), ("v", "right")]


def test_a_value_that_stands_left_is_a_left_operand(layers: Layers, stats: Statistics) -> None:
    attention = replace(layers.blockmap.attentions[0], probs_first=False)
    turned = replace(layers, blockmap=replace(layers.blockmap, attentions=(attention,)))
    wanted = search_requests(turned, planned(turned, stats))
    assert [(request.tensor, request.kind) for request in wanted[-2:]] == [("v", "left"), ("p", "right")]


def test_linears_that_read_one_tensor_share_its_scale_and_are_searched_together(
    layers: Layers, plan: QuantPlan, stats: Statistics
) -> None:
    after, _ = searching("mse").apply(layers, plan, stats)
    fit = fitted_linears(layers, stats, "x", [QUERY, KEY], "mse")
    assert fit.loss < fit.minmax_loss
    assert same(params_of(after, "x"), fit.left)
    assert np.array_equal(params_of(after, f"{QUERY}.weight").scale, fit.right.scale[:4])
    assert np.array_equal(params_of(after, f"{KEY}.weight").scale, fit.right.scale[4:])
    assert params_of(after, f"{KEY}.weight").zero_point.tolist() == [0] * 5
    alone = fitted_linears(layers, stats, "h", [FC1], "mse")
    assert same(params_of(after, "h"), alone.left)
    assert same(params_of(after, f"{FC1}.weight"), alone.right)


@pytest.mark.parametrize("objective", ["mse", "pearson"])
def test_products_are_searched_with_the_objective(
    layers: Layers, plan: QuantPlan, stats: Statistics, objective: str
) -> None:
    after, _ = searching(objective).apply(layers, plan, stats)
    for left, right in (("q", "k"), ("p", "v")):
        fit = fitted_product(stats, left, right, objective)
        assert same(params_of(after, left), fit.left)
        assert same(params_of(after, right), fit.right)


def test_ranking_is_for_the_scores_and_pearson_for_the_rest(layers: Layers, plan: QuantPlan, stats: Statistics) -> None:
    # Lengths of queries and keys spread over decades: the two objectives choose differently.
    # The samples that judge are copies of some that were fitted on, so that both results would be kept.
    rng = np.random.default_rng(0)
    order = [0, 1, 2, 2, 3, 4, 5, 4]
    queries = (rng.standard_normal((6, 2, 10, 4)) * np.exp(2 * rng.standard_normal((6, 2, 10, 1))))[order]
    keys = (rng.standard_normal((6, 2, 4, 10)) * np.exp(2 * rng.standard_normal((6, 2, 1, 10))))[order]
    bounds = {"q": (queries.min(), queries.max()), "k": (keys.min(), keys.max())}
    stats = replace(
        stats,
        ranges={**stats.ranges, **bounds, "p": bounds["q"], "v": bounds["k"]},
        lefts=dict.fromkeys("qp", queries.astype(np.float32)),
        rights=dict.fromkeys("kv", keys.astype(np.float32)),
    )
    plan = planned(layers, stats)
    after, _ = searching("ranking").apply(layers, plan, stats)
    ranked, correlated = (fitted_product(stats, "q", "k", objective) for objective in ("ranking", "pearson"))
    assert not (same(ranked.left, correlated.left) and same(ranked.right, correlated.right))
    assert same(params_of(after, "q"), ranked.left)
    assert same(params_of(after, "k"), ranked.right)
    context = fitted_product(stats, "p", "v", "pearson")
    assert same(params_of(after, "p"), context.left)
    assert same(params_of(after, "v"), context.right)
    linears = fitted_linears(layers, stats, "x", [QUERY, KEY], "pearson")
    assert same(params_of(after, "x"), linears.left)


def test_what_loses_on_held_out_samples_is_not_kept(layers: Layers, stats: Statistics) -> None:
    rows = {**stats.rows, "x": edges_in_held_out(stats.rows["x"])}
    stats = replace(stats, rows=rows, ranges={**stats.ranges, "x": (-8.0, 8.0)})
    plan = planned(layers, stats)
    fit = fitted_linears(layers, stats, "x", [QUERY, KEY], "mse")
    assert fit.loss < fit.minmax_loss  # on what it was fitted on it does win
    after, gain = searching("mse").apply(layers, plan, stats)
    assert moved(plan, after) - {f"{FC1}.weight"} == {"h", "q", "k", "p", "v"}
    assert (gain.kept, gain.layers) == (3, 4)


def test_a_product_that_loses_on_held_out_samples_is_not_kept(layers: Layers, stats: Statistics) -> None:
    lefts = {**stats.lefts, "q": edges_in_held_out(stats.lefts["q"])}
    stats = replace(stats, lefts=lefts, ranges={**stats.ranges, "q": (-8.0, 8.0)})
    plan = planned(layers, stats)
    after, gain = searching("mse").apply(layers, plan, stats)
    assert {"x", "h", "p", "v"} <= moved(plan, after)
    assert {"q", "k"}.isdisjoint(moved(plan, after))
    assert gain.kept == 3


def test_when_everything_loses_the_plan_is_min_max(layers: Layers, stats: Statistics) -> None:
    rows = {**stats.rows, "x": edges_in_held_out(stats.rows["x"])}
    stats = replace(stats, rows=rows, ranges={**stats.ranges, "x": (-8.0, 8.0)})
    plan = planned(layers, stats, FC1, "block0.attn")
    after, gain = searching("mse").apply(layers, plan, stats)
    assert moved(plan, after) == set()
    assert (gain.kept, gain.layers) == (0, 1)
    assert gain.before == gain.after


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_layer_loses_on_held_out_samples(layers: Layers, plan: QuantPlan, stats: Statistics, objective: str) -> None:
    after, _ = searching(objective).apply(layers, plan, stats)
    for tensor, names in linear_groups(layers, plan).items():
        _, held = split_samples(stats.rows[tensor])
        losses = []
        for chosen in (after, plan):
            weights = [fake_quantize(layers.weight(n), params_of(chosen, f"{n}.weight")) for n in names]
            output = fake_quantize(held, params_of(chosen, tensor)) @ np.concatenate(weights, axis=1)
            reference = held @ np.concatenate([layers.weight(n) for n in names], axis=1)
            losses.append(OBJECTIVES["pearson" if objective == "ranking" else objective](reference, output))
        assert losses[0] <= losses[1]


def test_outcome_is_the_held_out_sqnr_before_and_after(layers: Layers, stats: Statistics) -> None:
    plan = planned(layers, stats, "block0.attn*")  # fc1 alone
    after, gain = searching("mse").apply(layers, plan, stats)
    _, held = split_samples(stats.rows["h"])
    weight = layers.weight(FC1)
    measured = []
    for chosen in (plan, after):
        output = fake_quantize(held, params_of(chosen, "h")) @ fake_quantize(weight, params_of(chosen, f"{FC1}.weight"))
        measured.append(round(sqnr_db(held @ weight, output), 3))
    assert [gain.before, gain.after] == measured
    assert measured[1] > measured[0]
    assert (gain.kept, gain.layers) == (1, 1)


def test_an_excluded_linear_of_a_group_keeps_out_of_the_search(layers: Layers, stats: Statistics) -> None:
    plan = planned(layers, stats, QUERY)
    after, _ = searching("mse").apply(layers, plan, stats)
    fit = fitted_linears(layers, stats, "x", [KEY], "mse")
    assert f"{QUERY}.weight" not in after.decisions
    assert same(params_of(after, f"{KEY}.weight"), fit.right)


def test_seven_bit_weights_are_searched_as_seven_bits(layers: Layers, stats: Statistics) -> None:
    config = QuantConfig(bits="w7a8")
    plan = fit_ranges(layers, make_plan(layers.blockmap, config), stats)
    after, _ = searching("mse").apply(layers, plan, stats)
    for name in (QUERY, KEY, FC1):
        params = params_of(after, f"{name}.weight")
        assert params.spec == weight_format(7, saturation_free=True)
        largest = np.abs(layers.weight(name)).max(axis=0)
        assert (params.scale >= 0.499 * largest / 63).all()  # half of min-max's at least, up to float32


def test_the_plan_it_got_is_as_it_was(layers: Layers, plan: QuantPlan, stats: Statistics) -> None:
    searching("mse").apply(layers, plan, stats)
    for tensor in "xhqkpv":
        assert same(params_of(plan, tensor), params_from_range(*stats.ranges[tensor], ACTIVATION))


def test_three_samples_are_enough(layers: Layers, stats: Statistics) -> None:
    first = {
        part: {name: values[:3] for name, values in getattr(stats, part).items()}
        for part in ("rows", "lefts", "rights")
    }
    stats = replace(stats, count=3, **first)
    plan = planned(layers, stats)
    _, gain = searching("mse").apply(layers, plan, stats)
    assert gain.kept == 4  # judged on what it was fitted on, it cannot lose
