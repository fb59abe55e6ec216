"""A loaded graph in canonical form; shapes that cannot be inferred are observed in two runs on noise."""

import logging

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.reading import LoadedModel
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.graph.shapes import infer_shapes, unknown_tensors
from onnxvitq.graph.writing import to_proto
from onnxvitq.runtime.noise import FREE_SIDE, random_feed
from onnxvitq.runtime.shapes import observe_shapes

logger = logging.getLogger(__name__)


def bring_to_canonical_form(loaded: LoadedModel, threads: int) -> dict[str, int]:
    """Bring a loaded graph to canonical form, in place.

    Where the rank of a tensor cannot be inferred, the model is run on two random inputs of different sizes, and the shapes
    observed are set.

    Args:
        loaded: its graph is changed.
        threads: of onnxruntime; 0 takes one a core.

    Returns:
        Name of each pass -> number of its edits.
    """
    graph = loaded.graph
    edits = canonicalise(graph)
    unknown = unknown_tensors(graph)
    if not unknown:
        return edits
    feeds = [random_feed(loaded.inputs, batch, seed=0, side=FREE_SIDE * batch) for batch in (1, 2)]
    with scratch_folder() as folder:
        probe = folder / "probe.onnx"
        save_in_scratch(to_proto(with_outputs(graph, unknown), {}), probe)
        try:
            observed = observe_shapes(probe, feeds[0], feeds[1], threads)
        except InvalidGraphError as error:  # noise of that size is no input for it: the shapes stay unknown
            logger.warning("shapes of %d tensors stay unknown: %s", len(unknown), error.problem)
            return edits
    tensors = graph.tensors()
    for name, (shape, dtype) in observed.items():
        tensors[name].shape, tensors[name].dtype = shape, dtype
    infer_shapes(graph)
    more = canonicalise(graph)
    return {name: count + more[name] for name, count in edits.items()}
