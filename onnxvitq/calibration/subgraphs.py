"""A network run subgraph by subgraph over all calibration samples; the caller computes the linear layers in between."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import fanned_out
from onnxvitq.core.tensors import FloatArray
from onnxvitq.graph.cut import OutsideNodes, SubgraphCutter
from onnxvitq.runtime.session import Session

IN_MEMORY = 24 * 2**20  # bytes of stored tensors of one network; what comes after goes to files


class TensorStore:
    """Values of tensors, by tensor name and sample: in memory up to a limit, beyond it in files that are read when asked for.

    Args:
        folder: for the files; it exists.
        limit: bytes held in memory.
    """

    def __init__(self, folder: Path, limit: int = IN_MEMORY) -> None:
        self._folder, self._room, self._files = folder, limit, 0
        self._values: dict[str, list[np.ndarray | Path]] = {}

    def append(self, name: str, value: np.ndarray) -> None:
        """Store the next sample's value of a tensor.

        Raises:
            OSError: no room in the folder.
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
        """The value of a tensor for one sample, counted from 0."""
        value = self._values[name][sample]
        return np.load(value) if isinstance(value, Path) else value

    def drop(self, name: str) -> None:
        """Forget a tensor's values; its files are removed."""
        for value in self._values.pop(name):
            if isinstance(value, Path):
                value.unlink()
            else:
                self._room += value.nbytes

    @property
    def names(self) -> list[str]:
        """Names of the stored tensors."""
        return list(self._values)


class SubgraphRunner:
    """Runs one graph over all samples, as far as it is asked to; the linear layers are left to the caller.

    Args:
        graph: canonical; never changed.
        linears: the linear layers of the graph that the caller computes.
        feeds: input name -> value, one mapping a sample; read once and stored.
        folder: for files, made if it is not there; the caller removes it.
        threads: of onnxruntime.

    Attributes:
        samples: number of samples.
        values: tensors of every sample that have been computed and that are still needed.
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
        self._cutter, self._threads = SubgraphCutter(graph, [_outside(linear) for linear in linears]), threads
        self._folder, self._count, self.samples = folder, 0, 0
        self.values = TensorStore(folder)
        for feed in feeds:
            for name, value in feed.items():
                self.values.append(name, value)
            self.samples += 1

    def reach(self, targets: Collection[str]) -> None:
        """Run what ``targets`` need, over all samples. They and what later subgraphs read are in ``values`` afterwards.

        Raises:
            InvalidGraphError: onnxruntime cannot run the subgraph.
            OSError: no room in the folder.
        """
        subgraph = self._cutter.towards(targets)
        if subgraph is None:
            return
        path = self._folder / f"subgraph{self._count}.onnx"
        self._count += 1
        onnx.save(self._cutter.model(subgraph), path)
        session = Session(path, threads=self._threads)
        path.unlink()
        for sample in range(self.samples):
            feed = {name: self.values.get(name, sample) for name in subgraph.inputs}
            for name, value in zip(subgraph.outputs, session.run(feed, subgraph.outputs), strict=True):
                self.values.append(name, value)
        self._forget(targets)

    def can_reach(self, tensor: str) -> bool:
        """Whether a tensor can be computed from what is available, without a linear layer that is still to be computed."""
        return self._cutter.can_reach(tensor)

    def compute(self, linear: Linear, apply: Callable[[FloatArray], FloatArray]) -> None:
        """Store a linear layer's output (after the bias) of every sample, computed by ``apply`` from its input."""

        def compute(sample: int) -> FloatArray:
            return apply(self.values.get(linear.input, sample))

        for value in fanned_out(compute, range(self.samples), self._threads):
            self.values.append(linear.output, value)
        self._cutter.provide(_outside(linear))

    def _forget(self, kept: Collection[str]) -> None:
        for name in self.values.names:
            if name not in kept and not self._cutter.is_needed(name):
                self.values.drop(name)


def _outside(linear: Linear) -> OutsideNodes:
    """A linear layer's product and bias as nodes that the caller computes."""
    nodes = (linear.name, linear.bias_node) if linear.bias_node else (linear.name,)
    return OutsideNodes(nodes=nodes, input=linear.input, output=linear.output)
