"""The rules that every graph obeys between two passes."""

import onnx_graphsurgeon as gs

from onnxvitq.core.errors import InvalidGraphError


def check_graph(graph: gs.Graph, where: str) -> None:
    """Check that names are unique, every tensor is computed once, and nothing is read before it is computed.

    Args:
        graph: sorted topologically.
        where: which pass or step left the graph like this, for the error.

    Raises:
        InvalidGraphError: names the first tensor or node that breaks a rule.
    """
    names: set[str] = set()
    for node in graph.nodes:
        if node.name and node.name in names:
            raise InvalidGraphError(where, f"two nodes are called {node.name!r}")
        names.add(node.name)
    known = {tensor.name for tensor in graph.inputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            if tensor.name and not isinstance(tensor, gs.Constant) and tensor.name not in known:
                raise InvalidGraphError(where, f"node {node.name!r} reads {tensor.name!r} before it is computed")
        for tensor in node.outputs:
            if tensor.name and tensor.name in known:
                raise InvalidGraphError(where, f"tensor {tensor.name!r} is computed twice")
            known.add(tensor.name)
    for tensor in graph.outputs:
        if tensor.name not in known and not isinstance(tensor, gs.Constant):
            raise InvalidGraphError(where, f"output {tensor.name!r} is never computed")
