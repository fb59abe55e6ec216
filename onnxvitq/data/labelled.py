"""Samples with labels, for measuring: a folder for each class, or arrays ``x`` and ``y``."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxvitq.data.arrays import Array, Feed, Sample, chunks, load_npz, read_arrays, stack, static_batch
from onnxvitq.data.images import ImageReader, list_images, printable
from onnxvitq.data.preprocess import Preprocessing
from onnxvitq.data.source import check_image_model, check_path
from onnxvitq.errors import ConfigError, DataError
from onnxvitq.spec import InputSpec

Labels = NDArray[np.int64]
