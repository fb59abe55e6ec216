"""Shapes observed in runs, where inference does not know them: behind an If or a Loop, or an unknown operator."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxvitq.runtime.session import Session


def observe_shapes(
    model: Path, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], threads: int
) -> dict[str, tuple[list[int | str], np.dtype[np.generic]]]:
    """Shapes and types of a model's outputs, from two runs whose feeds differ in every dynamic size.

    Args:
        model: a model file whose outputs are the tensors to observe.
        first: a feed.
        second: another feed. A size that differs between the runs gets a name of its own.
        threads: of onnxruntime.

    Returns:
        Output name -> (shape, type), of the outputs that are tensors with the same number of axes in both runs.

    Raises:
        InvalidGraphError: the model does not run on one of the feeds.
    """
    session = Session(model, threads=threads)
    pairs = zip(session.outputs, session.run(first), session.run(second), strict=True)
    return {
        name: (
            [
                size if size == other else f"{name}.{axis}"
                for axis, (size, other) in enumerate(zip(before.shape, after.shape, strict=True))
            ],
            before.dtype,
        )
        for name, before, after in pairs
        if isinstance(before, np.ndarray) and before.ndim == after.ndim
    }
