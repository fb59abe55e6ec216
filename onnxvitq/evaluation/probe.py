"""Output error of many plans of one model, from one session (``probe_graph``)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.errors import PlanError
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.evaluation.probe_graph import probe_graph, probe_parameters, weight_input
from onnxvitq.evaluation.tasks.choose import output_of
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.graph.cut import WeightedSubgraph, as_graph, cut_evenly
from onnxvitq.graph.query import is_probabilities
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.graph.writing import to_proto
from onnxvitq.runtime.session import Session


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples that plans are evaluated on.

    Attributes:
        feeds: inputs by name, one entry a sample or batch.
        references: the float model's evaluated output for each, (B, ..).
        task: says which output is evaluated and how; chosen by the output's shape when None.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    references: Sequence[FloatArray]
    task: Task | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """How the network of a probe is cut up.

    Attributes:
        watched: tensors of the graph that ``OutputProbe.watch`` can give.
        subgraphs: to run one after the other, at most. A plan that differs from the probe's own in a late layer is
            evaluated by running the subgraphs from that on: the values that a sample has between them are kept.
    """

    watched: tuple[str, ...] = ()
    subgraphs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OpenSubgraph:
    """A subgraph with its session.

    Attributes:
        session: runs it.
        inputs: names of what it reads.
        outputs: names of what it hands on.
        watched: names of outputs that it gives where they are asked for.
        share: of the whole network, 0 to 1.
    """

    session: Session
    inputs: frozenset[str]
    outputs: tuple[str, ...]
    watched: frozenset[str]
    share: float

    def gives(self, tensors: Iterable[str]) -> bool:
        """Whether any of these is an output."""
        return not {*self.outputs, *self.watched}.isdisjoint(tensors)


class OutputProbe:
    """Called with a plan, gives the difference of the model's evaluated output from the float model's.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: says which tensors get a quantizer (those that it has parameters for) and which readers see it; a plan that is
            evaluated later has the same readers.
        samples: to evaluate on.
        threads: of onnxruntime.
        options: how the network is cut up; not at all when None.

    Raises:
        InvalidGraphError: onnxruntime cannot run the graph.
        OutputError: no room for temporary files.
    """

    def __init__(
        self,
        graph: gs.Graph,
        layers: Layers,
        plan: QuantPlan,
        samples: Samples,
        threads: int,
        options: ProbeOptions | None = None,
    ) -> None:
        self._layers, self._samples = layers, samples
        probe = probe_graph(graph, layers, plan)
        self._quantized = {name for name in plan.decisions if plan.params(name) is not None or name in layers.constants}
        evaluated = output_of(graph, samples.task)
        self._output, self._probabilities = evaluated.name, is_probabilities(evaluated)
        probe.outputs = [tensor for tensor in probe.outputs if tensor.name == evaluated.name]
        base = probe_parameters(layers, plan)
        options = options or ProbeOptions()
        sizes = {name: value.size for name, value in base.items()}
        self._subgraphs = [
            _opened(probe, subgraph, threads)
            for subgraph in cut_evenly(probe, sizes, options.subgraphs, options.watched)
        ]
        read = {name for subgraph in self._subgraphs for name in subgraph.inputs}
        self._base = {name: value for name, value in base.items() if name in read}
        self._known: dict[int, dict[str, np.ndarray]] = {}  # of a sample, what subgraphs hand on with ``plan``
        self.runs = 0.0  # of the whole network

    def __call__(self, plan: QuantPlan, count: int | None = None) -> OutputDifference:
        """Over the first ``count`` samples, all of them when None."""
        difference = OutputDifference(self._samples.task, probabilities=self._probabilities)
        parameters = self._parameters(plan)
        for index, reference in enumerate(self._samples.references[:count]):
            difference.update(reference, self._run(index, parameters)[self._output])
        return difference

    def _parameters(self, plan: QuantPlan) -> dict[str, np.ndarray]:
        """What the session has inputs for; the other tensors have no quantizer in it and must be float."""
        for tensor, decision in plan.decisions.items():
            if decision.params is not None and tensor not in self._quantized and decision.site.kind == "activation":
                raise PlanError(tensor, "the plan quantizes a tensor that this probe leaves float")
        values = probe_parameters(self._layers, plan)
        return {name: value for name, value in values.items() if name in self._base}

    def watch(self, plan: QuantPlan, tensors: Sequence[str], count: int | None = None) -> list[FloatArray]:
        """The values of some watched tensors, samples joined along the first axis; later subgraphs are not run."""
        parameters = self._parameters(plan)
        last = max(place for place, subgraph in enumerate(self._subgraphs) if subgraph.gives(tensors))
        values = [self._run(index, parameters, tensors, last) for index in range(len(self._samples.feeds[:count]))]
        return [np.concatenate([of_sample[name] for of_sample in values]) for name in tensors]

    def propagated(self, plan: QuantPlan, places: Sequence[int], count: int) -> list[float]:
        """Error power of what the subgraphs at these places hand on, over the power of what they hand on with the own plan.

        Of the last subgraph that is the output. Later ones than the last of these are not run.
        """
        parameters = self._parameters(plan)
        errors, powers = np.zeros(len(places)), np.zeros(len(places))
        for index in range(count):
            known = self._own(index)
            values = known | self._run(index, parameters, (), max(places))
            for at, place in enumerate(places):
                for name in self._subgraphs[place].outputs:
                    if known[name].dtype.kind == "f":
                        exact = known[name].astype(np.float64)
                        errors[at] += ((values[name] - exact) ** 2).sum()
                        powers[at] += (exact**2).sum()
        return list(errors / np.maximum(powers, np.finfo(np.float64).tiny))

    def outputs(self, plan: QuantPlan, feeds: Iterable[Mapping[str, np.ndarray]]) -> FloatArray:
        """The evaluated output for each of other samples than its own, joined along the first axis."""
        parameters = self._parameters(plan)
        return np.concatenate([self._from(0, {**feed, **parameters})[self._output] for feed in feeds])

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each subgraph in the whole network, 0 to 1."""
        return tuple(subgraph.share for subgraph in self._subgraphs)

    def places(self, linears: Iterable[str]) -> tuple[int, int]:
        """Places of the first and the last subgraph that read these linears' weights."""
        names = {weight_input(self._layers.blockmap.linear(name)) for name in linears}
        reading = [place for place, subgraph in enumerate(self._subgraphs) if subgraph.inputs & names]
        return reading[0], reading[-1]

    def _own(self, index: int) -> dict[str, np.ndarray]:
        """What the subgraphs hand on of a sample with the own plan; kept."""
        if index not in self._known:
            self._known[index] = self._from(0, {**self._samples.feeds[index], **self._base})
        return self._known[index]

    def _run(
        self, index: int, parameters: Mapping[str, np.ndarray], tensors: Sequence[str] = (), last: int | None = None
    ) -> dict[str, np.ndarray]:
        """What the subgraphs up to ``last`` hand on, and watched tensors, of one of the own samples."""
        feed = self._samples.feeds[index]
        if len(self._subgraphs) == 1:
            return self._from(0, {**feed, **parameters}, tensors)
        known = self._own(index)
        changed = {
            name
            for name, value in parameters.items()
            if value is not self._base[name] and not np.array_equal(value, self._base[name])
        }
        places = (
            place
            for place, subgraph in enumerate(self._subgraphs)
            if subgraph.inputs & changed or subgraph.gives(tensors)
        )
        first = next(places, len(self._subgraphs))
        return known | self._from(first, {**feed, **known, **parameters}, tensors, last)

    def _from(
        self,
        first: int,
        values: Mapping[str, np.ndarray],
        tensors: Sequence[str] = (),
        last: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Run the subgraphs ``first`` to ``last``; ``values`` are the inputs and what subgraphs before them hand on."""
        known, computed = dict(values), dict[str, np.ndarray]()
        for subgraph in self._subgraphs[first : len(self._subgraphs) if last is None else last + 1]:
            names = [*subgraph.outputs, *(subgraph.watched & {*tensors})]
            outputs = subgraph.session.run({name: known[name] for name in subgraph.inputs}, names)
            computed.update(zip(names, outputs, strict=True))
            known.update(computed)
            self.runs += subgraph.share
        return computed


def _opened(probe: gs.Graph, weighted: WeightedSubgraph, threads: int) -> _OpenSubgraph:
    graph = as_graph(probe, weighted.subgraph, weighted.watched).copy()  # subgraphs share their tensors
    for tensor in graph.inputs:
        tensor.dtype = tensor.dtype or np.float32
    with scratch_folder() as folder:
        path = folder / "probe.onnx"
        save_in_scratch(to_proto(graph, {}), path)
        session = Session(path, threads=threads, spare="cores")
    return _OpenSubgraph(
        session=session,
        inputs=frozenset(weighted.subgraph.inputs),
        outputs=weighted.subgraph.outputs,
        watched=frozenset(weighted.watched),
        share=weighted.share,
    )
