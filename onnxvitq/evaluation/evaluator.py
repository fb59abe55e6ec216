"""Output error of a plan: the model is written, loaded and run on a few held-out samples, as a user would run it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.graph.query import is_probabilities
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.graph.writing import to_proto
from onnxvitq.runtime.session import Session
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputEvaluator:
    """Called with a plan, gives the SQNR in dB of the model's first output, or of what that is a softmax of.

    graph, layers: the canonical float graph and what was found in it; never changed.
    feeds, references: held-out samples and the float model's output for each.
    """

    graph: gs.Graph
    layers: Layers
    feeds: Sequence[Mapping[str, np.ndarray]]
    references: Sequence[FloatArray]
    threads: int
    target: Target = DEFAULT_TARGET

    def __call__(self, plan: QuantPlan) -> float:
        """SQNR of a plan; -120 to 120 dB."""
        return self.difference(plan).sqnr_db

    def difference(self, plan: QuantPlan) -> OutputDifference:
        """Write, load and run."""
        difference = OutputDifference(probabilities=is_probabilities(self.graph.outputs[0]))
        session = self._session(plan)
        for feed, reference in zip(self.feeds, self.references, strict=True):
            difference.update(reference, session.run(feed)[0])
        return difference

    def outputs(self, plan: QuantPlan, feeds: Iterable[Mapping[str, np.ndarray]]) -> FloatArray:
        """The first output for each of other samples than its own, joined along the first axis."""
        session = self._session(plan)
        return np.concatenate([session.run(feed)[0] for feed in feeds])

    def _session(self, plan: QuantPlan) -> Session:
        with scratch_folder() as folder:
            path = folder / "candidate.onnx"
            save_in_scratch(to_proto(self.target.write(self.graph, self.layers, plan), {}), path)
            return Session(path, threads=self.threads, spare="memory")
