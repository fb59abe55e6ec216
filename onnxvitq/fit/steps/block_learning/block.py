"""A block of the network with learnable quantizers in it, as torch runs it; and what it learned, as a plan."""

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
    """Which parameters are learned.

    Attributes:
        branch: factors of branches of low rank.
        scales: scales of activations, and their zero points.
        focus: scales of softmax outputs.
        weights: codes and scales of the weights, and the biases.
    """

    branch: bool = True
    scales: bool = True
    focus: bool = True
    weights: bool = True


class QuantizedBlock(nn.Module):
    """A block in which every planned product computes what its codes will compute.

    Modules are kept by number, as names of tensors may hold what torch does not allow in names.

    Args:
        block: no operator of it is refused.
        layers: what was found in the network.
        plan: with parameters for every site.
        learned: which parameters have gradients.
    """

    def __init__(self, block: BlockSubgraph, layers: Layers, plan: QuantPlan, learned: Learned) -> None:
        super().__init__()
        self.block, self.plan, self._layers = block, plan, layers
        names = {node.name for node in block.nodes}
        self.linears = [
            linear for linear in layers.blockmap.linears if linear.name in names and planned_linear(plan, linear)
        ]
        self._sites = nn.ModuleList()
        self._site_of: dict[str, int] = {}
        self._operands: dict[tuple[str, int], Operand] = {}
        self._quantize_activations(learned)
        readers = [linear.weight for linear in layers.blockmap.linears]
        self._weights = nn.ModuleList(
            WeightQuantizer(
                plan.weights.get(linear.name, layers.weight(linear.name)),
                _fitted(plan, linear.weight),
                learned=learned.weights and readers.count(linear.weight) == 1,
            )
            for linear in self.linears
        )
        self._biases = nn.ParameterList(
            nn.Parameter(
                torch.from_numpy(np.array(plan.biases.get(linear.name, layers.bias(linear.name)))),
                requires_grad=learned.weights,
            )
            for linear in self.linears
        )
        self._branches = nn.ModuleList()
        self._branch_of: dict[
            str, tuple[int, int]
        ] = {}  # layer -> number of its group's module, and place in the group
        for members in self._branch_groups():
            for place, name in enumerate(members):
                self._branch_of[name] = (len(self._branches), place)
            self._branches.append(GroupBranch([plan.branches[name] for name in members]))
        for parameter in self._branches.parameters():
            parameter.requires_grad_(learned.branch)
        self._current: Sequence[Tensor] = ()
        self._replaced = dict(self._replacements())

    def weights(self) -> list[Tensor]:
        """Of the linear layers, as their codes stand for them: computed once where several samples are run one by one."""
        return [weight() for weight in self._weights]

    def forward(self, values: Mapping[str, Tensor], weights: Sequence[Tensor] | None = None) -> Values:
        """Inputs by name -> outputs by name; ``weights``: as ``weights()`` gave them, if they are known."""
        self._current = self.weights() if weights is None else weights
        return run(self.block, values, self._replaced, self._operands)

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
        learned = [([parameter for parameter in members if parameter.requires_grad], rate) for members, rate in groups]
        return [{"params": members, "lr": rate} for members, rate in learned if members]

    @property
    def branches(self) -> dict[str, GroupBranch]:
        """The branches by the tensor that they read."""
        branches = {}
        for linear in self.linears:
            if linear.name in self._branch_of:
                module = self._branches[self._branch_of[linear.name][0]]
                assert isinstance(module, GroupBranch)
                branches[linear.input] = module
        return branches

    def set_drop(self, share: float) -> None:
        """Share of the activations that are not quantized while training, 0 to 1."""
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
        branches = {}
        for name, (group, place) in self._branch_of.items():
            module = self._branches[group]
            assert isinstance(module, GroupBranch)
            branches[name] = module.results()[place]
        return plan.with_branches(branches)

    def _quantize_activations(self, learned: Learned) -> None:
        """A quantizer for every planned operand; what a product and the sum of its rows read is the same."""
        plan, blockmap = self.plan, self._layers.blockmap
        nodes = {node.name: node for node in self.block.nodes}
        probs = {attention.probs for attention in blockmap.attentions}
        planned = set(planned_products(plan, blockmap))
        operands = [(linear.input, linear.name, 0) for linear in self.linears]
        for node, pair in products(blockmap):
            if node in nodes and node in planned:
                operands += [(tensor, node, port) for port, tensor in enumerate(pair)]
        for tensor, node, port in operands:
            elsewhere = any(reader not in nodes for reader, _ in plan.decisions[tensor].site.consumers)
            allowed = learned.focus if tensor in probs else learned.scales
            quantizer = self._site(tensor, learned=allowed and not elsewhere)
            if node in planned:
                self._operands[node, port] = quantizer
                for total in row_sums(nodes[node].inputs[port]):
                    self._operands[total.name, 0] = quantizer

    def _site(self, tensor: str, *, learned: bool) -> ActivationQuantizer:
        if tensor not in self._site_of:
            self._site_of[tensor] = len(self._sites)
            self._sites.append(ActivationQuantizer(_fitted(self.plan, tensor), learned=learned))
        return self._quantizer(tensor)

    def _quantizer(self, tensor: str) -> ActivationQuantizer:
        module = self._sites[self._site_of[tensor]]
        assert isinstance(module, ActivationQuantizer)
        return module

    def _branch_groups(self) -> Iterator[list[str]]:
        """Names of linear layers with a branch, by the tensor they read and the A they have."""
        groups: dict[tuple[str, bytes], list[str]] = {}
        for linear in self.linears:
            if linear.name in self.plan.branches:
                groups.setdefault((linear.input, self.plan.branches[linear.name].a.tobytes()), []).append(linear.name)
        yield from groups.values()

    def _replacements(self) -> Iterator[tuple[str, Replacement]]:
        """Each linear layer is computed at the node that adds its bias; the product before it computes nothing."""
        for index, linear in enumerate(self.linears):
            if linear.bias_node:
                yield linear.name, _input_of(linear)
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


def _input_of(linear: Linear) -> Replacement:
    return lambda known: known[linear.input]


def _fitted(plan: QuantPlan, tensor: str) -> QParams:
    params = plan.params(tensor)
    assert params is not None  # planned_linear and planned_products said so
    return params
