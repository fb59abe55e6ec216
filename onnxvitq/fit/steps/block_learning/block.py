"""A unit of the network with learnable quantizers in it, as torch runs it; and what it learned, as a plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import Linear, products
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear, planned_products
from onnxvitq.fit.steps.block_learning.network import BlockSubgraph, Operand, Replacement, Values, run
from onnxvitq.fit.steps.block_learning.quantizers import (
    ActivationQuantizer,
    GroupBranch,
    WeightQuantizer,
    round_through,
)
from onnxvitq.graph.query import row_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What is learned. branch: the factors of low rank. scales: of activations and their zero points. focus: of softmax
    outputs. weights: codes and scales of the weights, and the biases.
    """

    branch: bool = True
    scales: bool = True
    focus: bool = True
    weights: bool = True


class QuantizedUnit(nn.Module):
    """A unit in which every planned product computes what its codes will compute.

    Modules are kept by number, as names of tensors may hold what torch does not allow in names.
    """

    def __init__(self, unit: BlockSubgraph, layers: Layers, plan: QuantPlan, learned: Learned) -> None:
        super().__init__()
        self.unit, self.plan, self._layers = unit, plan, layers
        nodes = {node.name: node for node in unit.nodes}
        self.linears = [one for one in layers.blockmap.linears if one.name in nodes and planned_linear(plan, one)]
        self._sites = nn.ModuleList()
        self._site_of: dict[str, int] = {}
        self._operands: dict[tuple[str, int], Operand] = {}
        probs = {attention.probs for attention in layers.blockmap.attentions}
        planned = set(planned_products(plan, layers.blockmap))
        wanted = [(one.input, one.name, 0) for one in self.linears]
        for node, pair in products(layers.blockmap):
            if node in nodes and node in planned:
                wanted += [(tensor, node, port) for port, tensor in enumerate(pair)]
        for tensor, node, port in wanted:
            elsewhere = any(reader not in nodes for reader, _ in plan.decisions[tensor].site.consumers)
            allowed = learned.focus if tensor in probs else learned.scales
            quantizer = self._site(tensor, learned=allowed and not elsewhere)
            if node in planned:
                self._operands[node, port] = quantizer
                for total in row_sums(nodes[node].inputs[port]):
                    self._operands[total.name, 0] = quantizer
        readers = [one.weight for one in layers.blockmap.linears]
        self._weights = nn.ModuleList(
            WeightQuantizer(
                plan.weights.get(one.name, layers.weight(one.name)),
                _known(plan, one.weight),
                learned=learned.weights and readers.count(one.weight) == 1,
            )
            for one in self.linears
        )
        self._biases = nn.ParameterList(
            nn.Parameter(
                torch.from_numpy(np.array(plan.biases.get(one.name, layers.bias(one.name)))),
                requires_grad=learned.weights,
            )
            for one in self.linears
        )
        self._branches = nn.ModuleList()
        self._branch_of: dict[str, tuple[int, int]] = {}
        for names in self._groups():
            for place, name in enumerate(names):
                self._branch_of[name] = (len(self._branches), place)
            self._branches.append(GroupBranch([plan.branches[name] for name in names]))
        for parameter in self._branches.parameters():
            parameter.requires_grad_(learned.branch)
        self._current: Sequence[Tensor] = ()
        self._replaced = dict(self._replacements())

    def weights(self) -> list[Tensor]:
        """Of the linears, as their codes stand for them: computed once where several samples are run one by one."""
        return [weight() for weight in self._weights]

    def forward(self, values: Mapping[str, Tensor], weights: Sequence[Tensor] | None = None) -> Values:
        """Inputs by name -> outputs by name; ``weights``: as ``weights()`` gave them, if they are known."""
        self._current = self.weights() if weights is None else weights
        return run(self.unit, values, self._replaced, self._operands)

    def parameter_groups(self, rates: Mapping[str, float]) -> list[dict[str, object]]:
        """For an optimiser: the parameters that are learned, by kind ("codes", "scales", "biases", "branch"), each with its
        rate; those of factors and biases in units of their own size.
        """
        weights = [weight for weight in self._weights if isinstance(weight, WeightQuantizer)]
        scales = [
            parameter
            for module in (*weights, *self._sites)
            for name, parameter in module.named_parameters()
            if name == "log_scale"
        ]
        zeros = [parameter for module in self._sites for name, parameter in module.named_parameters() if name == "zero"]
        groups: list[tuple[list[nn.Parameter], float]] = [
            ([weight.codes for weight in weights], rates["codes"]),
            (scales, rates["scales"]),
            (zeros, rates["zeros"]),
        ]
        for bias, weight in zip(self._biases, weights, strict=True):
            # A step that moves the output by about as much as a step of one code of an input of size one.
            groups.append(([bias], rates["biases"] * float(weight.log_scale.detach().exp().mean())))
        for parameter in self._branches.parameters():
            size = float(parameter.detach().square().mean().sqrt()) if parameter.dim() else 1.0
            groups.append(([parameter], rates["branch"] * max(size, 1e-3)))
        return [
            {"params": [one for one in members if one.requires_grad], "lr": rate}
            for members, rate in groups
            if any(one.requires_grad for one in members)
        ]

    @property
    def branches(self) -> dict[str, GroupBranch]:
        """The branches by the tensor that they read."""
        found = {}
        for linear in self.linears:
            if linear.name in self._branch_of:
                module = self._branches[self._branch_of[linear.name][0]]
                assert isinstance(module, GroupBranch)
                found[linear.input] = module
        return found

    def set_drop(self, share: float) -> None:
        """Of activations that are not quantized while training."""
        for name in self._site_of:
            self._quantizer(name).drop = share

    def result(self) -> QuantPlan:
        """The plan with what was learned."""
        plan = self.plan.with_params({name: self._quantizer(name).params() for name in self._site_of})
        for linear, weight, bias in zip(self.linears, self._weights, self._biases, strict=True):
            assert isinstance(weight, WeightQuantizer)
            values, params = weight.result()
            if weight.codes.requires_grad:
                plan = plan.with_weights({linear.name: values}).with_params({linear.weight: params})
            if bias.requires_grad:
                plan = plan.with_biases({linear.name: bias.detach().numpy()})
        found = {}
        for name, (group, place) in self._branch_of.items():
            module = self._branches[group]
            assert isinstance(module, GroupBranch)
            found[name] = module.results()[place]
        return plan.with_branches(found)

    def _site(self, tensor: str, *, learned: bool) -> ActivationQuantizer:
        if tensor not in self._site_of:
            self._site_of[tensor] = len(self._sites)
            self._sites.append(ActivationQuantizer(_known(self.plan, tensor), learned=learned))
        return self._quantizer(tensor)

    def _quantizer(self, tensor: str) -> ActivationQuantizer:
        module = self._sites[self._site_of[tensor]]
        assert isinstance(module, ActivationQuantizer)
        return module

    def _groups(self) -> Iterator[list[str]]:
        """Names of linears with a branch, by the tensor they read and the A they have."""
        groups: dict[tuple[str, bytes], list[str]] = {}
        for linear in self.linears:
            if linear.name in self.plan.branches:
                groups.setdefault((linear.input, self.plan.branches[linear.name].a.tobytes()), []).append(linear.name)
        yield from groups.values()

    def _replacements(self) -> Iterator[tuple[str, Replacement]]:
        """Each linear is computed at the node that adds its bias; the product before it computes nothing."""
        for index, linear in enumerate(self.linears):
            if linear.bias_node:
                yield linear.name, _nothing(linear)
            yield linear.bias_node or linear.name, self._linear(index, linear)

    def _linear(self, index: int, linear: Linear) -> Callable[[Values], Tensor]:
        quantizer, weight, bias = self._quantizer(linear.input), self._weights[index], self._biases[index]
        assert isinstance(weight, WeightQuantizer)

        def apply(known: Values) -> Tensor:
            codes = quantizer(known[linear.input])
            # The bias is written in units of one step of the product: coarse where both have few bits.
            unit = (quantizer.log_scale + weight.log_scale).detach().exp()
            y = codes @ self._current[index] + round_through(bias / unit) * unit  # (.., I) @ (I, O)
            if linear.name not in self._branch_of:
                return y
            group, place = self._branch_of[linear.name]
            branch = self._branches[group]
            assert isinstance(branch, GroupBranch)
            return y + branch(codes) @ branch.b[place]()

        return apply


def _nothing(linear: Linear) -> Replacement:
    return lambda known: known[linear.input]


def _known(plan: QuantPlan, tensor: str) -> QParams:
    params = plan.params(tensor)
    assert params is not None  # planned_linear and planned_products said so
    return params
