"""Fixtures of the tests of model files."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Writes a model to a file and returns its path."""

    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save
