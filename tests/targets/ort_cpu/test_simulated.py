"""Formats without a kernel: float operators give the values of the codes to the bit, and the audit says what is simulated."""

from dataclasses import replace

import numpy as np
import pytest
from textgraph import graph_of, proto_of, run

from onnxvitq.core.formats import NumberFormat, PerChannel, TensorFormat, activation_format
from onnxvitq.core.layers import BlockMap, Site
from onnxvitq.core.plan import Layers, QuantPlan, SiteDecision
from onnxvitq.numerics.affine import fake_quantize, params_from_range
from onnxvitq.targets.ort_cpu.activations import ActivationWriter
from onnxvitq.targets.ort_cpu.draft import Draft
from onnxvitq.targets.ort_cpu.native import is_native, why_simulated

INT16 = TensorFormat(NumberFormat(bits=16, signed=True, symmetric=True))
UINT12 = TensorFormat(NumberFormat(bits=12, signed=False, symmetric=False))
INT8 = TensorFormat(NumberFormat(bits=8, signed=True, symmetric=True))
NOTHING = Layers(
    blockmap=BlockMap(blocks=(), attentions=(), linears=(), norms=(), unmatched=()),
    constants={},
)


@pytest.mark.parametrize("spec", [INT16, UINT12, INT8], ids=["int16", "uint12", "int8"])
@pytest.mark.parametrize("level", ["disabled", "all"])
def test_values_are_those_of_the_codes_to_the_bit(spec: TensorFormat, level: str) -> None:
    params = params_from_range(-1.5, 2.0, spec)
    graph = graph_of("(float[N,500] x) => (float[N,500] y) { y = Relu(x) }")
    writer = ActivationWriter(Draft(graph, NOTHING, QuantPlan()))
    written = writer.calibrated(graph.inputs[0], params, "x")
    assert writer.calibrated(graph.inputs[0], params, "x") is written  # one a tensor
    written.shape = graph.outputs[0].shape
    graph.outputs = [written]
    ties = (np.arange(-250, 250, dtype=np.float32) + np.float32(0.5)) * params.scale
    x = np.stack([np.linspace(-3, 3, 500, dtype=np.float32), ties])  # some are clipped at either end
    got = run(proto_of(graph.cleanup()), {"x": x}, level)[0]
    np.testing.assert_array_equal(got, fake_quantize(x, params))
    assert not np.array_equal(got, fake_quantize(x, replace(params, scale=params.scale * np.float32(1.01))))


@pytest.mark.parametrize(
    ("spec", "native"),
    [
        (activation_format(8), True),
        (activation_format(4), True),
        (UINT12, False),
        (INT8, False),
        (INT16, False),
        (TensorFormat(NumberFormat(bits=8, signed=False, symmetric=False), PerChannel(axis=1)), False),
    ],
)
def test_which_formats_have_kernels(spec: TensorFormat, native: bool) -> None:
    assert is_native(spec) is native


def test_why_a_product_is_simulated() -> None:
    def decided(name: str, spec: TensorFormat) -> SiteDecision:
        return SiteDecision(site=Site(name=name, kind="activation", role="r", consumers=()), spec=spec)

    plan = QuantPlan(decisions={"x": decided("x", activation_format(8)), "y": decided("y", INT16)})
    assert why_simulated(plan, ["x"]) == why_simulated(plan, ["elsewhere"]) == ""
    assert why_simulated(plan, ["x", "y"]).endswith("no integer kernel of int16 activations")
