"""Fashion-MNIST from Debian's package dataset-fashion-mnist, and the split that every figure here uses.

Of the 60,000 training images the last 2,000 of a seeded shuffle never train: 64 of them are the calibration images,
the rest are for validation. The 10,000 test images are only ever measured on.
"""

import gzip
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
MEAN, STD = 0.2860, 0.3530
HELD_OUT, CALIBRATION, SEED = 2000, 64, 0


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) uint8 of ``train`` or ``t10k``."""
    with gzip.open(FOLDER / f"{split}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(FOLDER / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images, labels


def split_indices(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint indices into the training images: (train, calibration, validation)."""
    order = np.random.default_rng(SEED).permutation(count)
    held_out = order[-HELD_OUT:]
    return order[:-HELD_OUT], held_out[:CALIBRATION], held_out[CALIBRATION:]


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 28, 28) -> float32 (N, 1, 28, 28), zero mean and unit variance over the training set."""
    return ((images.astype(np.float32) / 255 - MEAN) / STD)[:, None]
