from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fitted_cases import Case, build_case, correlated, seeded_transformer

from onnxvitq.core.formats import weight_format
from onnxvitq.evaluation.saturation import describe_saturation
from onnxvitq.numerics.affine import params_from_weight, quantize
from onnxvitq.report.model_records import SaturationReport
from onnxvitq.targets.ort_cpu.limits import estimate_linears


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp("saturation")
    return build_case(seeded_transformer(1), correlated(1, 8), folder, bits=8)


def limited(case: Case) -> Case:
    """The same with weights that are free of saturation."""
    spec = weight_format(8, saturation_free=True)
    weights = {linear.weight for linear in case.layers.blockmap.linears}
    decisions = {
        name: replace(one, spec=spec, params=params_from_weight(case.layers.constants[name], spec))
        if name in weights
        else one
        for name, one in case.plan.decisions.items()
    }
    return replace(case, plan=replace(case.plan, decisions=decisions))


def test_layers_that_calibration_data_saturates_are_named(case: Case) -> None:
    found = estimate_linears(case.layers, case.plan, case.stats, workers=1)
    linears = case.layers.blockmap.linears
    assert set(found) == {linear.name for linear in linears}
    described = describe_saturation(case.layers, found)
    assert described.looked_at == len(linears)
    assert described.at_risk == sum(layer.at_risk for layer in described.layers) > 0
    sizes = [layer.largest for layer in described.layers]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1


def test_of_a_layer_the_sums_are_those_of_its_codes(case: Case) -> None:
    linear = case.layers.blockmap.linears[0]
    one = estimate_linears(case.layers, case.plan, case.stats, workers=1)[linear.name]
    params, weight_params = case.plan.params(linear.input), case.plan.params(linear.weight)
    assert params is not None
    assert weight_params is not None
    rows = case.stats.rows[linear.input]
    rows = rows[:, : max(1, 128 // len(rows))].reshape(-1, linear.in_features)
    x, w = quantize(rows, params).astype(int), quantize(case.layers.weight(linear.name), weight_params).astype(int)
    sums = np.stack([x[:, k : k + 2] @ w[k : k + 2] for k in range(0, len(w), 2)])
    assert one.cut == pytest.approx((np.abs(sums) > 32767).mean())


def test_limited_weights_are_at_no_risk(case: Case) -> None:
    safe = limited(case)
    found = estimate_linears(safe.layers, safe.plan, safe.stats, workers=1)
    assert describe_saturation(safe.layers, found) == SaturationReport(looked_at=len(found), at_risk=0)


def test_without_rows_it_is_said_what_some_input_would_do(case: Case) -> None:
    found = estimate_linears(case.layers, case.plan, replace(case.stats, rows={}), workers=1)
    assert all(one.largest == 0 for one in found.values())
    assert any(one.pairs > 0 for one in found.values())
