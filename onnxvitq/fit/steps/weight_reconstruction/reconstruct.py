"""Weights that absorb the error: one linear layer after the other is solved again against what it really reads.

A layer whose output is added to a residual stream is solved against the *float* stream: it repairs what the stream carries
of earlier errors as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.formats import TensorFormat
from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import one_blas_thread
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.fit.quantized_inputs import quantized_input
from onnxvitq.fit.step import LayerGain, layer_gain
from onnxvitq.fit.steps.weight_reconstruction.side_by_side import SideBySide, affine, readers_by_input
from onnxvitq.fit.steps.weight_reconstruction.solve import LayerSolver, SolvedLayer, WeightReconstruction
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.runtime.memory import give_back


def reconstruct_weights(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: WeightReconstruction,
) -> tuple[QuantPlan, LayerGain]:
    """New weights, scales and biases for every planned linear layer, in the order of the network.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: with parameters for every site.
        feeds: calibration samples; one in four is held out (``calibration.held_out``).
        folder: for files; the caller removes it.
        options: see there.

    Returns:
        The plan, and the mean held-out SQNR in dB of the layers' outputs with the old and the new weights.

    Raises:
        InvalidGraphError: a subgraph does not run.
        OSError: no room in ``folder``.
    """
    quantized = options.target.write_products(graph, layers, plan)
    networks = SideBySide(graph, quantized, layers, feeds, folder, options.threads)
    gains: list[tuple[float, float, bool]] = []  # not the layers: their weights are in the plan
    with one_blas_thread():
        for tensor, readers in readers_by_input(layers.blockmap.linears).items():
            streams = networks.reach(tensor, readers)
            planned = [linear for linear in readers if planned_linear(plan, linear)]
            solvers = [LayerSolver(layers, plan, members, options) for members in _by_format(plan, planned)]
            solved = {layer.linear: layer for solver in solvers for layer in solver.solve(networks, streams)}
            give_back(cycles=False)
            for linear in readers:
                layer = solved.get(linear.name)
                if layer is None:
                    networks.compute(linear, None)
                    continue
                gains.append((layer.before, layer.after, layer.changed))
                plan = _with_layer(plan, linear, layer)
                weight = fake_quantize(layer.weight, layer.params)
                networks.compute(linear, affine(weight, layer.bias, partial(quantized_input, plan, tensor)))
            give_back(cycles=False)
    before, after = [gain[0] for gain in gains], [gain[1] for gain in gains]
    return plan, layer_gain(before, after, sum(gain[2] for gain in gains))


def _with_layer(plan: QuantPlan, linear: Linear, layer: SolvedLayer) -> QuantPlan:
    plan = plan.with_weights({linear.name: layer.weight}).with_biases({linear.name: layer.bias})
    return plan.with_params({linear.weight: layer.params})


def _by_format(plan: QuantPlan, linears: Sequence[Linear]) -> list[list[Linear]]:
    """The layers by the format of their weight."""
    formats: dict[TensorFormat, list[Linear]] = {}
    for linear in linears:
        formats.setdefault(plan.decisions[linear.weight].spec, []).append(linear)
    return list(formats.values())
