"""A model run piece by piece over all calibration samples, with the linear layers computed by the caller in between."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxvitq.blockmap import Linear
from onnxvitq.graph.segments import Gap, Segments
from onnxvitq.runtime.session import Session
from onnxvitq.spec import FloatArray

IN_MEMORY = 768 * 2**20  # bytes of stored tensors; beyond, they go to files that are mapped


class Store:
    """Tensors of every sample by name: in memory up to a limit, then in files."""

    def __init__(self, folder: Path, limit: int = IN_MEMORY) -> None:
        self._folder, self._room, self._files = folder, limit, 0
        self._values: dict[str, list[np.ndarray]] = {}

    def append(self, name: str, value: np.ndarray) -> None:
        """The next sample's value of a tensor.

        Raises:
            OSError: no room in the scratch folder.
        """
        if value.nbytes <= self._room:
            self._room -= value.nbytes
        else:
            path = self._folder / f"tensor{self._files}.npy"
            self._files += 1
            np.save(path, value)
            value = np.load(path, mmap_mode="r")
        self._values.setdefault(name, []).append(value)

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        for value in self._values.pop(name):
            if isinstance(value, np.memmap):
                Path(str(value.filename)).unlink()
            else:
                self._room += value.nbytes

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """One array a sample."""
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    @property
    def names(self) -> list[str]:
        """What is held."""
        return list(self._values)


class Pieces:
    """Runs one graph over the samples as far as is asked for.

    Args:
        graph: canonical; its linear layers are left to the caller.
        linears: those layers.
        feeds: one a sample, held until the last reader of the inputs has run.
        folder: for files; the caller removes it.
        threads: of onnxruntime.
    """

    def __init__(
        self,
        graph: gs.Graph,
        linears: Sequence[Linear],
        feeds: Sequence[Mapping[str, np.ndarray]],
        folder: Path,
        threads: int,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._segments, self._threads = Segments(graph, [_gap(linear) for linear in linears]), threads
        self._folder, self._count, self._samples = folder, 0, len(feeds)
        self.values = Store(folder)
        for feed in feeds:
            for name, value in feed.items():
                self.values.append(name, value)

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
        for sample in range(self._samples):
            feed = {name: self.values[name][sample] for name in segment.inputs}
            for name, value in zip(segment.outputs, session.run(feed, segment.outputs), strict=True):
                self.values.append(name, value)
        self._forget(targets)

    def can_reach(self, tensor: str) -> bool:
        """Whether a tensor depends on nothing but what is available."""
        return self._segments.can_reach(tensor)

    def compute(self, linear: Linear, apply: Callable[[FloatArray], FloatArray]) -> None:
        """A linear layer's output (after the bias), from its input, sample by sample."""
        for value in self.values[linear.input]:
            self.values.append(linear.output, apply(value))
        self._segments.provide(_gap(linear))

    def _forget(self, kept: Collection[str]) -> None:
        for name in self.values.names:
            if name not in kept and not self._segments.is_needed(name):
                self.values.drop(name)


def _gap(linear: Linear) -> Gap:
    nodes = (linear.name, linear.bias_node) if linear.bias_node else (linear.name,)
    return Gap(nodes=nodes, input=linear.input, output=linear.output)
