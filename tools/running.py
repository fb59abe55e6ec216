"""Models on arrays of samples, in onnxruntime on one thread."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxvitq.runtime.session import Session


def infer(model: Path, feeds: Mapping[str, np.ndarray], batch: int = 1) -> np.ndarray:
    """The first output for all samples: (N, ...). Samples of one batch share the ranges of dynamic activations."""
    session = Session(model, threads=1)
    count = len(next(iter(feeds.values())))
    parts = ({name: values[at : at + batch] for name, values in feeds.items()} for at in range(0, count, batch))
    return np.concatenate([session.run(part)[0] for part in parts])


def input_name(model: Path) -> str:
    """Of the only input."""
    return Session(model, threads=1).input_specs[0].name
