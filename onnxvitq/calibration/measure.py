"""Statistics of a canonical graph on the calibration samples: by a sweep, or from those of the graph before an exact change."""

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
    """Runs sweeps.

    model: its path, for errors. feeds: calibration samples. cache: of sweeps over all of them. threads: of onnxruntime.
    progress: called with the samples that are done, and with how many there are where that is known.
    """

    model: str
    feeds: CalibrationDataset
    threads: int
    progress: Callable[[int, int | None], None]
    cache: CalibrationCache | None = None

    def measure(
        self, graph: gs.Graph, requests: Sequence[StatisticsRequest], sampling: Sampling, count: int | None = None
    ) -> Statistics:
        """One sweep over all samples, or what is kept of it in the cache. count: of samples, where it is known.

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
        """What is wanted of a graph after an exact change, from that before it (both in ``graphs`` and ``blockmaps``).

        Samples are run for what does not follow from ``stats``: the few that operands are kept of, or all.
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
        """From a temporary folder, which onnxruntime reads the graph from."""

        def report(done: int) -> None:
            self.progress(done, count)

        with scratch_folder() as folder:
            observed = folder / "observed.onnx"
            save_in_scratch(to_proto(with_outputs(graph, [request.tensor for request in requests]), {}), observed)

            def measure() -> Statistics:
                return sweep(observed, self.feeds, requests, sampling, threads=self.threads, progress=report)

            try:
                if self.cache is None or sampling.only is not None:  # a few are run as soon as looked up
                    return measure()
                return self.cache.stats(observed, requests, sampling, measure)
            except InvalidGraphError as error:  # it names the temporary file
                raise InvalidGraphError(self.model, error.problem, error.hint) from error
