"""A model run piece by piece over all calibration samples, with the linear layers computed by the caller in between."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import fanned_out
from onnxvitq.core.tensors import FloatArray
from onnxvitq.graph.cut import Gap, Segments
from onnxvitq.runtime.session import Session

IN_MEMORY = 24 * 2**20  # bytes of stored tensors of one network; what comes after goes to files


class Store:
    """Tensors of every sample by name: in memory up to a limit, then in files that are read when asked for."""

    def __init__(self, folder: Path, limit: int = IN_MEMORY) -> None:
        self._folder, self._room, self._files = folder, limit, 0
        self._values: dict[str, list[np.ndarray | Path]] = {}

    def append(self, name: str, value: np.ndarray) -> None:
        """The next sample's value of a tensor.

        Raises:
            OSError: no room in the scratch folder.
        """
        values = self._values.setdefault(name, [])
        if value.nbytes <= self._room:
            self._room -= value.nbytes
            values.append(value.copy())  # what a session gave would keep all of the session's memory
            return
        path = self._folder / f"tensor{self._files}.npy"
        self._files += 1
        np.save(path, value)
        values.append(path)

    def get(self, name: str, sample: int) -> np.ndarray:
        """One sample's value of a tensor."""
        value = self._values[name][sample]
        return np.load(value) if isinstance(value, Path) else value

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        for value in self._values.pop(name):
            if isinstance(value, Path):
                value.unlink()
            else:
                self._room += value.nbytes

    @property
    def names(self) -> list[str]:
        """What is held."""
        return list(self._values)


class Pieces:
    """Runs one graph over the samples as far as is asked for.

    Args:
        graph: canonical; its linear layers are left to the caller.
        linears: those layers.
        feeds: one a sample, read once and stored.
        folder: for files; the caller removes it.
        threads: of onnxruntime.
    """

    def __init__(
        self,
        graph: gs.Graph,
        linears: Sequence[Linear],
        feeds: Iterable[Mapping[str, np.ndarray]],
        folder: Path,
        threads: int,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._segments, self._threads = Segments(graph, [_gap(linear) for linear in linears]), threads
        self._folder, self._count, self.samples = folder, 0, 0
        self.values = Store(folder)
        for feed in feeds:
            for name, value in feed.items():
                self.values.append(name, value)
            self.samples += 1

    def reach(self, targets: Collection[str]) -> None:
        """Run what ``targets`` need, over all samples; they and what later pieces read are in ``values`` then.

        Raises:
            InvalidGraphError: onnxruntime cannot run the piece.
            OSError: no room in the scratch folder.
        """
        segment = self._segments.towards(targets)
        if segment is None:
            return
        path = self._folder / f"piece{self._count}.onnx"
        self._count += 1
        onnx.save(segment.model, path)
        session = Session(path, threads=self._threads)
        path.unlink()
        for sample in range(self.samples):
            feed = {name: self.values.get(name, sample) for name in segment.inputs}
            for name, value in zip(segment.outputs, session.run(feed, segment.outputs), strict=True):
                self.values.append(name, value)
        self._forget(targets)

    def can_reach(self, tensor: str) -> bool:
        """Whether a tensor depends on nothing but what is available."""
        return self._segments.can_reach(tensor)

    def compute(self, linear: Linear, apply: Callable[[FloatArray], FloatArray]) -> None:
        """A linear layer's output (after the bias), from its input, sample by sample."""

        def compute(sample: int) -> FloatArray:
            return apply(self.values.get(linear.input, sample))

        for value in fanned_out(compute, range(self.samples), self._threads):
            self.values.append(linear.output, value)
        self._segments.provide(_gap(linear))

    def _forget(self, kept: Collection[str]) -> None:
        for name in self.values.names:
            if name not in kept and not self._segments.is_needed(name):
                self.values.drop(name)


def _gap(linear: Linear) -> Gap:
    nodes = (linear.name, linear.bias_node) if linear.bias_node else (linear.name,)
    return Gap(nodes=nodes, input=linear.input, output=linear.output)
