"""A task of your own: embeddings are compared by direction, and a sample's decision is its nearest neighbour in a gallery."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import onnxvitq
from onnxvitq.evaluation.tasks.features import Features

GALLERY = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)


class Retrieval(Features):
    """Embeddings (B, C) as the last output; what is decided is the nearest of the gallery's rows."""

    name = "retrieval"

    def evaluated_output(self, names: Sequence[str]) -> str:
        """The last of the model's outputs."""
        return names[-1]

    def comparable(self, output: NDArray[np.float32], *, probabilities: bool) -> NDArray[np.float64]:
        """Directions: an embedding's length means nothing."""
        exact = super().comparable(output, probabilities=probabilities)
        return exact / np.linalg.norm(exact, axis=-1, keepdims=True)

    def decisions(self, output: NDArray[np.float32]) -> NDArray[np.int64]:
        """Row of the gallery with the largest cosine, (B,)."""
        nearest: NDArray[np.int64] = (self.comparable(output, probabilities=False) @ GALLERY.T).argmax(axis=1)
        return nearest


config = onnxvitq.QuantConfig(effort="fast", num_samples=16)
result = onnxvitq.quantize(
    "models/fashion_vit/model.onnx", "models/fashion_vit/calib", "task_int8.onnx", config, task=Retrieval()
)
report = result.report
print(f"task {report.task}: SQNR of the directions {report.compare.sqnr_db} dB")
