import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxvitq.core.errors import ConfigError, DataError, OnnxVitqError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.preprocess import Preprocessing
from onnxvitq.data.source import Source, open_source

Flat = Callable[[Path, int], Path]
Inputs = tuple[InputSpec, ...]
TWO = (
    InputSpec(name="pixels", dtype="float32", shape=(None, 1, 4, 4)),
    InputSpec(name="mask", dtype="float32", shape=(None, 5)),
)


def levels(source: Source) -> list[int]:
    """The level of each flat image of a pass, batches opened up."""
    return [int(image.mean()) for feed in source for image in feed["pixels"]]


def batch_of(size: int) -> Inputs:
    return (InputSpec(name="pixels", dtype="float32", shape=(size, 1, 4, 4)),)


def values(count: int) -> np.ndarray:
    """Model-ready samples 0, 1, 2, ..."""
    return np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 1, 4, 4), np.float32)


class Reader:
    """onnxruntime's calibration data reader."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds, self.position = feeds, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.position += 1
        return self.feeds[self.position - 1] if self.position <= len(self.feeds) else None


class RewindingReader(Reader):
    def rewind(self) -> None:
        self.position = 0


# Folders and images


def test_a_folder_gives_one_image_a_feed_in_order(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for level, name in enumerate(("b/1.png", "a.png", "b/0.png")):
        flat_image(tmp_path / name, level)
    source = open_source(tmp_path, grey, plain)
    feeds = list(source)
    assert [feed["pixels"].shape for feed in feeds] == [(1, 1, 4, 4)] * 3
    assert feeds[0]["pixels"].dtype == np.float32
    assert levels(source) == [1, 2, 0]
    assert levels(source) == [1, 2, 0]
    assert (source.count, source.skipped, source.repeatable) == (3, (), True)
    assert source.description == f"3 of 3 image(s) in {tmp_path}"


def test_a_limit_takes_evenly_spaced_images_so_that_every_class_is_seen(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for label in range(4):
        for number in range(5):
            flat_image(tmp_path / str(label) / f"{number}.png", 10 * label + number)
    source = open_source(str(tmp_path), grey, plain, limit=4)
    assert levels(source) == [0, 10, 20, 30]
    assert source.count == 4
    assert levels(open_source(tmp_path, grey, plain, limit=3)) == [0, 11, 23]
    assert levels(open_source(tmp_path, grey, plain, limit=100)) == [10 * a + b for a in range(4) for b in range(5)]


def test_unreadable_images_are_named_and_passed_over(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for name, level in (("b.png", 1), ("d.png", 2), ("f.png", 3)):
        flat_image(tmp_path / name, level)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jpg").write_text("text")
    (tmp_path / "e.png").write_bytes((tmp_path / "d.png").read_bytes()[:50])
    source = open_source(tmp_path, grey, plain)
    assert source.count == 6
    assert levels(source) == [1, 2, 3]
    assert [name for name, _ in source.skipped] == ["a.png", "e.png", "sub/c.jpg"]
    assert source.skipped[0] == ("a.png", "the file is empty")
    assert source.skipped[2] == ("sub/c.jpg", "not an image")
    assert source.count == 3
    assert levels(source) == [1, 2, 3]
    assert len(source.skipped) == 3


def test_every_pass_gives_the_same_images(tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat) -> None:
    flat_image(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(b"")
    source = open_source(tmp_path, grey, plain)
    assert levels(source) == [1]
    flat_image(tmp_path / "b.png", 2)  # mended meanwhile, but skipped once is skipped for good
    assert levels(source) == [1]


def test_with_a_limit_a_neighbour_stands_in_for_an_unreadable_image(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for number in range(6):
        flat_image(tmp_path / f"{number}.png", number)
    for number in (0, 3, 4, 5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    source = open_source(tmp_path, grey, plain, limit=3)
    assert levels(source) == [1, 2]
    assert source.count == 2
    assert [name for name, _ in source.skipped] == ["0.png", "4.png", "5.png"]


def test_no_readable_image_names_the_first_few(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"x" * number)
    with pytest.raises(
        DataError, match=r"none of 5 image\(s\) can be used: 0\.png: the file is empty; 1\.png"
    ) as caught:
        open_source(tmp_path, grey, plain)
    assert "3.png" not in str(caught.value)


def test_images_removed_after_opening_are_an_error(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    path = flat_image(tmp_path / "x.png", 1)
    source = open_source(tmp_path, grey, plain)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        list(source)


def test_a_single_image(tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat) -> None:
    source = open_source(flat_image(tmp_path / "x.PNG", 5), grey, plain)
    assert (levels(source), source.count) == ([5], 1)
    (tmp_path / "y.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"y\.png: not an image"):
        open_source(tmp_path / "y.png", grey, plain)


def test_a_folder_without_images_is_an_error(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"expected image files \(bmp, .*\), got none"):
        open_source(tmp_path, grey, plain)


@pytest.mark.parametrize("name", ["absent", "absent.npz", "x\0y", "y" * 5000])
def test_a_missing_path_is_an_error(tmp_path: Path, grey: Inputs, plain: Preprocessing, name: str) -> None:
    with pytest.raises(DataError, match="expected a folder or a file"):
        open_source(str(tmp_path / name), grey, plain)


def test_an_empty_path_is_not_the_working_folder(grey: Inputs, plain: Preprocessing) -> None:
    with pytest.raises(DataError, match="empty path"):
        open_source("", grey, plain)


def test_an_unknown_kind_of_file_is_an_error(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"expected a folder, an image, \.npz or \.npy, got a file \.csv"):
        open_source(tmp_path / "x.csv", grey, plain)


@pytest.mark.parametrize(
    "inputs",
    [
        TWO,
        (InputSpec(name="ids", dtype="float32", shape=(1, 5)),),
        (InputSpec(name="pixels", dtype="uint8", shape=(1, 1, 4, 4)),),
    ],
)
def test_images_for_a_model_that_takes_none_point_to_npz(
    tmp_path: Path, inputs: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    flat_image(tmp_path / "x.png", 1)
    with pytest.raises(DataError, match=r"pass a \.npz file"):
        open_source(tmp_path, inputs, plain)


def test_a_static_batch_is_filled_up_with_its_own_samples(
    tmp_path: Path, plain: Preprocessing, flat_image: Flat
) -> None:
    for number in range(7):
        flat_image(tmp_path / f"{number}.png", number)
    (tmp_path / "2.png").write_bytes(b"")
    source = open_source(tmp_path, batch_of(4), plain)
    assert [feed["pixels"].shape for feed in source] == [(4, 1, 4, 4)] * 2
    assert levels(source) == [0, 1, 3, 4, 5, 6, 5, 6]
    assert source.count == 6


def test_the_digest_is_of_names_and_contents_used(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    def digest(**options: Any) -> str:
        return open_source(tmp_path, grey, plain, **options).digest

    flat_image(tmp_path / "a.png", 1)
    flat_image(tmp_path / "b.png", 2)
    first = digest()
    content = b"".join(
        name + b"\0" + hashlib.sha256((tmp_path / os.fsdecode(name)).read_bytes()).digest()
        for name in (b"a.png", b"b.png")
    )
    assert first == hashlib.sha256(content).hexdigest()
    (tmp_path / "c.png").write_bytes(b"")
    assert digest() == first
    iterated = open_source(tmp_path, grey, plain)
    list(iterated)
    assert iterated.digest == first
    assert digest(limit=1) != first
    (tmp_path / "b.png").rename(tmp_path / "d.png")
    renamed = digest()
    assert renamed != first
    flat_image(tmp_path / "d.png", 3)
    assert digest() not in {first, renamed}


def test_a_broken_off_pass_does_not_spoil_the_digest(
    tmp_path: Path, grey: Inputs, plain: Preprocessing, flat_image: Flat
) -> None:
    for number in range(3):
        flat_image(tmp_path / f"{number}.png", number)
    source = open_source(tmp_path, grey, plain)
    next(iter(source))
    assert source.digest == open_source(tmp_path, grey, plain).digest
    assert source.count == 3


def test_a_folder_is_streamed(tmp_path: Path, flat_image: Flat) -> None:
    inputs = (InputSpec(name="pixels", dtype="float32", shape=(2, 3, 256, 256)),)
    preprocessing = Preprocessing(mode="RGB", resize=(256, 256), mean=(0.5,), std=(0.5,))
    for number in range(12):
        flat_image(tmp_path / f"{number:02}.png", number)
    source = open_source(tmp_path, inputs, preprocessing)
    tracemalloc.start()
    for _ in source:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    batch = 2 * 3 * 256 * 256 * 4
    # the batch, its samples and one sample's intermediate arrays; all 12 images would be 6 batches
    assert peak < 4.5 * batch


# Arrays


def test_npz_by_input_name_or_x_or_alone(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    for name in ("pixels", "x", "arr_0"):
        np.savez(tmp_path / "calib.npz", **{name: values(3)})  # type: ignore[arg-type]  # numpy types its flag only
        source = open_source(tmp_path / "calib.npz", grey, plain)
        assert levels(source) == levels(source) == [0, 1, 2]
        assert (source.count, source.skipped) == (3, ())


def test_npz_for_two_inputs(tmp_path: Path) -> None:
    mask = np.arange(15, dtype=np.float64).reshape(3, 5)
    np.savez(tmp_path / "calib.npz", pixels=values(3), mask=mask, y=np.zeros(9))
    feeds = list(open_source(tmp_path / "calib.npz", TWO, None))
    assert len(feeds) == 3
    assert [feed["pixels"].shape for feed in feeds] == [(1, 1, 4, 4)] * 3
    np.testing.assert_array_equal(feeds[2]["mask"], mask[2:].astype(np.float32))
    np.savez(tmp_path / "calib.npz", pixels=values(3), mask=mask[:2])
    with pytest.raises(DataError, match="same number of samples for every input, got pixels 3, mask 2"):
        open_source(tmp_path / "calib.npz", TWO, None)


def test_npy(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    path = tmp_path / "calib.npy"
    np.save(path, values(3))
    assert levels(open_source(path, grey, plain)) == [0, 1, 2]
    np.save(path, np.full((2, 9, 9), 33, np.uint8))
    assert levels(open_source(path, grey, plain)) == [33, 33]
    with pytest.raises(DataError, match="expected an array for each of pixels, mask"):
        open_source(path, TWO, None)
    for wrong in (np.float32(3), np.zeros(0, np.float32)):
        np.save(path, wrong)
        with pytest.raises(DataError, match=r"calib\.npy"):
            open_source(path, grey, plain)


def test_arrays_in_memory(grey: Inputs, plain: Preprocessing) -> None:
    assert levels(open_source(values(3), grey, plain)) == [0, 1, 2]
    assert levels(open_source({"pixels": values(2)}, grey, plain)) == [0, 1]
    with pytest.raises(DataError, match="expected an array named mask"):
        open_source({"pixels": values(2)}, TWO, None)


def test_a_limit_takes_evenly_spaced_samples_of_arrays(grey: Inputs, plain: Preprocessing) -> None:
    source = open_source(values(10), grey, plain, limit=4)
    assert (levels(source), source.count) == ([0, 2, 5, 7], 4)


def test_a_bad_value_is_found_on_opening_if_it_would_be_used(grey: Inputs, plain: Preprocessing) -> None:
    data = values(10)
    data[9] = np.nan
    with pytest.raises(DataError, match="the data given: sample 9 holds NaN"):
        open_source(data, grey, plain)
    assert open_source(data, grey, plain, limit=5).count == 5


def test_uint8_images_for_two_inputs_are_refused(plain: Preprocessing) -> None:
    data = {"pixels": np.zeros((2, 1, 4, 4), np.uint8), "mask": np.zeros((2, 5), np.float32)}
    with pytest.raises(DataError, match=r"pixels of the data given: wrong type of number"):
        open_source(data, TWO, plain)


def test_a_static_batch_of_arrays_is_filled_up(plain: Preprocessing) -> None:
    source = open_source(values(5), batch_of(3), plain)
    assert [feed["pixels"].shape for feed in source] == [(3, 1, 4, 4)] * 2
    assert levels(source) == [0, 1, 2, 3, 4, 3]
    assert source.count == 5


def test_the_digest_of_arrays_is_of_what_is_used(tmp_path: Path, grey: Inputs, plain: Preprocessing) -> None:
    np.savez(tmp_path / "a.npz", x=values(4))
    np.save(tmp_path / "b.npy", values(4))
    digest = open_source(tmp_path / "a.npz", grey, plain).digest
    assert len(digest) == 64
    assert open_source(tmp_path / "b.npy", grey, plain).digest == digest
    assert open_source(values(4) + 1, grey, plain).digest != digest
    assert open_source(values(4), grey, plain, limit=2).digest != digest


# Iterables


def test_a_generator_is_consumed_lazily(grey: Inputs, plain: Preprocessing) -> None:
    taken: list[int] = []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for number in range(100):
            taken.append(number)
            yield {"pixels": values(100)[number : number + 1]}

    source = open_source(feeds(), grey, plain, limit=3)
    assert taken == []
    assert (source.count, source.repeatable, source.digest) == (None, False, "")
    iterator = iter(source)
    assert next(iterator)["pixels"].max() == 0
    assert taken == [0]
    assert len(list(iterator)) == 2
    assert taken == [0, 1, 2]
    assert source.count == 3


def test_a_second_pass_over_a_generator_is_an_error_and_not_other_samples(grey: Inputs, plain: Preprocessing) -> None:
    source = open_source((values(1) for _ in range(9)), grey, plain, limit=2)
    assert len(list(source)) == 2
    with pytest.raises(DataError, match=r"Python generator: .* gives them once \(pass a list"):
        list(source)


def test_a_list_of_arrays_of_any_batch(grey: Inputs, plain: Preprocessing) -> None:
    data = values(6)
    source = open_source([data[:1], data[1:5], data[5:]], grey, plain)
    assert (source.count, source.repeatable) == (6, True)
    assert levels(source) == levels(source) == [0, 1, 2, 3, 4, 5]
    assert [feed["pixels"].shape for feed in source] == [(1, 1, 4, 4)] * 6
    limited = open_source([data[:1], data[1:5], data[5:]], grey, plain, limit=3)
    assert (limited.count, levels(limited)) == (3, [0, 1, 2])


def test_feeds_are_put_together_for_a_static_batch(plain: Preprocessing) -> None:
    source = open_source(list(values(5)[:, None]), batch_of(2), plain)
    assert [feed["pixels"].shape for feed in source] == [(2, 1, 4, 4)] * 3
    assert levels(source) == [0, 1, 2, 3, 4, 4]


def test_feeds_of_uint8_are_images(grey: Inputs, plain: Preprocessing) -> None:
    assert levels(open_source([np.full((1, 9, 9), 8, np.uint8)], grey, plain)) == [8]


def test_other_keys_of_a_feed_are_passed_over(grey: Inputs, plain: Preprocessing) -> None:
    feed = {"pixels": values(1), "labels": [3], "id": "a", "scores": np.zeros(7)}
    (got,) = open_source([feed], grey, plain)
    assert list(got) == ["pixels"]


def test_arrays_of_other_libraries(grey: Inputs, plain: Preprocessing) -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return values(2)

    class DeviceTensor:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            raise TypeError("not on the CPU")

    assert levels(open_source([Tensor()], grey, plain)) == [0, 1]
    with pytest.raises(DataError, match="feed 0: cannot be read as an array: not on the CPU"):
        open_source([DeviceTensor()], grey, plain)


def test_onnxruntimes_reader(grey: Inputs, plain: Preprocessing) -> None:
    feeds = [{"pixels": values(3)[number : number + 1]} for number in range(3)]
    once = open_source(Reader(feeds), grey, plain)
    assert (once.count, once.repeatable, levels(once), once.count) == (None, False, [0, 1, 2], 3)
    with pytest.raises(DataError, match="gives them once"):
        list(once)
    again = open_source(RewindingReader(feeds), grey, plain, limit=2)
    assert again.repeatable
    assert levels(again) == levels(again) == [0, 1]


@pytest.mark.parametrize(
    ("feed", "problem"),
    [
        ((values(1), np.zeros(1)), "feed 1: expected an array, got tuple"),
        ({"pixels": [[1.0]]}, "pixels of feed 1: expected an array, got list"),
        ({"a": values(1), "b": values(1)}, "feed 1: expected an array named pixels, or x, got a, b"),
        (values(1)[0], r"feed 1: rank 3: .*\(N, 1, 4, 4\), got float32 \(1, 4, 4\)"),
        (values(0), "feed 1: no samples"),
        (np.float32(3), "feed 1: expected an array with a first axis"),
        (values(2) * np.nan, "feed 1: sample 0 holds NaN"),
        (None, "feed 1: expected an array, got NoneType"),
    ],
)
def test_a_wrong_feed_is_named(grey: Inputs, plain: Preprocessing, feed: object, problem: str) -> None:
    source = open_source(iter([values(1), feed]), grey, plain)
    with pytest.raises(DataError, match=problem):
        list(source)


@pytest.mark.parametrize("data", [[], iter(()), Reader([])])
def test_no_feeds_is_an_error(grey: Inputs, plain: Preprocessing, data: object) -> None:
    source = open_source(data, grey, plain)
    with pytest.raises(DataError, match="at least one sample"):
        list(source)


def test_an_error_of_the_callers_own_iterable_is_left_alone(grey: Inputs, plain: Preprocessing) -> None:
    def feeds() -> Iterator[np.ndarray]:
        yield values(1)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        list(open_source(feeds(), grey, plain))


@pytest.mark.parametrize("data", [3, None, object()])
def test_what_is_no_data_is_refused(grey: Inputs, plain: Preprocessing, data: object) -> None:
    with pytest.raises(DataError, match="expected a path, arrays or an iterable of feeds"):
        open_source(data, grey, plain)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(grey: Inputs, plain: Preprocessing, limit: int) -> None:
    with pytest.raises(ConfigError, match="--limit"):
        open_source(values(1), grey, plain, limit=limit)


def test_inputs_that_disagree_on_the_batch_are_refused(plain: Preprocessing) -> None:
    inputs = (InputSpec(name="a", dtype="float32", shape=(1, 2)), InputSpec(name="b", dtype="float32", shape=(2, 2)))
    with pytest.raises(OnnxVitqError, match=r"a \[1, 2\], b \[2, 2\]"):
        open_source({"a": np.zeros((1, 2))}, inputs, plain)
