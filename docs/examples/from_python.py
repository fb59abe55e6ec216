"""Quantize from Python, with calibration samples that a generator makes one at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import onnxvitq

MODEL = Path("models/fashion_vit/model.onnx")
IMAGES = sorted(Path("models/fashion_vit/calib").glob("*.png"))[:16]


def feeds() -> Iterator[dict[str, np.ndarray]]:
    """A feed maps each input's name to an array with the samples along the first axis."""
    for path in IMAGES:
        pixels = np.asarray(Image.open(path).convert("L"), np.float32) / 255
        yield {"input": ((pixels - 0.286) / 0.353)[None, None]}


config = onnxvitq.QuantConfig(effort="fast")
result = onnxvitq.quantize(MODEL, feeds(), "from_python_int8.onnx", config)
print(f"{result.output}: {result.output.stat().st_size / MODEL.stat().st_size:.0%} of the float model's size")
