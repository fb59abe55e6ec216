"""Ranks by differentiable architecture search: a gate for every rank, learned against the error of the block's output.

Every branch starts at the largest candidate, in closed form. Steps on the factors, on one half of the samples, alternate with
steps on the gates, on the other half; the gates' loss has the expected bytes in it, in units of the block's budget. The budget
of a block is its share of the weights' bytes: blocks are searched one at a time, from what the network before them puts out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.fit.steps.block_learning.block import Learned, QuantizedBlock
from onnxvitq.fit.steps.block_learning.network import BlockSubgraph, cut
from onnxvitq.fit.steps.block_learning.quantizers import GroupBranch, RankGate
from onnxvitq.fit.steps.block_learning.samples import BlockSamples
from onnxvitq.fit.steps.block_learning.training import Reconstruction, Training
from onnxvitq.fit.steps.low_rank.ranks import weight_bytes

CANDIDATES = (0, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSearch:
    """How ranks are searched.

    Attributes:
        candidates: ranks to choose from.
        budget: bytes of the branches over those of the packed weights.
        price: of spending a block's whole budget, in units of the loss at the start.
        rate: learning rate of the gates.
        training: how a block is trained meanwhile; its iterations are those of a block's search.
    """

    candidates: Sequence[int] = CANDIDATES
    budget: float = 0.1
    price: float = 0.3
    rate: float = 0.1
    training: Reconstruction = field(default_factory=lambda: Reconstruction(iterations=100, drop=0.0))


def search_ranks(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: RankSearch,
) -> dict[str, int]:
    """Tensor -> rank of the branch of the linear layers that read it.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: with branches of the largest candidate, or of what rank there is.
        feeds: calibration samples.
        folder: for files; the caller removes it.
        options: see there.

    Raises:
        InvalidGraphError: a block does not run.
        OSError: no room in ``folder``.
    """
    blocks = cut(graph, layers.blockmap)
    samples = BlockSamples(graph, layers, feeds, folder, options.training.threads, options.training.target)
    ranks: dict[str, int] = {}
    for block in blocks:
        samples.run_float(block)
        if not block.refused:
            ranks |= _search(block, layers, plan, samples, options)
        samples.run_quantized(block, plan)
        samples.forget({name for later in blocks[block.index + 1 :] for name in later.inputs})
    return ranks


def _search(
    block: BlockSubgraph, layers: Layers, plan: QuantPlan, samples: BlockSamples, options: RankSearch
) -> dict[str, int]:
    torch.manual_seed(options.training.seed)
    branches_alone = Learned(branch=True, scales=False, focus=False, weights=False)
    module = QuantizedBlock(block, layers, plan, branches_alone)
    branches = module.branches
    if not branches:
        return {}
    for branch in branches.values():
        branch.gate = RankGate(options.candidates, branch.a.values.shape[1])
    within = _of_block(block, layers.blockmap)
    budget = max(options.budget * weight_bytes(replace(layers, blockmap=within), plan), 1.0)
    training = Training(module, samples, options.training)
    count = training.count
    halves = (range(0, count, 2), range(1, count, 2) if count > 1 else range(count))
    gates = [branch.gate.choice for branch in branches.values() if branch.gate is not None]
    factors = torch.optim.Adam(module.parameter_groups(options.training.rates))
    choices = torch.optim.Adam(gates, lr=options.rate)
    rng = np.random.default_rng(options.training.seed)
    with torch.no_grad():
        start = float(training.loss(list(range(count))[: training.batch]))
    for step in range(options.training.iterations):
        side = step % 2
        chosen = rng.choice(halves[side], min(training.batch, len(halves[side])), replace=False)
        loss = training.loss([int(number) for number in chosen])
        if side:
            loss = loss + options.price * start * _over(_bytes(branches) / budget)
        for optimiser in (factors, choices):
            optimiser.zero_grad()
        loss.backward()
        (factors, choices)[side].step()
    return {tensor: branch.gate.chosen() for tensor, branch in branches.items() if branch.gate is not None}


def _bytes(branches: Mapping[str, GroupBranch]) -> Tensor:
    """Expected bytes of the codes of all branches of a block."""
    total = torch.zeros(())
    for branch in branches.values():
        assert branch.gate is not None
        total = total + branch.gate().sum() * branch.width
    return total


def _over(spent: Tensor) -> Tensor:
    """The price of a share of the budget: its own up to the budget, ten times as steep beyond."""
    return spent + 9 * torch.relu(spent - 1)


def _of_block(block: BlockSubgraph, blockmap: BlockMap) -> BlockMap:
    names = {node.name for node in block.nodes}
    return replace(blockmap, linears=tuple(linear for linear in blockmap.linears if linear.name in names))
