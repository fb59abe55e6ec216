"""Output error of many plans of one model, from one session (``rewrite.probe``)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.errors import PlanError
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.graph.io import to_proto
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.rewrite.probe import probe_graph, probe_parameters
from onnxvitq.runtime.session import Session
from onnxvitq.spec import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Inputs, and the float model's first output for each."""

    feeds: Sequence[Mapping[str, np.ndarray]]
    references: Sequence[FloatArray]


class OutputProbe:
    """Called with a plan, gives the difference of the model's first output from the float model's.

    Args:
        graph: canonical; never changed.
        problem: what was found in it.
        plan: says which tensors get a quantizer (those that it has parameters for) and which readers see it; a plan that is
            judged later has the same readers.
        samples: to judge on.
        threads: of onnxruntime.
        watched: tensors of the graph that ``watch`` can give.

    Raises:
        InvalidGraphError: onnxruntime cannot run the graph.
        OutputError: no room for temporary files.
    """

    def __init__(
        self,
        graph: gs.Graph,
        problem: Problem,
        plan: QuantPlan,
        samples: Samples,
        threads: int,
        watched: Sequence[str] = (),
    ) -> None:
        self._problem, self._samples = problem, samples
        probe = probe_graph(graph, problem, plan)
        self._quantized = {
            name for name in plan.decisions if plan.params(name) is not None or name in problem.constants
        }
        self._output = probe.outputs[0].name
        tensors = probe.tensors()
        probe.outputs = [tensors[name] for name in dict.fromkeys((self._output, *watched))]
        with scratch_folder() as folder:
            path = folder / "probe.onnx"
            save_in_scratch(to_proto(probe, {}), path)
            self._session = Session(path, threads=threads)
        self._inputs = {spec.name for spec in self._session.input_specs}
        self.runs = 0

    def __call__(self, plan: QuantPlan, count: int | None = None) -> OutputDifference:
        """Over the first ``count`` samples, all of them when None."""
        return self.watch(plan, (), count)[0]

    def _parameters(self, plan: QuantPlan) -> dict[str, np.ndarray]:
        """What the session has inputs for; the other tensors have no quantizer in it and must be float."""
        for tensor, decision in plan.decisions.items():
            if decision.params is not None and tensor not in self._quantized and decision.site.kind == "activation":
                raise PlanError(tensor, "the plan quantizes a tensor that this probe leaves float")
        values = probe_parameters(self._problem, plan)
        return {name: value for name, value in values.items() if name in self._inputs}

    def watch(
        self, plan: QuantPlan, tensors: Sequence[str], count: int | None = None
    ) -> tuple[OutputDifference, list[FloatArray]]:
        """The same, and the values of some watched tensors, samples joined along the first axis."""
        difference, parameters = OutputDifference(), self._parameters(plan)
        seen: list[list[FloatArray]] = [[] for _ in tensors]
        for feed, reference in zip(self._samples.feeds[:count], self._samples.references[:count], strict=True):
            output, *values = self._session.run({**feed, **parameters}, [self._output, *tensors])
            difference.update(reference, output)
            for kept, value in zip(seen, values, strict=True):
                kept.append(value)
            self.runs += 1
        return difference, [np.concatenate(values) for values in seen]

    def outputs(self, plan: QuantPlan, feeds: Iterable[Mapping[str, np.ndarray]]) -> FloatArray:
        """The model's first output for each of other samples than its own, joined along the first axis."""
        parameters = self._parameters(plan)
        return np.concatenate([self._session.run({**feed, **parameters}, [self._output])[0] for feed in feeds])
