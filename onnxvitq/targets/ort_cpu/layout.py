"""Write a plan into a canonical graph in the layout that onnxruntime's CPU provider runs fastest.

* QuantizeLinear / DequantizeLinear on inputs only; softmax, normalisation, GELU and residual adds stay float.
* A linear is Gemm with an int8 per-channel weight and an int32 bias, which becomes QGemm with a float output (``linears``). A
  float bias Add behind a quantized MatMul would, in a static graph, first be fused to a float Gemm and never quantized.
* A linear whose input is quantized at run time is DynamicQuantizeLinear and MatMulInteger (``dynamic_linears``).
* Neighbouring Reshapes of joined rows are merged, and what works row by row between (the residual stream) stays on joined
  rows (``join_rows``).
* Where one token is read of the result, the last block computes that token alone (``pick_early``).
* One quantize pass a tensor, shared by everything that reads it. Both attention products are on uint8 (``products``).
* Zero points and zero vectors of one value, length and type are stored once (``draft``).
"""

import onnx_graphsurgeon as gs

from onnxvitq.core.errors import PlanError
from onnxvitq.core.layers import products
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.graph.canonical import run_pass
from onnxvitq.graph.passes.layout import merge_reshapes
from onnxvitq.graph.passes.rows import join_rows
from onnxvitq.graph.passes.selection import pick_early
from onnxvitq.targets.ort_cpu.activations import ActivationWriter
from onnxvitq.targets.ort_cpu.draft import Draft
from onnxvitq.targets.ort_cpu.dynamic_linears import DynamicLinearWriter
from onnxvitq.targets.ort_cpu.fusions import FUSED_INTO_GEMM
from onnxvitq.targets.ort_cpu.linears import LinearWriter
from onnxvitq.targets.ort_cpu.packing import Packer
from onnxvitq.targets.ort_cpu.products import ProductWriter
from onnxvitq.targets.ort_cpu.weights import WeightWriter


def apply_plan(graph: gs.Graph, layers: Layers, plan: QuantPlan, *, packed: bool = False) -> gs.Graph:
    """A new graph with the plan written into it; ``graph`` is left as it was (constants are shared, never written).

    Args:
        graph: canonical.
        layers: what was found in it.
        plan: with parameters.
        packed: weights of fewer than 8 bits take that many bits, unpacked when a session loads; else they are int8, which
            loads faster and computes the same.

    Raises:
        PlanError: the plan names a tensor or a node that the graph does not have.
    """
    _check(graph, plan)
    written = graph.copy()
    run_pass(written, pick_early)
    draft = Draft(written, layers, plan)
    packer = Packer(draft.edit, graph.opset) if packed else None
    activations, weights = ActivationWriter(draft), WeightWriter(draft, packer)
    in_products = ProductWriter(draft, activations)
    calibrated = LinearWriter(draft, activations, weights)
    measured = DynamicLinearWriter(draft, activations, weights)
    for linear in layers.blockmap.linears:
        if planned_linear(plan, linear):
            writer = measured if linear.input in plan.dynamic else calibrated
            writer.write(linear)
    for node, operands in products(layers.blockmap):
        in_products.write(node, operands)
    if packer is not None:
        packer.write()
    written.cleanup().toposort()
    run_pass(written, merge_reshapes)
    run_pass(written, _join_rows, shapes_stay_known=True)
    run_pass(written, merge_reshapes)
    return written


def _join_rows(graph: gs.Graph) -> int:
    return join_rows(graph, kept_apart=FUSED_INTO_GEMM)


def apply_products(graph: gs.Graph, layers: Layers, plan: QuantPlan) -> gs.Graph:
    """A new graph with the plan's products on codes and every linear layer left float, for whoever computes these himself."""
    written = graph.copy()
    draft = Draft(written, layers, plan)
    writer = ProductWriter(draft, ActivationWriter(draft))
    for node, operands in products(layers.blockmap):
        writer.write(node, operands)
    written.cleanup().toposort()
    return written


def _check(graph: gs.Graph, plan: QuantPlan) -> None:
    tensors, nodes, hint = graph.tensors(), {node.name for node in graph.nodes}, "was it made for another model?"
    for name, decision in plan.decisions.items():
        if name not in tensors:
            raise PlanError(name, "the plan names a tensor that the graph does not have", hint)
        for reader, _ in decision.site.consumers:
            if reader not in nodes:
                raise PlanError(reader, "the plan names a node that the graph does not have", hint)
    for name in (plan.dynamic | plan.per_token) - tensors.keys():
        raise PlanError(name, "the plan names a tensor that the graph does not have", hint)
    for name in plan.biases:
        if name not in nodes:
            raise PlanError(name, "the plan has a bias for a node that the graph does not have", hint)
