from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.preprocess import Preprocessing

GREY = (InputSpec(name="pixels", dtype="float32", shape=(None, 1, 4, 4)),)
COLOUR = (InputSpec(name="pixels", dtype="float32", shape=(None, 3, 4, 4)),)


@pytest.fixture
def grey() -> tuple[InputSpec, ...]:
    """The inputs of a model for grey images of 4 x 4 pixels, dynamic batch."""
    return GREY


@pytest.fixture
def colour() -> tuple[InputSpec, ...]:
    """The inputs of a model for colour images of 4 x 4 pixels, dynamic batch."""
    return COLOUR


@pytest.fixture
def plain() -> Preprocessing:
    """Grey images resized to 4 x 4, values left at 0..255: an image of one level gives that level."""
    return Preprocessing(mode="L", resize=(4, 4), scale=1.0, mean=(0.0,), std=(1.0,))


@pytest.fixture
def plain_colour() -> Preprocessing:
    """As `plain`, in colour."""
    return Preprocessing(mode="RGB", resize=(4, 4), scale=1.0, mean=(0.0,), std=(1.0,))


@pytest.fixture
def flat_image() -> Callable[[Path, int], Path]:
    """Writes a 5 x 6 grey image of one level."""

    def write(path: Path, level: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 6), level, np.uint8)).save(path)
        return path

    return write
