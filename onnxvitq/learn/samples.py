"""Both networks unit by unit over all calibration samples, each unit run by onnxruntime as it will be written.

Only what later units read is kept, in memory up to a limit and then in files (``rebuild.pieces.Store``). The quantized unit
is the writer's own output, so what later units learn from is what the model will compute, and a unit that torch cannot run is
passed all the same.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blockmap import BlockMap
from onnxvitq.graph.io import save_for_session, to_proto
from onnxvitq.graph.segments import part_of
from onnxvitq.learn.network import Unit
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.rebuild.pieces import Store
from onnxvitq.rewrite.qdq import apply_plan
from onnxvitq.runtime.session import Session


class Samples:
    """What reaches the next unit, of every sample: in the float network (``exact``) and in the quantized one (``coded``)."""

    def __init__(
        self, graph: gs.Graph, problem: Problem, feeds: Iterable[Mapping[str, np.ndarray]], folder: Path, threads: int
    ) -> None:
        self._graph, self._problem, self._folder, self._threads = graph, problem, folder, threads
        self.count = 0
        for name in ("exact", "coded"):
            (folder / name).mkdir(parents=True)
        self.exact, self.coded = Store(folder / "exact"), Store(folder / "coded")
        for feed in feeds:
            for name, value in feed.items():
                self.exact.append(name, value)
                self.coded.append(name, value)
            self.count += 1

    def inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """What each sample feeds the model; before any unit has run."""
        for sample in range(self.count):
            yield {name: self.exact.get(name, sample) for name in self.exact.names}

    def run_exact(self, unit: Unit) -> None:
        """The float unit's outputs, into ``exact``."""
        session = self._session(part_of(self._graph, unit.nodes, unit.inputs, unit.outputs).copy())
        for sample in range(self.count):
            feed = {name: self.exact.get(name, sample) for name in unit.inputs}
            for name, value in zip(unit.outputs, session.run(feed, unit.outputs), strict=True):
                self.exact.append(name, value)

    def run_coded(self, unit: Unit, plan: QuantPlan) -> dict[str, list[np.ndarray]]:
        """The quantized unit's outputs, of every sample, not kept."""
        part = part_of(self._graph, unit.nodes, unit.inputs, unit.outputs)
        within, own = _within(unit, self._problem, plan)
        session = self._session(apply_plan(part, own, within))
        found: dict[str, list[np.ndarray]] = {name: [] for name in unit.outputs}
        for sample in range(self.count):
            feed = {name: self.coded.get(name, sample) for name in unit.inputs}
            for name, value in zip(unit.outputs, session.run(feed, unit.outputs), strict=True):
                found[name].append(value)
        return found

    def keep(self, outputs: Mapping[str, list[np.ndarray]], needed: Collection[str]) -> None:
        """Take the quantized outputs, and forget what no later unit needs."""
        for name, values in outputs.items():
            for value in values:
                self.coded.append(name, value)
        for store in (self.exact, self.coded):
            for name in store.names:
                if name not in needed:
                    store.drop(name)

    def _session(self, graph: gs.Graph) -> Session:
        path = self._folder / "unit.onnx"
        save_for_session(to_proto(graph, {}), path)
        session = Session(path, threads=self._threads)
        for file in self._folder.glob("unit.onnx*"):
            file.unlink()
        return session


def _within(unit: Unit, problem: Problem, plan: QuantPlan) -> tuple[QuantPlan, Problem]:
    """What of a plan and of what was found belongs to a unit."""
    names = {node.name for node in unit.nodes}
    blockmap = problem.blockmap
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
    return replace(plan, decisions=decisions, biases=biases), replace(problem, blockmap=own)
