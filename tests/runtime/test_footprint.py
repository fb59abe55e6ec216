"""Load and memory of a model in a process of its own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.runtime.footprint import footprint

SIDE = 2048  # a weight of 16 MiB


def test_a_weight_and_its_copies_are_counted_and_the_libraries_are_not(tmp_path: Path) -> None:
    peaks = {}
    for side in (4, SIDE):
        text = f"(float[1,{side}] x) => (float[1,{side}] y) <float[{side},{side}] W> {{ y = MatMul(x, W) }}"
        onnx.save(model_of(text, weights={"W": np.ones((side, side), np.float32)}), tmp_path / "model.onnx")
        np.savez(tmp_path / "feed.npz", x=np.ones((1, side), np.float32))
        found = footprint(tmp_path / "model.onnx", tmp_path / "feed.npz", 1)
        assert found.model == str(tmp_path / "model.onnx")
        assert found.load_ms > 0
        peaks[side] = found.peak_mb
    weight = 4e-6 * SIDE * SIDE
    assert peaks[4] < weight  # Python, numpy and onnxruntime alone are larger
    assert weight < peaks[SIDE] - peaks[4] < 5 * weight


def test_a_model_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    np.savez(tmp_path / "feed.npz", x=np.ones(1))
    with pytest.raises(InvalidGraphError, match=r"a process that loads and runs it fails: .*cannot load it"):
        footprint(tmp_path / "model.onnx", tmp_path / "feed.npz", 1)
