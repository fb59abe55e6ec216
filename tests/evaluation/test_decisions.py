"""Data that judge a promise: read with their labels, kept apart from calibration."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.arrays import sample_digests
from onnxvitq.data.preprocess import Preprocessing
from onnxvitq.evaluation.decisions import (
    Decisions,
    held_out_decisions,
    open_decisions,
    read_decisions,
    refuse_calibration_data,
)

INPUTS = (InputSpec(name="x", dtype="float32", shape=(None, 3)),)
ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
CLASSES = ROWS.argmax(axis=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Its scores are its inputs."""
    path = tmp_path / "model.onnx"
    onnx.save(model_of("(float[N, 3] x) => (float[N, 3] y) { y = Identity(x) }"), path)
    return path


def read(model: Path, path: Path, seen: set[bytes] | None = None) -> Decisions:
    return read_decisions(model, open_decisions(path, INPUTS, None), seen or set(), 1)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_labels_are_read_where_there_are_any(model: Path, tmp_path: Path) -> None:
    found = read(model, saved(tmp_path / "a.npz", x=ROWS, y=CLASSES))
    assert found.labels is not None
    assert found.labels.tolist() == CLASSES.tolist()
    assert np.array_equal(found.scores, ROWS)
    assert found.source == f"50 labelled sample(s) in {tmp_path}/a.npz"
    unlabelled = read(model, saved(tmp_path / "b.npz", x=ROWS))
    assert unlabelled.labels is None
    assert np.array_equal(unlabelled.scores, ROWS)
    assert found.digest != unlabelled.digest


def test_feeds_are_read_again_and_again(model: Path, tmp_path: Path) -> None:
    for path in (saved(tmp_path / "a.npz", x=ROWS, y=CLASSES), saved(tmp_path / "b.npz", x=ROWS)):
        feeds = read(model, path).feeds
        for _ in range(2):
            assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), ROWS)


def test_a_filled_up_batch_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_of("(float[8, 3] x) => (float[8, 3] y) { y = Identity(x) }"), path)
    inputs = (InputSpec(name="x", dtype="float32", shape=(8, 3)),)
    for data in (saved(tmp_path / "a.npz", x=ROWS, y=CLASSES), saved(tmp_path / "b.npz", x=ROWS)):
        assert len(read_decisions(path, open_decisions(data, inputs, None), set(), 1).scores) == 50


def test_samples_of_calibration_are_refused_by_content(model: Path, tmp_path: Path) -> None:
    seen = set(sample_digests({"x": ROWS[3:5]}))
    for path in (saved(tmp_path / "a.npz", x=ROWS, y=CLASSES), saved(tmp_path / "b.npz", x=ROWS)):
        with pytest.raises(DataError, match="not calibrated with, got 2 of 50 that are"):
            read(model, path, seen)


def test_the_same_path_is_refused_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="got the same"):
        refuse_calibration_data(tmp_path / "link", str(tmp_path / "a" / ".." / "a"))
    refuse_calibration_data(tmp_path / "a", tmp_path)
    refuse_calibration_data(tmp_path / "a", [ROWS])


def test_labels_of_something_else_are_refused(model: Path, tmp_path: Path) -> None:
    """A promise about top-1 would be kept by any model where the float model is right by chance alone."""
    with pytest.raises(DataError, match=r"expected the labels of this model, got 0 % right of 3 classes"):
        read(model, saved(tmp_path / "a.npz", x=ROWS, y=(CLASSES + 1) % 3))
    with pytest.raises(DataError, match="expected classes 0 to 2, got 0 to 7"):
        read(model, saved(tmp_path / "b.npz", x=ROWS, y=np.where(CLASSES == 2, 7, 0)))


def test_features_are_no_decisions(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_of("(float[N, 3, 1] x) => (float[N, 3, 1] y) { y = Identity(x) }"), path)
    inputs = (InputSpec(name="x", dtype="float32", shape=(None, 3, 1)),)
    with pytest.raises(ConfigError, match="max_drop: expected class scores"):
        read_decisions(path, open_decisions(saved(tmp_path / "a.npz", x=ROWS[..., None]), inputs, None), set(), 1)
    with pytest.raises(ConfigError, match="max_drop: expected class scores"):
        held_out_decisions([], [], [ROWS[..., None]])


def test_margins_are_those_of_all_calibration_samples() -> None:
    found = held_out_decisions([{"x": ROWS[:1]}], [ROWS[:1]], [ROWS[:1], ROWS[1:9]])
    assert (len(found.scores), len(found.margins), found.labels) == (1, 9, None)


def test_folders_of_classes_have_labels_and_a_folder_of_images_has_none(tmp_path: Path) -> None:
    from PIL import Image

    inputs = (InputSpec(name="x", dtype="float32", shape=(None, 1, 4, 4)),)
    preprocessing = Preprocessing(mode="L", resize=(4, 4), scale=1.0, mean=(0.0,), std=(1.0,))
    for name in ("flat/a.png", "classes/0/a.png", "classes/1/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert open_decisions(tmp_path / "flat", inputs, preprocessing).description.startswith("1 of 1 image(s)")
    assert "of 2 class(es)" in open_decisions(tmp_path / "classes", inputs, preprocessing).description
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"b\.npz"):
        open_decisions(tmp_path / "b.npz", inputs, preprocessing)
