"""A graph that a plan is being written into, with what several layers share."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import Linear
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.graph.edit import Editor


class Draft:
    """One graph that is written into.

    Args:
        graph: canonical; edited in place.
        layers: what was found in it.
        plan: with parameters.
    """

    def __init__(self, graph: gs.Graph, layers: Layers, plan: QuantPlan) -> None:
        self.edit = Editor(graph)
        self.layers, self.plan = layers, plan
        self.nodes = {node.name: node for node in graph.nodes}
        self.tensors = graph.tensors()
        self._shared: dict[tuple[object, ...], gs.Tensor] = {}

    def once(self, key: tuple[object, ...], make: Callable[[], gs.Tensor]) -> gs.Tensor:
        """What ``make`` gave for this key the first time."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def zeros(self, dtype: "np.dtype[np.generic]", size: int) -> gs.Tensor:
        """A vector of zeros, (size,)."""
        return self.once(
            ("zeros", dtype, size), lambda: self.edit.constant(f"zeros_{dtype}_{size}", np.zeros(size, dtype))
        )

    def bias(self, linear: Linear) -> FloatArray:
        """(O,) bias of a linear: the plan's, else the float model's; zeros where it has none."""
        planned = self.plan.biases.get(linear.name)
        return self.layers.bias(linear.name) if planned is None else planned

    def cut(self, linear: Linear) -> gs.Variable:
        """A float linear's output, which its nodes no longer make."""
        last = self.nodes[linear.bias_node or linear.name]
        output = last.outputs[0]
        last.outputs.clear()
        return output

    def put_in_place(self, linear: Linear, output: gs.Variable, result: gs.Variable) -> None:
        """Let ``result`` be read where a linear's ``output`` was."""
        result.shape = output.shape
        self.edit.redirect(output, result)
        self.tensors[linear.output] = result


def integer_name(linear: str) -> str:
    """The name of the integer product that a linear becomes; the audit looks for it in the optimised session."""
    return f"{linear}_int8"


def simulated_name(linear: str) -> str:
    """The name of the float product that stands for a linear of a format without a kernel."""
    return f"{linear}_simulated"
