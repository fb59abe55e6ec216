"""The state of a graph before anything is fitted to it, and what all steps need to know of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxvitq.blocks.find import find_blocks
from onnxvitq.calibration.kept import KeptStatistics
from onnxvitq.core.handover import Handover
from onnxvitq.core.layers import BlockMap, products
from onnxvitq.core.plan import Layers, QuantPlan, without_nodes
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Step
from onnxvitq.graph.query import constants
from onnxvitq.precision.groups import starting_formats
from onnxvitq.runtime.memory import give_back


def start_state(graph: gs.Graph, context: FitContext, roles: Mapping[str, str] | None = None) -> FitState:
    """A plan of formats without parameters for a canonical graph, and no statistics.

    Args:
        graph: canonical.
        context: of the fit.
        roles: of linear layers by name, where they are known: a Mul that was written between an activation and fc2 hides an
            MLP, and a layer keeps the role it had without it.

    Raises:
        NoBlocksFoundError: there is no attention in the graph.
        ConfigError: a pattern of the options matches nothing.
    """
    known = roles or {}
    found = find_blocks(graph, context.measurer.model)
    linears = tuple(replace(linear, role=known.get(linear.name, linear.role)) for linear in found.linears)
    blockmap = replace(found, linears=linears)
    layers = Layers(blockmap=blockmap, constants=constants(graph, _operand_names(blockmap)))
    plan = make_plan(blockmap, starting_formats(context.config, layers), context.target)
    give_back()
    return FitState(graph=graph, layers=layers, plan=plan, kept=KeptStatistics(Statistics()))


def changed_state(state: FitState, graph: gs.Graph, context: FitContext) -> FitState:
    """The state of an exactly changed graph: layers that were returned to float stay so, scores so far still count."""
    changed = start_state(graph, context, {linear.name: linear.role for linear in state.layers.blockmap.linears})
    plan = without_nodes(changed.plan, _returned_to_float(state, changed.plan))
    return replace(changed, plan=plan, score=state.score, best_db=state.best_db)


def calibrate(
    graph: Handover[gs.Graph], context: FitContext, steps: Sequence[Step], count: int | None
) -> tuple[Handover[FitState], FitContext]:
    """The first sweep: everything that the steps need of the graph as it is, and the float outputs.

    Args:
        graph: canonical.
        context: of the fit, without float outputs.
        steps: all of the fit.
        count: of calibration samples, where it is known.

    Returns:
        The state to begin with, and the context with the float outputs.

    Raises:
        CalibrationError: a tensor holds a NaN or an infinity, or there is no sample.
    """
    state = start_state(graph.take(), context)
    requests = (*requests_of(steps, state, context), StatisticsRequest(tensor=context.output, kind="whole"))
    statistics = context.measurer.measure(state.graph, requests, context.sampling(state), count)
    known = replace(context, float_outputs=statistics.wholes[context.output])
    return Handover(replace(state, kept=KeptStatistics(statistics))), known


def requests_of(steps: Sequence[Step], state: FitState, context: FitContext) -> tuple[StatisticsRequest, ...]:
    """What all steps need, each statistic once: one sweep serves them all."""
    return tuple(dict.fromkeys(request for step in steps for request in step.needs(state, context)))


def _returned_to_float(state: FitState, plan: QuantPlan) -> dict[str, str]:
    """Linear layers that a step has returned to float, with the reason, that are not so by the options. Products are looked at
    again with the new baseline.
    """
    linears = {linear.name for linear in state.layers.blockmap.linears}
    return {
        name: reason
        for name, reason in state.plan.kept_float.items()
        if name in linears and name not in plan.kept_float
    }


def _operand_names(blockmap: BlockMap) -> set[str]:
    """Weights, biases, and the operands of products, a few of which are constants."""
    linears = {name for linear in blockmap.linears for name in (linear.weight, linear.bias) if name}
    return linears | {tensor for _, pair in products(blockmap) for tensor in pair}
