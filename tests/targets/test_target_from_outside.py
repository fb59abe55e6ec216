"""A runtime that the package does not know is one object: a fit writes and evaluates through it, and the report names it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from fitted_cases import correlated, seeded_transformer
from textgraph import run

from onnxvitq.api import Result, quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import TensorFormat, activation_format, weight_format
from onnxvitq.core.layers import BlockMap, Linear
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.core.statistics import Statistics
from onnxvitq.graph.edit import Editor
from onnxvitq.numerics.affine import quantize as codes_of
from onnxvitq.numerics.saturation import Saturation
from onnxvitq.report.model_records import Audit, FloatLayer, LayerCounts

FEEDS = [feed["tokens"] for feed in correlated(0, 16)]
REASON = "simulated: the test's runtime has no integer kernels"


class PlainMatMuls:
    """Writes a linear as MatMul(DQ(Q(x)), DQ(W)), whatever a runtime makes of it; products of activations stay float."""

    name = "plain matmuls"

    def __init__(self) -> None:
        self.packed: list[bool] = []  # of each plan that was written

    def weight_format(self, bits: int) -> TensorFormat:
        return weight_format(bits)

    def activation_format(self, bits: int) -> TensorFormat:
        return activation_format(bits)

    def write(self, graph: gs.Graph, layers: Layers, plan: QuantPlan, *, packed: bool = False) -> gs.Graph:
        self.packed.append(packed)
        written = graph.copy()
        edit, nodes = Editor(written), {node.name: node for node in written.nodes}
        for linear in layers.blockmap.linears:
            if planned_linear(plan, linear):
                write_linear(edit, nodes, layers, plan, linear)
        written.cleanup().toposort()
        return written

    def write_products(self, graph: gs.Graph, layers: Layers, plan: QuantPlan) -> gs.Graph:
        del layers, plan
        return graph.copy()

    def audit(self, model: Path, blockmap: BlockMap, plan: QuantPlan, threads: int) -> Audit:
        del model, threads

        def counts(kind: str) -> LayerCounts:
            linears = [linear for linear in blockmap.linears if linear.kind == kind]
            return LayerCounts(
                found=len(linears),
                quantized=sum(planned_linear(plan, linear) for linear in linears),
                integer_kernels=0,
                simulated=sum(planned_linear(plan, linear) for linear in linears),
                in_float=tuple(FloatLayer(name=linear.name, reason=REASON) for linear in linears),
            )

        none = LayerCounts(found=0, quantized=0, integer_kernels=0)
        return Audit(
            linears=counts("linear"),
            patch_embedding=counts("patch_embedding"),
            attention_products=none,
            other_products=none,
        )

    def estimate_saturation(
        self, layers: Layers, plan: QuantPlan, statistics: Statistics, workers: int
    ) -> Mapping[str, Saturation]:
        del layers, plan, statistics, workers
        return {}


def write_linear(edit: Editor, nodes: Mapping[str, gs.Node], layers: Layers, plan: QuantPlan, linear: Linear) -> None:
    node, name = nodes[linear.name], linear.name
    inputs, weights = plan.params(linear.input), plan.params(linear.weight)
    assert inputs is not None
    assert weights is not None
    scale, zero = edit.constant(f"{name}_scale", inputs.scale), edit.constant(f"{name}_zero", inputs.zero_point)
    codes = edit.node("QuantizeLinear", f"{name}_quantize", [node.inputs[0], scale, zero], dtype=np.uint8)
    weight = codes_of(plan.weights.get(name, layers.weight(name)), weights)
    constants = {"weight": weight, "weight_scale": weights.scale, "weight_zero": np.zeros(weights.scale.shape, np.int8)}
    operands = [edit.constant(f"{name}_{part}", values) for part, values in constants.items()]
    node.inputs = [
        edit.node("DequantizeLinear", f"{name}_dequantize", [codes, scale, zero]),
        edit.node("DequantizeLinear", f"{name}_weight_dequantize", operands, axis=1),
    ]
    if linear.bias_node and name in plan.biases:
        last, bias = nodes[linear.bias_node], edit.constant(f"{name}_bias", plan.biases[name])
        last.inputs = [bias if isinstance(tensor, gs.Constant) else tensor for tensor in last.inputs]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "model.onnx"
    onnx.save(seeded_transformer(0, tokens="9"), path)
    return path


@pytest.fixture(scope="module")
def target() -> PlainMatMuls:
    return PlainMatMuls()


@pytest.fixture(scope="module")
def result(model: Path, target: PlainMatMuls) -> Result:
    config = QuantConfig(threads=1, attention="float", activations="static")
    return quantize(model, FEEDS, model.with_name("out.onnx"), config, target=target)


def test_plans_are_evaluated_and_written_through_it(result: Result, target: PlainMatMuls) -> None:
    assert target.packed.count(True) == 1  # the file
    assert target.packed.index(True) == len(target.packed) - 1 > 3  # after all that was evaluated
    operators = [node.op_type for node in onnx.load(result.output).graph.node]
    linears = result.report.audit.linears
    assert operators.count("MatMul") >= linears.found == linears.quantized > 0
    assert "Gemm" not in operators
    assert operators.count("QuantizeLinear") == linears.quantized


def test_the_written_model_is_near_the_float_one(model: Path, result: Result) -> None:
    exact, quantized = (run(onnx.load(path), {"tokens": FEEDS[0]})[0] for path in (model, result.output))
    power = float((exact**2).sum() / ((quantized - exact) ** 2).sum())
    assert 25 < 10 * np.log10(power) < 80


def test_the_report_names_it_and_has_its_counts(result: Result) -> None:
    report = result.report.to_dict()
    assert report["target"] == "plain matmuls"
    assert report["audit_passed"]
    assert report["linears"]["integer_kernels"] == 0
    assert report["linears"]["simulated"] == report["linears"]["quantized"]
    assert {layer["reason"] for layer in report["linears"]["float"]} == {REASON}
    assert report["saturation"]["looked_at"] == 0
