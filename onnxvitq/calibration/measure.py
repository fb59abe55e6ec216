"""Statistics of a canonical graph on the calibration dataset: by a sweep, or propagated from before an exact change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnxvitq.calibration.cache import CalibrationCache
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.calibration.observers import operand_samples
from onnxvitq.calibration.propagate import Change, propagated
from onnxvitq.calibration.sweep import Sampling, sweep
from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.query import reached
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.graph.writing import to_proto

OPERANDS = frozenset({"left", "right"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurer:
    """Measures statistics of graphs on one calibration dataset.

    Attributes:
        model: path of the user's model, for errors.
        feeds: the calibration dataset.
        threads: of onnxruntime; 0 takes one a core.
        progress: called with the number of samples done, and the number of all samples or None.
        cache: of sweeps over all samples; None keeps nothing.
    """

    model: str
    feeds: CalibrationDataset
    threads: int
    progress: Callable[[int, int | None], None]
    cache: CalibrationCache | None = None

    def measure(
        self, graph: gs.Graph, requests: Sequence[StatisticsRequest], sampling: Sampling, count: int | None = None
    ) -> Statistics:
        """Measure by one sweep over all samples, or read the result of such a sweep from the cache.

        Args:
            graph: canonical.
            requests: what to measure; repetitions count once.
            sampling: how samples and rows are drawn.
            count: number of all samples, where it is known; for ``progress`` only.

        Raises:
            InvalidGraphError: onnxruntime cannot run the graph.
        """
        return self._sweep(graph, tuple(dict.fromkeys(requests)), sampling, count)

    def measure_changed(
        self,
        graphs: tuple[gs.Graph, gs.Graph],
        blockmaps: tuple[BlockMap, BlockMap],
        change: Change,
        stats: Statistics,
        wanted: tuple[Sequence[StatisticsRequest], Sampling],
    ) -> Statistics:
        """Statistics of a graph after an exact change: propagated where they follow, measured where they do not.

        Args:
            graphs: (before, after) the change.
            blockmaps: of the two graphs.
            change: what was done.
            stats: of the graph before.
            wanted: (requests, sampling) of the graph after. Requests for operands of products run the few samples that
                operands are kept of; any other request that does not follow runs all samples.

        Raises:
            InvalidGraphError: onnxruntime cannot run the graph.
        """
        requests, sampling = wanted
        reach: set[str] = set()
        for tensors, stops in change.starts_and_stops(blockmaps[0]):
            reach |= reached(graphs[0], tensors, stops)
        known, missing = propagated(stats, blockmaps, change, reach, tuple(dict.fromkeys(requests)))
        del stats  # the caller's as well: a tenth of what a fit holds
        if not missing:
            return known
        if any(request.kind not in OPERANDS for request in missing):
            return known.joined(self._sweep(graphs[1], missing, sampling, known.count))
        again = known.count if self.feeds.kept is None else min(known.count, self.feeds.kept)
        few = operand_samples(sampling.seed, again)
        return known.joined(self._sweep(graphs[1], missing, replace(sampling, only=few), len(few)))

    def _sweep(
        self, graph: gs.Graph, requests: tuple[StatisticsRequest, ...], sampling: Sampling, count: int | None
    ) -> Statistics:
        """Write the graph to a temporary folder, where onnxruntime reads it, and sweep."""

        def report(done: int) -> None:
            self.progress(done, count)

        with scratch_folder() as folder:
            observed = folder / "observed.onnx"
            save_in_scratch(to_proto(with_outputs(graph, [request.tensor for request in requests]), {}), observed)

            def measure() -> Statistics:
                return sweep(observed, self.feeds, requests, sampling, threads=self.threads, progress=report)

            try:
                if self.cache is None or sampling.only is not None:  # a few samples run as fast as they are looked up
                    return measure()
                return self.cache.stats(observed, requests, sampling, measure)
            except InvalidGraphError as error:  # names the temporary file
                raise InvalidGraphError(self.model, error.problem, error.hint) from error
