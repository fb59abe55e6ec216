from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.labelled import Labelled, open_labelled
from onnxvitq.data.preprocess import Preprocessing

Flat = Callable[[Path, int], Path]
Inputs = tuple[InputSpec, ...]


def pairs(labelled: Labelled) -> list[tuple[int, int]]:
    """(level, label) of each sample, paddings dropped."""
    return [
        (int(image.mean()), int(label))
        for feed, labels in labelled
        for image, label in zip(feed["pixels"], labels, strict=False)
    ]


def test_classes_are_numbered_by_name(tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat) -> None:
    for level, name in enumerate(("dog/a.png", "cat/b.png", "cat/deep/a.png", "10/a.png", "9/a.png")):
        flat_image(tmp_path / name, level)
    labelled = open_labelled(tmp_path, grey, plain)
    assert pairs(labelled) == pairs(labelled) == [(3, 0), (4, 1), (1, 2), (2, 2), (0, 3)]
    assert (labelled.count, labelled.skipped) == (5, ())
    assert labelled.description == f"5 image(s) of 4 class(es) in {tmp_path}"


def test_whole_numbers_are_the_class_indices(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for level, name in enumerate(("10", "9", "007")):
        flat_image(tmp_path / name / "a.png", level)
    (tmp_path / ".cache").mkdir()
    assert pairs(open_labelled(str(tmp_path), grey, plain)) == [(2, 7), (1, 9), (0, 10)]


def test_labels_are_int64_and_batches_as_asked(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for number in range(5):
        flat_image(tmp_path / str(number % 2) / f"{number}.png", number)
    batches = list(open_labelled(tmp_path, grey, plain, batch=2))
    assert [feed["pixels"].shape[0] for feed, _ in batches] == [2, 2, 1]
    assert [labels.tolist() for _, labels in batches] == [[0, 0], [0, 1], [1]]
    assert {labels.dtype for _, labels in batches} == {np.dtype(np.int64)}


def test_a_static_batch_is_filled_up_and_its_labels_are_not(
    tmp_path: Path, plain: Preprocessing, flat_image: Flat
) -> None:
    inputs = (InputSpec(name="pixels", dtype="float32", shape=(4, 1, 4, 4)),)
    for number in range(6):
        flat_image(tmp_path / str(number) / "a.png", number)
    labelled = open_labelled(tmp_path, inputs, plain, batch=32)
    assert [(feed["pixels"].shape[0], labels.tolist()) for feed, labels in labelled] == [
        (4, [0, 1, 2, 3]),
        (4, [4, 5]),
    ]
    assert pairs(labelled) == [(number, number) for number in range(6)]


def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    flat_image(tmp_path / "a" / "1.png", 1)
    flat_image(tmp_path / "b" / "1.png", 2)
    flat_image(tmp_path / "loose.png", 3)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    labelled = open_labelled(tmp_path, grey, plain)
    assert pairs(labelled) == [(1, 0), (2, 1)]
    assert labelled.skipped == (("a/0.png", "the file is empty"), ("loose.png", "not in the folder of a class"))
    assert labelled.count == 2


def test_no_readable_image_is_an_error(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 image\(s\) can be used: a/0\.png: the file is empty"):
        open_labelled(tmp_path, grey, plain)


def test_a_folder_that_is_not_labelled_is_refused(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    flat_image(tmp_path / "x.png", 1)
    with pytest.raises(DataError, match="expected a sub-folder for each class"):
        open_labelled(tmp_path, grey, plain)
    flat_image(tmp_path / "a" / "x.png", 1)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: expected images of this class, got none"):
        open_labelled(tmp_path, grey, plain)


@pytest.mark.parametrize(
    ("names", "problem"),
    [(("1", "01"), "one folder a class, got 01 and 1 for 1"), (("0", "9" * 30), "up to 2147483647")],
)
def test_class_indices_must_be_usable(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat, names: tuple[str, ...], problem: str
) -> None:
    for name in names:
        flat_image(tmp_path / name / "x.png", 1)
    with pytest.raises(DataError, match=problem):
        open_labelled(tmp_path, grey, plain)


@pytest.mark.parametrize("dtype", ["uint8", "int64", ">i4"])
def test_npz_with_x_and_y(tmp_path: Path, grey: Inputs, plain: Preprocessing, dtype: str) -> None:
    levels = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8)
    np.savez(tmp_path / "test.npz", x=levels, y=np.array([3, 1, 4, 1, 5]).astype(dtype))
    labelled = open_labelled(tmp_path / "test.npz", grey, plain, batch=4)
    assert pairs(labelled) == pairs(labelled) == [(0, 3), (1, 1), (2, 4), (3, 1), (4, 5)]
    assert [len(labels) for _, labels in labelled] == [4, 1]
    assert (labelled.count, labelled.skipped) == (5, ())


def test_npz_by_the_inputs_name_for_two_inputs(tmp_path: Path) -> None:
    inputs = (
        InputSpec(name="pixels", dtype="float32", shape=(None, 2)),
        InputSpec(name="mask", dtype="float32", shape=(None, 3)),
    )
    np.savez(tmp_path / "t.npz", pixels=np.ones((4, 2)), mask=np.zeros((4, 3)), y=np.arange(4))
    ((feed, labels),) = open_labelled(tmp_path / "t.npz", inputs, None)
    assert (feed["pixels"].shape, feed["mask"].shape, labels.tolist()) == ((4, 2), (4, 3), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": np.zeros((2, 1, 4, 4))}, "expected an array named y, got x"),
        ({"y": np.arange(2)}, "expected an array named pixels, or x, got none"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.arange(3)}, "a label for each of 2 pixels, got 3"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.zeros(2)}, r"y of .*: expected integers \(N,\), got float64"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.zeros((2, 1), int)}, r"expected integers \(N,\), got int64 \[2, 1\]"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.array([0, -1])}, "expected class indices, got -1 to 0"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.array([0, 2**63], np.uint64)}, "expected class indices"),
        ({"x": np.full((2, 1, 4, 4), np.nan), "y": np.arange(2)}, "sample 0 holds NaN"),
        ({"x": np.zeros((0, 1, 4, 4)), "y": np.zeros(0, int)}, "no samples"),
        ({"x": np.zeros((2, 3, 4, 4)), "y": np.arange(2)}, "wrong dimensions"),
    ],
)
def test_wrong_arrays_are_refused(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, arrays: dict[str, Any], problem: str
) -> None:
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises(DataError, match=problem):
        open_labelled(tmp_path / "test.npz", grey, plain)


def test_what_is_neither_folder_nor_npz_is_refused(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 4, 4)))
    with pytest.raises(DataError, match=r"or a \.npz file with x and y"):
        open_labelled(tmp_path / "x.npy", grey, plain)
    with pytest.raises(DataError, match="No such file"):
        open_labelled(tmp_path / "absent", grey, plain)
    with pytest.raises(ConfigError, match="--batch"):
        open_labelled(tmp_path, grey, plain, batch=0)


def test_a_model_that_takes_no_images_points_to_npz(tmp_path: Path, flat_image: Flat, plain: Preprocessing) -> None:
    flat_image(tmp_path / "a" / "x.png", 1)
    inputs = (InputSpec(name="ids", dtype="int64", shape=(None, 5)),)
    with pytest.raises(DataError, match=r"pass a \.npz file"):
        open_labelled(tmp_path, inputs, plain)
