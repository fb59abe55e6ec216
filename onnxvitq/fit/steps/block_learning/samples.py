"""Both networks unit by unit over all calibration samples, each unit run by onnxruntime as it will be written.

Only what later units read is kept, in memory up to a limit and then in files (``calibration.subgraphs.TensorStore``). The
quantized unit is the writer's own output, so what later units learn from is what the model will compute, and a unit that torch
cannot run is passed all the same.

Beside the calibration samples there are mixtures of them, ``m a + (1 - m) b`` (mixup, Zhang et al. 2018, of inputs alone: the
float network answers for each). A block has more weights than a few dozen samples have tokens, and learns those by heart. They
are of samples that are not held out, and are learned from, never judged by.
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
from onnxvitq.targets.ort_cpu.layout import apply_plan

SHARES = (0.5, 1.0)  # of the first of two samples in a mixture
MOST = 768  # samples to learn from, with mixtures: what they cost grows with them, and beyond this nothing was gained


class Samples:
    """What reaches the next unit, of every sample: in the float network (``exact``) and in the quantized one (``coded``).

    Attributes:
        count: calibration samples; the first numbers.
        learned: numbers of the samples that are learned from: those not held out, and the mixtures.
        held: numbers of the samples that judge; all calibration samples where none is held out.
    """

    def __init__(
        self, graph: gs.Graph, layers: Layers, feeds: Iterable[Mapping[str, np.ndarray]], folder: Path, threads: int
    ) -> None:
        self._graph, self._layers, self._folder, self._threads = graph, layers, folder, threads
        self.count = 0
        for name in ("exact", "coded"):
            (folder / name).mkdir(parents=True)
        self.exact, self.coded = TensorStore(folder / "exact"), TensorStore(folder / "coded")
        for feed in feeds:
            self._add(feed)
            self.count += 1
        self.learned = [one for one in range(self.count) if not is_held_out(one)]
        self.held = [one for one in range(self.count) if is_held_out(one)] or list(range(self.count))

    def _add(self, feed: Mapping[str, np.ndarray]) -> None:
        for name, value in feed.items():
            self.exact.append(name, value)
            self.coded.append(name, value)

    def mix(self, times: float, seed: int) -> None:
        """Add mixtures of two of the samples that are learned from; before any unit has run.

        Inputs that are not float, or differ in shape from sample to sample, are not mixed, and then nothing is.

        Args:
            times: how many, over the samples that are learned from; never more than ``MOST`` with these.
            seed: of what is mixed, and how.
        """
        own = list(self.learned)
        if len(own) < 2 or not self._can_mix(own):
            return
        rng = np.random.default_rng(seed)
        for number in range(min(round(times * len(own)), max(MOST - len(own), 0))):
            one, other = (own[int(place)] for place in rng.choice(len(own), 2, replace=False))
            share = np.float32(rng.uniform(*SHARES))
            values = ((name, self.exact.get(name, one), self.exact.get(name, other)) for name in self.exact.names)
            self._add(
                {name: (share * first + (1 - share) * second).astype(first.dtype) for name, first, second in values}
            )
            self.learned.append(self.count + number)

    def _can_mix(self, samples: Sequence[int]) -> bool:
        for name in self.exact.names:
            values = [self.exact.get(name, sample) for sample in samples]
            if len({(value.shape, value.dtype) for value in values}) > 1 or values[0].dtype.kind != "f":
                return False
        return True

    def inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """What each calibration sample feeds the model; before any unit has run."""
        for sample in range(self.count):
            yield {name: self.exact.get(name, sample) for name in self.exact.names}

    def run_exact(self, unit: BlockSubgraph) -> None:
        """The float unit's outputs, into ``exact``."""
        session = self._session(as_graph(self._graph, unit).copy())
        self._into(self.exact, session, unit)

    def judged(self, unit: BlockSubgraph, plan: QuantPlan) -> dict[str, list[np.ndarray]]:
        """The quantized unit's outputs, of the samples that judge, not kept."""
        session = self._coded_session(unit, plan)
        found: dict[str, list[np.ndarray]] = {name: [] for name in unit.outputs}
        for sample in self.held:
            feed = {name: self.coded.get(name, sample) for name in unit.inputs}
            for name, value in zip(unit.outputs, session.run(feed, unit.outputs), strict=True):
                found[name].append(value)
        return found

    def run_coded(self, unit: BlockSubgraph, plan: QuantPlan) -> None:
        """The quantized unit's outputs, into ``coded``."""
        self._into(self.coded, self._coded_session(unit, plan), unit)

    def _into(self, store: TensorStore, session: Session, unit: BlockSubgraph) -> None:
        for sample in range(max(self.count, self.learned[-1] + 1)):
            feed = {name: store.get(name, sample) for name in unit.inputs}
            for name, value in zip(unit.outputs, session.run(feed, unit.outputs), strict=True):
                store.append(name, value)

    def forget(self, needed: Collection[str]) -> None:
        """Drop what no later unit needs."""
        for store in (self.exact, self.coded):
            for name in store.names:
                if name not in needed:
                    store.drop(name)

    def _coded_session(self, unit: BlockSubgraph, plan: QuantPlan) -> Session:
        part = as_graph(self._graph, unit)
        within, own = _within(unit, self._layers, plan)
        return self._session(apply_plan(part, own, within))

    def _session(self, graph: gs.Graph) -> Session:
        path = self._folder / "unit.onnx"
        save_for_session(to_proto(graph, {}), path)
        session = Session(path, threads=self._threads)
        for file in self._folder.glob("unit.onnx*"):
            file.unlink()
        return session


def _within(unit: BlockSubgraph, layers: Layers, plan: QuantPlan) -> tuple[QuantPlan, Layers]:
    """What of a plan and of what was found belongs to a unit."""
    names = {node.name for node in unit.nodes}
    blockmap = layers.blockmap
    decisions = {}
    for tensor, decision in plan.decisions.items():
        consumers = tuple(one for one in decision.site.consumers if one[0] in names)
        if consumers:
            decisions[tensor] = replace(decision, site=replace(decision.site, consumers=consumers))
    own = BlockMap(
        blocks=(),
        attentions=tuple(one for one in blockmap.attentions if {one.scores_node, one.context_node} <= names),
        linears=tuple(one for one in blockmap.linears if one.name in names),
        norms=(),
        unmatched=(),
        products=tuple(one for one in blockmap.products if one.name in names),
    )
    biases = {name: bias for name, bias in plan.biases.items() if name in names}
    return replace(plan, decisions=decisions, biases=biases), replace(layers, blockmap=own)
