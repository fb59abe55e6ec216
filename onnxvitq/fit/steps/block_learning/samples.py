"""Both networks block by block over all calibration samples, each block run by onnxruntime as it will be written.

Only what later blocks read is kept, in memory up to a limit and then in files (``calibration.subgraphs.TensorStore``). The
quantized block is the writer's own output, so what later blocks learn from is what the model will compute, and a block that
torch cannot run is passed all the same.

Beside the calibration samples there are mixtures of them, ``m a + (1 - m) b`` (mixup, Zhang et al. 2018, of inputs alone: the
float network answers for each). A block has more weights than a few dozen samples have tokens, and learns those by heart. They
are of samples that are not held out, and are learned from, never evaluated on.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.calibration.subgraphs import TensorStore
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.fit.steps.block_learning.network import BlockSubgraph
from onnxvitq.graph.cut import as_graph
from onnxvitq.graph.writing import save_for_session, to_proto
from onnxvitq.runtime.session import Session
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target

SHARES = (0.5, 1.0)  # of the first of two samples in a mixture
MOST = 768  # samples to learn from, with mixtures: what they cost grows with them, and beyond this nothing was gained


class BlockSamples:
    """What reaches the next block, of every sample: in the float network and in the quantized one.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        feeds: calibration samples.
        folder: for files; the caller removes it.
        threads: of onnxruntime.
        target: that blocks are written for.

    Attributes:
        count: calibration samples; the first numbers.
        learned_from: numbers of the samples that are not held out, and of the mixtures.
        held_out: numbers of the samples held out; all calibration samples where there are none.
        float: tensors of the float network.
        quantized: of the quantized one.
    """

    def __init__(
        self,
        graph: gs.Graph,
        layers: Layers,
        feeds: Iterable[Mapping[str, np.ndarray]],
        folder: Path,
        threads: int,
        target: Target = DEFAULT_TARGET,
    ) -> None:
        self._graph, self._layers, self._folder, self._threads = graph, layers, folder, threads
        self._target = target
        self.count = 0
        for name in ("float", "quantized"):
            (folder / name).mkdir(parents=True)
        self.float, self.quantized = TensorStore(folder / "float"), TensorStore(folder / "quantized")
        for feed in feeds:
            self._add(feed)
            self.count += 1
        self.learned_from = [number for number in range(self.count) if not is_held_out(number)]
        self.held_out = [number for number in range(self.count) if is_held_out(number)] or list(range(self.count))

    def _add(self, feed: Mapping[str, np.ndarray]) -> None:
        for name, value in feed.items():
            self.float.append(name, value)
            self.quantized.append(name, value)

    def mix(self, times: float, seed: int) -> None:
        """Add mixtures of two of the samples that are learned from; before any block has run.

        Inputs that are not float, or differ in shape from sample to sample, are not mixed, and then nothing is.

        Args:
            times: how many, over the samples that are learned from; never more than ``MOST`` with these.
            seed: of what is mixed, and how.
        """
        own = list(self.learned_from)
        if len(own) < 2 or not self._can_mix(own):
            return
        rng = np.random.default_rng(seed)
        for number in range(min(round(times * len(own)), max(MOST - len(own), 0))):
            one, other = (own[int(place)] for place in rng.choice(len(own), 2, replace=False))
            share = np.float32(rng.uniform(*SHARES))
            values = ((name, self.float.get(name, one), self.float.get(name, other)) for name in self.float.names)
            self._add(
                {name: (share * first + (1 - share) * second).astype(first.dtype) for name, first, second in values}
            )
            self.learned_from.append(self.count + number)

    def _can_mix(self, samples: Sequence[int]) -> bool:
        for name in self.float.names:
            values = [self.float.get(name, sample) for sample in samples]
            if len({(value.shape, value.dtype) for value in values}) > 1 or values[0].dtype.kind != "f":
                return False
        return True

    def inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """What each calibration sample feeds the model; before any block has run."""
        for sample in range(self.count):
            yield {name: self.float.get(name, sample) for name in self.float.names}

    def run_float(self, block: BlockSubgraph) -> None:
        """The float block's outputs, into ``float``."""
        session = self._session(as_graph(self._graph, block).copy())
        self._run_into(self.float, session, block)

    def run_quantized(self, block: BlockSubgraph, plan: QuantPlan) -> None:
        """The quantized block's outputs, into ``quantized``."""
        self._run_into(self.quantized, self._quantized_session(block, plan), block)

    def held_out_outputs(self, block: BlockSubgraph, plan: QuantPlan) -> dict[str, list[np.ndarray]]:
        """The quantized block's outputs by name, of each sample held out; not kept."""
        session = self._quantized_session(block, plan)
        outputs: dict[str, list[np.ndarray]] = {name: [] for name in block.outputs}
        for sample in self.held_out:
            feed = {name: self.quantized.get(name, sample) for name in block.inputs}
            for name, value in zip(block.outputs, session.run(feed, block.outputs), strict=True):
                outputs[name].append(value)
        return outputs

    def _run_into(self, store: TensorStore, session: Session, block: BlockSubgraph) -> None:
        for sample in range(max(self.count, self.learned_from[-1] + 1)):
            feed = {name: store.get(name, sample) for name in block.inputs}
            for name, value in zip(block.outputs, session.run(feed, block.outputs), strict=True):
                store.append(name, value)

    def forget(self, needed: Collection[str]) -> None:
        """Drop all tensors but these, which later blocks read."""
        for store in (self.float, self.quantized):
            for name in store.names:
                if name not in needed:
                    store.drop(name)

    def _quantized_session(self, block: BlockSubgraph, plan: QuantPlan) -> Session:
        own_plan, own_layers = _of_block(block, self._layers, plan)
        return self._session(self._target.write(as_graph(self._graph, block), own_layers, own_plan))

    def _session(self, graph: gs.Graph) -> Session:
        path = self._folder / "block.onnx"
        save_for_session(to_proto(graph, {}), path)
        session = Session(path, threads=self._threads)
        for file in self._folder.glob("block.onnx*"):
            file.unlink()
        return session


def _of_block(block: BlockSubgraph, layers: Layers, plan: QuantPlan) -> tuple[QuantPlan, Layers]:
    """What of a plan and of what was found belongs to a block."""
    names = {node.name for node in block.nodes}
    blockmap = layers.blockmap
    decisions = {}
    for tensor, decision in plan.decisions.items():
        consumers = tuple(reader for reader in decision.site.consumers if reader[0] in names)
        if consumers:
            decisions[tensor] = replace(decision, site=replace(decision.site, consumers=consumers))
    attentions = (
        attention for attention in blockmap.attentions if {attention.scores_node, attention.context_node} <= names
    )
    own = BlockMap(
        blocks=(),
        attentions=tuple(attentions),
        linears=tuple(linear for linear in blockmap.linears if linear.name in names),
        norms=(),
        unmatched=(),
        products=tuple(product for product in blockmap.products if product.name in names),
    )
    biases = {name: bias for name, bias in plan.biases.items() if name in names}
    return replace(plan, decisions=decisions, biases=biases), replace(layers, blockmap=own)
