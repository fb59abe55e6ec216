"""A fixed batch size: whatever exporters compute from it at run time is then constant, and can be folded."""

import onnx

from onnxvitq.core.errors import UnsupportedModelError


def freeze_batch(where: str, proto: onnx.ModelProto, batch: int) -> None:
    """Set the first size of every input to ``batch``, and with it every size of the same name, in place.

    Args:
        where: path of the model, for the error.
        proto: the model.
        batch: the size, at least 1.

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
    """Freeze the first size of one input, and return the name that it had; "" where it had none."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise UnsupportedModelError(where, f"--static-batch: input {value.name!r} has no batch dimension")
    if dims[0].dim_value not in {0, batch}:
        got = f"expected a batch of {batch} or a dynamic one, got {dims[0].dim_value} in input {value.name!r}"
        raise UnsupportedModelError(where, f"--static-batch: {got}", "export it again with a dynamic batch")
    name = str(dims[0].dim_param)
    dims[0].dim_value = batch
    return name
