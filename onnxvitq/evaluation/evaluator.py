"""Output error of a plan: the model is written, loaded and run on a few held-out samples, as a user would run it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.evaluation.tasks.choose import output_of
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.graph.query import is_probabilities
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.graph.writing import to_proto
from onnxvitq.runtime.session import Session
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputEvaluator:
    """Called with a plan, gives the SQNR in dB of the model's evaluated output, or of what that is a softmax of.

    Attributes:
        graph: canonical float graph; never changed.
        layers: what was found in it.
        feeds: held-out samples.
        references: the float model's evaluated output for each, (B, ..).
        threads: of onnxruntime.
        task: says which output is evaluated and how; chosen by the output's shape when None.
    """

    graph: gs.Graph
    layers: Layers
    feeds: Sequence[Mapping[str, np.ndarray]]
    references: Sequence[FloatArray]
    threads: int
    target: Target = DEFAULT_TARGET
    task: Task | None = None

    def __call__(self, plan: QuantPlan) -> float:
        """SQNR of a plan; -120 to 120 dB."""
        return self.difference(plan).sqnr_db

    def difference(self, plan: QuantPlan) -> OutputDifference:
        """Write, load and run."""
        output = output_of(self.graph, self.task)
        difference = OutputDifference(self.task, probabilities=is_probabilities(output))
        session = self._session(plan)
        for feed, reference in zip(self.feeds, self.references, strict=True):
            difference.update(reference, session.run(feed, [output.name])[0])
        return difference

    def outputs(self, plan: QuantPlan, feeds: Iterable[Mapping[str, np.ndarray]]) -> FloatArray:
        """The evaluated output for each of other samples than its own, joined along the first axis."""
        session, name = self._session(plan), output_of(self.graph, self.task).name
        return np.concatenate([session.run(feed, [name])[0] for feed in feeds])

    def _session(self, plan: QuantPlan) -> Session:
        with scratch_folder() as folder:
            path = folder / "candidate.onnx"
            save_in_scratch(to_proto(self.target.write(self.graph, self.layers, plan), {}), path)
            return Session(path, threads=self.threads, spare="memory")
