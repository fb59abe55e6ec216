"""What can be done so that fewer decisions are lost: sites of few bits are raised to 8, layers return to float."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from onnxvitq.core.formats import EIGHT_BITS, QParams
from onnxvitq.core.layers import products
from onnxvitq.core.plan import QuantPlan, linear_groups, only, planned_products, without_nodes
from onnxvitq.numerics.affine import params_from_range, params_from_weight
from onnxvitq.precision.network import PlannedNetwork

REASON = "returned to float to keep --max-drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change of a plan.

    Attributes:
        action: to raise the sites to 8 bits, or to return them to float.
        nodes: names of the linear layers that read one tensor, or of one product.
        tensors: names of their sites.
    """

    action: Literal["raise", "float"]
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]


def possible_remedies(network: PlannedNetwork, *, weights_stay: bool) -> tuple[list[Remedy], list[Remedy]]:
    """Everything that can be raised, and everything that can return to float, in the order of the network.

    Args:
        network: its plan is fitted.
        weights_stay: where a budget of bits is to be met as well, so that weights keep theirs.
    """
    decisions = network.plan.decisions
    floats = _returns_to_float(network)
    raises = [replace(remedy, action="raise") for remedy in floats]
    if weights_stay:
        activations = {name for name, decision in decisions.items() if decision.site.kind != "weight"}
        floats = [remedy for remedy in floats if activations.issuperset(remedy.tensors)]
        raises = [
            replace(remedy, tensors=tuple(name for name in remedy.tensors if name in activations)) for remedy in raises
        ]
    raises = [remedy for remedy in raises if any(decisions[name].spec.bits < EIGHT_BITS for name in remedy.tensors)]
    return raises, floats


def _returns_to_float(network: PlannedNetwork) -> list[Remedy]:
    """Of all that can be float on its own: linear layers that read one tensor, and products."""
    layers, plan = network.layers, network.plan
    remedies = []
    for tensor, names in linear_groups(layers, plan).items():
        weights = (layers.blockmap.linear(name).weight for name in names)
        remedies.append(Remedy(action="float", nodes=tuple(names), tensors=(tensor, *weights)))
    planned = planned_products(plan, layers.blockmap)
    remedies += [
        Remedy(action="float", nodes=(node,), tensors=operands)
        for node, operands in products(layers.blockmap)
        if node in planned
    ]
    return remedies


def remedied(network: PlannedNetwork, remedies: Sequence[Remedy], *, weights_stay: bool, written: bool) -> QuantPlan:
    """The network's plan with these remedies.

    Args:
        network: its plan is fitted.
        remedies: to apply.
        weights_stay: as in ``possible_remedies``.
        written: for a model that is written. A probe's readers are fixed: there a float layer is one without parameters.
    """
    raises = [remedy for remedy in remedies if remedy.action == "raise"]
    floats = [remedy for remedy in remedies if remedy.action == "float"]
    plan = raised(network, raises, weights_stay=weights_stay)
    if written:
        return without_nodes(plan, {node: REASON for remedy in floats for node in remedy.nodes})
    tensors = {tensor for remedy in floats for tensor in remedy.tensors}
    decisions = only(plan, plan.decisions.keys() - tensors).decisions
    return replace(_with_own_weights(plan, floats), decisions=decisions)


def raised(network: PlannedNetwork, remedies: Sequence[Remedy], *, weights_stay: bool) -> QuantPlan:
    """The plan with these sites at 8 bits: weights as they were before the fit, activations over the range they had."""
    plan, fitted = network.plan, dict[str, QParams]()
    if not weights_stay:  # weights of few bits stay solved
        plan = _with_own_weights(plan, remedies)
    decisions = dict(plan.decisions)
    for tensor in {tensor for remedy in remedies for tensor in remedy.tensors}:
        decision = decisions[tensor]
        spec, params = decision.spec.with_bits(EIGHT_BITS), decision.params
        assert params is not None  # the plan is fitted
        decisions[tensor] = replace(decision, spec=spec)
        if decision.site.kind == "weight":
            fitted[tensor] = params_from_weight(network.layers.constants[tensor], spec)
        else:
            observed = network.statistics.ranges.get(tensor)
            fitted[tensor] = params_from_range(*intended_range(params, observed), spec)
    return replace(plan, decisions=decisions).with_params(fitted)


def intended_range(params: QParams, observed: tuple[float, float] | None) -> tuple[float, float]:
    """(lowest, highest) of a quantizer of few bits, with what the rounding of its zero point cut off of what was observed.

    Of a GELU's output at 4 bits that is all that is negative, which 8 bits must not cut off.
    """
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = scale * (params.spec.qmin - zero), scale * (params.spec.qmax - zero)
    if observed is None:
        return low, high
    return min(low, max(observed[0], low - scale)), max(high, min(observed[1], high + scale))


def _with_own_weights(plan: QuantPlan, remedies: Sequence[Remedy]) -> QuantPlan:
    """The plan without the solved weights and corrected biases of what changes: they made up for errors that are gone."""
    nodes = {node for remedy in remedies for node in remedy.nodes}
    weights = {name: values for name, values in plan.weights.items() if name not in nodes}
    return replace(plan, weights=weights, biases={k: v for k, v in plan.biases.items() if k not in nodes})
