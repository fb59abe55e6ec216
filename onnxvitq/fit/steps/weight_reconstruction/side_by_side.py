"""The float network and the quantized-so-far network run side by side, from one linear layer to the next.

Each layer then has its float input (for the target) and its quantized input: what the integer kernel will read, errors of
everything before it included. Weights are solved this way, and branches of low rank are fitted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.calibration.subgraphs import SubgraphRunner
from onnxvitq.core.layers import Linear
from onnxvitq.core.plan import Layers
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.fit import times

Function = Callable[[FloatArray], FloatArray]


class SideBySide:
    """Both networks over all samples; linear layers are computed by the caller, in the order of the network.

    Args:
        graph: canonical; never changed.
        quantized: the same with products of activations quantized (``Target.write_products``).
        layers: what was found in them.
        feeds: calibration samples.
        folder: for files; it exists, and the caller removes it.
        threads: of onnxruntime.

    Attributes:
        float: the float network.
        quantized: the quantized one.
        samples: how many.
    """

    def __init__(
        self,
        graph: gs.Graph,
        quantized: gs.Graph,
        layers: Layers,
        feeds: Iterable[Mapping[str, np.ndarray]],
        folder: Path,
        threads: int,
    ) -> None:
        linears = layers.blockmap.linears
        self.float = SubgraphRunner(graph, linears, feeds, folder / "float", threads)
        self.quantized = SubgraphRunner(quantized, linears, feeds, folder / "quantized", threads)
        self.samples = self.float.samples
        self._layers, self._streams = layers, residual_streams(graph, linears)

    def reach(self, tensor: str, readers: Sequence[Linear]) -> dict[str, str]:
        """Run both networks as far as a tensor and the residual streams that its readers write to.

        Returns:
            Name of a reader -> name of its stream, of those that write to one that is there already.

        Raises:
            InvalidGraphError: a subgraph does not run.
            OSError: no room in the folder.
        """
        streams = {linear.name: self._streams.get(linear.output, "") for linear in readers}
        streams = {name: stream for name, stream in streams.items() if stream and self.float.can_reach(stream)}
        for network in (self.float, self.quantized):
            network.reach([tensor, *streams.values()])
        return streams

    def inputs(self, tensor: str, sample: int) -> tuple[FloatArray, FloatArray]:
        """A sample's value (.., I) of a tensor in the float network and in the quantized one."""
        return self.float.values.get(tensor, sample), self.quantized.values.get(tensor, sample)

    def stream_error(self, stream: str, sample: int, rows: np.ndarray) -> FloatArray:
        """What some rows of a sample's residual stream lack in the quantized network, (r, C): float minus quantized."""
        in_float, quantized = self.inputs(stream, sample)
        difference: FloatArray = in_float - quantized
        return difference.reshape(-1, difference.shape[-1])[rows]

    def compute(self, linear: Linear, quantized: Function | None) -> None:
        """Both networks' output of a layer: of the float one by its weight, and of the quantized one by a function.

        Without a function the layer is float in both.
        """
        in_float = affine(self._layers.weight(linear.name), self._layers.bias(linear.name), None)
        self.float.compute(linear, in_float)
        self.quantized.compute(linear, in_float if quantized is None else quantized)


def readers_by_input(linears: Sequence[Linear]) -> dict[str, list[Linear]]:
    """Linear layers by the tensor they read, in the order of the network."""
    readers: dict[str, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(linear.input, []).append(linear)
    return readers


def residual_streams(graph: gs.Graph, linears: Sequence[Linear]) -> dict[str, str]:
    """Linear layer's output -> the residual stream, the tensor of its shape, that it is added to and nothing else reads."""
    tensors, streams = graph.tensors(), {}
    for linear in linears:
        output = tensors[linear.output]
        reader = output.outputs[0] if len(output.outputs) == 1 else None
        if reader is None or reader.op != "Add" or any(output is kept for kept in graph.outputs):
            continue
        other = next((tensor for tensor in reader.inputs if tensor is not output), output)
        if not isinstance(other, gs.Constant) and other.shape == output.shape and other is not output:
            streams[linear.output] = other.name
    return streams


def affine(weight: FloatArray, bias: FloatArray, quantize: Function | None) -> Function:
    """X (.., I) -> Q(X) W + b (.., O); without a quantizer Q, X is left as it is."""
    return lambda x: times(x if quantize is None else quantize(x), weight) + bias
