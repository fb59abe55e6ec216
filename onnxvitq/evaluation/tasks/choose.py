"""Which task a model has, where nobody says it."""

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnxvitq.evaluation.tasks.classification import Classification
from onnxvitq.evaluation.tasks.features import Features
from onnxvitq.evaluation.tasks.task import Task


def choose_task(shape: Sequence[int], given: Task | None = None) -> Task:
    """The task that was given; else classification for an output (batch, classes > 1), features for any other shape."""
    if given is not None:
        return given
    return Classification() if len(shape) == 2 and shape[1] > 1 else Features()


def evaluated_output(names: Sequence[str], given: Task | None = None) -> str:
    """Which of the outputs is evaluated; where no task was given, its shape is what one is chosen by: the first."""
    return (given or Features()).evaluated_output(names)


def output_of(graph: gs.Graph, given: Task | None = None) -> gs.Tensor:
    """The output of a graph that is evaluated; where no task was given, the first."""
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    return outputs[evaluated_output(list(outputs), given)]
