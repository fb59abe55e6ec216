"""Which ranks branches get: those that gain most within a budget of bytes and one of time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxvitq.core.plan import Branch, Layers, QuantPlan, planned_linear
from onnxvitq.core.tensors import DoubleArray, FloatArray
from onnxvitq.numerics.lowrank import share_budget

# Time of a branch, in multiplies of the large product: of every value it adds to, whatever its rank, and of its own multiplies.
ADDED, SMALL = 250.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedBranches:
    """Branches of the linear layers that read one tensor, which share A, and what they gain.

    Attributes:
        tensor: that the layers read.
        gains: (R,) what each rank takes off the held-out error, over the power of the layers' outputs; falling.
        inputs: I, size of a row of the tensor.
        outputs: O, of all layers together.
        rows: of the tensor in one sample, the mean over samples.
        before: SQNR in dB of the layers' outputs on held-out samples without branches.
        after: with them.
        branches: of each layer by its name; empty where they are not worth it.
        biases: (O,) of each layer by its name, that go with the branches.
    """

    tensor: str
    gains: DoubleArray
    inputs: int
    outputs: int
    rows: float
    before: float = 0.0
    after: float = 0.0
    branches: Mapping[str, Branch] = field(default_factory=dict)
    biases: Mapping[str, FloatArray] = field(default_factory=dict)

    def without(self) -> "FittedBranches":
        """The same, the layers left as they are."""
        return replace(self, after=self.before, branches={}, biases={})

    @property
    def cost(self) -> int:
        """Bytes of a rank: its codes in both factors, and its scale in A."""
        return self.inputs + self.outputs + 4


def best_ranks(fitted: Sequence[FittedBranches], size: float, latency: float) -> dict[str, int]:
    """Tensor -> rank, within both budgets.

    A branch costs time at once and then with every rank. So layers are let in one after the other, most gain for the time of
    having a branch at all first; after each, what both budgets leave is shared out, and the best of these stays.

    Args:
        fitted: those without branches get none.
        size: bytes of all factors.
        latency: time over that of all products of ``fitted``.
    """
    best, most = dict.fromkeys((group.tensor for group in fitted), 0), 0.0
    able = [group for group in fitted if group.branches]
    able.sort(key=lambda group: -float(group.gains.sum()) / (group.rows * group.outputs))
    left = latency * sum(group.rows * group.inputs * group.outputs for group in fitted)
    let_in: list[FittedBranches] = []
    for candidate in able:
        opening = ADDED * candidate.rows * candidate.outputs
        if opening >= left:
            continue
        left -= opening
        let_in.append(candidate)
        # Time of a rank and its bytes are both as I + O, but for the rows: the longest sequence decides.
        budget = int(min(size, left / (SMALL * max(group.rows for group in let_in))))
        ranks = share_budget(
            {group.tensor: group.gains for group in let_in}, {group.tensor: group.cost for group in let_in}, budget
        )
        gain = sum(float(group.gains[: ranks[group.tensor]].sum()) for group in let_in)
        if gain > most:
            best, most = {**dict.fromkeys(best, 0), **ranks}, gain
    return best


def branch_time(branch: Branch) -> float:
    """Time of a branch over that of the product that it stands beside, as far as counting tells it (``ADDED``, ``SMALL``)."""
    inputs, outputs = branch.a.shape[0], branch.b.shape[1]
    return (ADDED * outputs + SMALL * branch.rank * (inputs + outputs)) / (inputs * outputs)


def weight_bytes(layers: Layers, plan: QuantPlan) -> int:
    """Bytes of the planned weights, packed to their bits, and of their scales."""
    total = 0
    for linear in layers.blockmap.linears:
        if planned_linear(plan, linear):
            bits = plan.decisions[linear.weight].spec.bits
            total += linear.in_features * linear.out_features * bits // 8 + 4 * linear.out_features
    return total
