from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fitted_cases import Case, correlated, seeded_transformer

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import CalibrationError
from onnxvitq.core.formats import weight_format
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.fit.initial_plan import ACTIVATION, make_plan
from onnxvitq.fit.steps.ranges import fit_ranges, min_max, range_requests
from onnxvitq.numerics.affine import params_from_range, params_from_weight


@pytest.fixture
def unfitted(layers: Layers) -> QuantPlan:
    return make_plan(layers.blockmap, QuantConfig(bits="w7a8"))


def test_needs_the_range_of_every_activation(layers: Layers, unfitted: QuantPlan) -> None:
    assert range_requests(layers, unfitted) == tuple(
        StatisticsRequest(tensor=name, kind="range") for name in ("x", "h", "q", "k", "p", "v")
    )


def test_every_site_gets_min_max_parameters(layers: Layers, unfitted: QuantPlan, stats: Statistics) -> None:
    plan = fit_ranges(layers, unfitted, stats)
    assert len(plan.decisions) == 9
    for name, decision in plan.decisions.items():
        params = plan.params(name)
        assert params is not None
        if decision.site.kind == "weight":
            expected = params_from_weight(layers.constants[name], weight_format(7))
        else:
            expected = params_from_range(*stats.ranges[name], ACTIVATION)
        assert np.array_equal(params.scale, expected.scale)
        assert np.array_equal(params.zero_point, expected.zero_point)
    assert all(decision.params is None for decision in unfitted.decisions.values())  # the plan it got is as it was


def test_probabilities_have_zero_point_zero(plan: QuantPlan) -> None:
    params = plan.params("p")
    assert params is not None
    assert params.zero_point == 0


def test_a_tensor_that_was_always_empty_is_named(layers: Layers, unfitted: QuantPlan, stats: Statistics) -> None:
    empty = replace(stats, ranges={**stats.ranges, "h": (np.inf, -np.inf)})
    with pytest.raises(CalibrationError, match="empty in every calibration sample") as caught:
        fit_ranges(layers, unfitted, empty)
    assert caught.value.where == "h"


def test_what_float32_has_no_scales_for_stays_float(case_of: Callable[..., Case]) -> None:
    """1e-20 times 1e-20 is nothing in float32: in units of it, every sum of products is zero."""
    case = case_of(seeded_transformer(0), correlated(0, 4))
    tiny = {case.layers.blockmap.linear("b0_fc1").weight, case.layers.blockmap.linear("head").weight}
    constants = {
        name: values * np.float32(1e-37 if name in tiny else 1) for name, values in case.layers.constants.items()
    }
    state = replace(case.state(), layers=replace(case.layers, constants=constants))
    plan, _ = min_max(state, case.context())
    lost = {name for name, reason in plan.kept_float.items() if "too small for scales in float32" in reason}
    assert lost == {"b0_fc1", "head"}
    assert not any(name in tiny for name in plan.decisions)
    others = [linear for linear in case.layers.blockmap.linears if linear.name not in lost]
    assert all(planned_linear(plan, linear) for linear in others)


def test_a_constant_operand_is_not_measured_and_has_the_range_of_its_values(
    with_products: Layers, more_stats: Statistics
) -> None:
    unfitted = make_plan(with_products.blockmap, QuantConfig())
    wanted = [request.tensor for request in range_requests(with_products, unfitted)]
    assert wanted == ["x", "h", "q", "k", "p", "v", "a", "b"]
    plan = fit_ranges(with_products, unfitted, more_stats)
    assert len(plan.decisions) == 12
    for name, (low, high) in {"table": (-0.5, 1.5), "a": (-1.0, 3.0)}.items():
        params, expected = plan.params(name), params_from_range(low, high, ACTIVATION)
        assert params is not None
        assert (params.scale, params.zero_point) == (expected.scale, expected.zero_point)
