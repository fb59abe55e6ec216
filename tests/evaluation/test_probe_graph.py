"""One float graph that stands for every plan: bypassed it is the float model, and with a plan it is what would be written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fitted_cases import Case, build_case, correlated, seeded_transformer
from textgraph import proto_of, run

from onnxvitq.core.plan import QuantPlan, only
from onnxvitq.evaluation.probe_graph import probe_graph, probe_parameters
from onnxvitq.fit.steps.late_softmax.rewrite import divide_late
from onnxvitq.targets.ort_cpu.layout import apply_plan


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Depth one: in a deep model a code that the rounding of a sum flips changes the codes of all layers after it."""
    model, folder = seeded_transformer(0, depth=1), tmp_path_factory.mktemp("probe")
    return build_case(model, correlated(0, 4), folder, bits=5, attention="int8")


def probed(case: Case, plan: QuantPlan) -> np.ndarray:
    proto = proto_of(probe_graph(case.graph, case.layers, case.plan))
    return run(proto, {**case.feeds[0], **probe_parameters(case.layers, plan)})[0]


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_without_parameters_it_is_the_float_model(case: Case) -> None:
    exact = run(proto_of(case.graph.copy()), case.feeds[0])[0]
    assert largest_difference(probed(case, only(case.plan, ())), exact) < 1e-6  # sums in another order


def test_with_a_plan_it_is_the_written_model(case: Case) -> None:
    exact = run(proto_of(case.graph.copy()), case.feeds[0])[0]
    written = run(proto_of(apply_plan(case.graph, case.layers, case.plan)), case.feeds[0])[0]
    assert largest_difference(written, exact) > 1e-2
    assert largest_difference(probed(case, case.plan), written) < 1e-5


def test_weights_and_biases_of_the_plan_are_taken(case: Case) -> None:
    """The head's weight doubled and its bias raised: the logits are doubled and raised, as the head reads the same."""
    head = next(linear for linear in case.layers.blockmap.linears if linear.role == "head")
    plan = only(case.plan, ())
    bias = case.layers.bias(head.name)
    changed = plan.with_weights({head.name: 2 * case.layers.weight(head.name)}).with_biases({head.name: 2 * bias + 1})
    assert largest_difference(probed(case, changed), 2 * probed(case, plan) + 1) < 1e-6


def test_one_site_alone_can_be_quantized(case: Case) -> None:
    """A weight without its input, which no written model does."""
    weight = next(name for name, decision in case.plan.decisions.items() if decision.site.role == "head.weight")
    exact = probed(case, only(case.plan, ()))
    assert 1e-4 < largest_difference(probed(case, only(case.plan, {weight})), exact) < 0.1


def test_readers_that_the_plan_leaves_out_see_the_float_tensor(case: Case) -> None:
    tensor, decision = next((n, d) for n, d in case.plan.decisions.items() if len(d.site.consumers) == 3)
    fewer = replace(decision, site=replace(decision.site, consumers=decision.site.consumers[:1]))
    plan = replace(case.plan, decisions={**case.plan.decisions, tensor: fewer})
    graph = probe_graph(case.graph, case.layers, plan)
    readers = {node.name for node in graph.tensors()[f"{tensor}:dequantized"].outputs}
    assert readers == {decision.site.consumers[0][0]}


def test_a_layer_without_a_bias_gets_one(tmp_path: Path) -> None:
    from commandline import ATTENTION
    from textgraph import model_of

    feeds = [{"x": np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)}]
    case = build_case(model_of(ATTENTION), feeds, tmp_path, attention="int8")
    last = case.layers.blockmap.linears[-1]
    plan = only(case.plan, ())
    raised = plan.with_biases({last.name: np.ones(8, np.float32)})
    assert largest_difference(probed(case, raised), probed(case, plan) + 1) < 1e-6


def test_sums_of_late_divided_powers_are_those_of_their_codes(tmp_path: Path) -> None:
    model = seeded_transformer(0, depth=1)
    case = build_case(model, correlated(0, 2), tmp_path, attention="int8")
    late = divide_late(case.graph, case.layers.blockmap, ["b0_probs"])
    again = build_case(proto_of(late), correlated(0, 2), tmp_path, attention="int8")
    graph = probe_graph(again.graph, again.layers, again.plan)
    (total,) = (node for node in graph.nodes if node.op == "ReduceSum")
    assert total.inputs[0].name.endswith(":dequantized")


def test_the_graph_is_left_as_it_was(case: Case) -> None:
    before = proto_of(case.graph.copy()).SerializeToString()
    probe = probe_graph(case.graph, case.layers, case.plan)
    onnx.checker.check_model(proto_of(probe), full_check=True)
    assert proto_of(case.graph.copy()).SerializeToString() == before
