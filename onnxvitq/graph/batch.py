"""A model's batch size, frozen: what exporters compute of it at run time is then constant, and folded."""

import onnx

from onnxvitq.core.errors import UnsupportedModelError


def freeze_batch(where: str, proto: onnx.ModelProto, batch: int) -> None:
    """Give the first dimension of every input of a message the size ``batch``, and all that bear its name.

    Raises:
        UnsupportedModelError: an input has no first dimension, or one of another size.
    """
    constants = {initializer.name for initializer in proto.graph.initializer}
    names = {_freeze_input(where, value, batch) for value in proto.graph.input if value.name not in constants} - {""}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = batch


def _freeze_input(where: str, value: onnx.ValueInfoProto, batch: int) -> str:
    """The name that the dimension had; "" where it had none."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise UnsupportedModelError(where, f"--static-batch: input {value.name!r} has no batch dimension")
    if dims[0].dim_value not in {0, batch}:
        got = f"expected a batch of {batch} or a dynamic one, got {dims[0].dim_value} in input {value.name!r}"
        raise UnsupportedModelError(where, f"--static-batch: {got}", "export it again with a dynamic batch")
    name = str(dims[0].dim_param)
    dims[0].dim_value = batch
    return name
