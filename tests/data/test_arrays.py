import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxvitq.core.errors import DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.arrays import ArrayReader, array_keys, chunks, load_npy, load_npz, stack, static_batch
from onnxvitq.data.preprocess import Preprocessing

Inputs = tuple[InputSpec, ...]
RNG = np.random.default_rng(0)


def spec(*shape: int | None, dtype: str = "float32") -> InputSpec:
    return InputSpec(name="x", dtype=dtype, shape=shape)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floats_are_ready_and_take_the_inputs_type(grey: Inputs, plain: Preprocessing, dtype: str) -> None:
    values = RNG.normal(size=(3, 1, 4, 4)).astype(dtype)
    sample = ArrayReader(grey[0], plain, values, "x").sample(2)
    assert sample.dtype == np.float32
    np.testing.assert_array_equal(sample, values[2].astype(np.float32))


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4), (2, 4, 4, 1)])
def test_uint8_arrays_are_grey_images(
    grey: Inputs, plain: Preprocessing, colour: Inputs, plain_colour: Preprocessing, shape: tuple[int, ...]
) -> None:
    levels = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(ArrayReader(grey[0], plain, levels, "x").sample(1), levels[1].reshape(1, 4, 4))
    in_colour = ArrayReader(colour[0], plain_colour, levels, "x").sample(1)
    np.testing.assert_array_equal(in_colour, np.broadcast_to(levels[1].reshape(1, 4, 4), (3, 4, 4)))


def test_uint8_arrays_are_colour_images_with_channels_first_or_last(
    colour: Inputs, plain_colour: Preprocessing
) -> None:
    levels = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    last = ArrayReader(colour[0], plain_colour, levels, "x").sample(0)
    first = ArrayReader(colour[0], plain_colour, levels.transpose(0, 3, 1, 2), "x").sample(0)
    np.testing.assert_array_equal(last, levels[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(first, last)


def test_channels_last_are_looked_for_first(colour: Inputs, plain_colour: Preprocessing) -> None:
    strip = np.broadcast_to(np.array([10, 20, 30], np.uint8), (1, 3, 8, 3))
    sample = ArrayReader(colour[0], plain_colour, strip, "x").sample(0)
    assert [int(level.mean()) for level in sample] == [10, 20, 30]


def test_uint8_images_of_another_size_are_preprocessed(grey: Inputs, plain: Preprocessing) -> None:
    sample = ArrayReader(grey[0], plain, np.full((1, 9, 7), 77, np.uint8), "x").sample(0)
    np.testing.assert_array_equal(sample, np.full((1, 4, 4), 77, np.float32))


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4, 1), (3, 4, 4)])
def test_one_colour_image_is_not_taken_for_many_grey_ones(
    colour: Inputs, plain_colour: Preprocessing, shape: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match="one image without an axis of samples"):
        ArrayReader(colour[0], plain_colour, np.zeros(shape, np.uint8), "x")


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((5, 3, 4, 4), np.float32), r"wrong dimensions: .*\(N, 1, 4, 4\), got float32 \(5, 3, 4, 4\)"),
        (np.zeros((5, 1, 4, 5), np.float32), r"wrong dimensions: .*\(N, 1, 4, 4\), got float32 \(5, 1, 4, 5\)"),
        (np.zeros((5, 4, 4), np.float32), r"rank 3: .*\(N, 1, 4, 4\), got float32 \(5, 4, 4\)"),
        (np.zeros((0, 1, 4, 4), np.float32), r"no samples: .*\(0, 1, 4, 4\)"),
        (np.zeros((0, 4, 4), np.uint8), "no samples"),
        (np.zeros((5, 1, 4, 4), np.int64), "wrong type of number: .*int64.*uint8 arrays are taken as images"),
        (np.zeros((5, 1, 4, 4), bool), "wrong type of number"),
        (np.zeros((5, 1, 4, 4), complex), "not an array of numbers"),
        (np.zeros((5, 1, 4, 4), object), "not an array of numbers"),
        (np.zeros((5, 1, 4, 4), "U3"), "not an array of numbers"),
        (np.zeros((5, 4, 4, 5), np.uint8), r"no axis of 1 or 3 channels: .*got uint8 \(5, 4, 4, 5\)"),
        (np.zeros((5, 4), np.uint8), "rank 2"),
    ],
)
def test_an_array_that_does_not_fit_names_both_shapes(
    grey: Inputs, plain: Preprocessing, array: np.ndarray, problem: str
) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        ArrayReader(grey[0], plain, array, "x of calib.npz")
    assert caught.value.where == "x of calib.npz"
    assert "input pixels takes float32" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_value_that_is_not_finite_names_its_sample(grey: Inputs, plain: Preprocessing, value: float) -> None:
    array = np.zeros((3, 1, 4, 4))
    array[2, 0, 1, 1] = value
    reader = ArrayReader(grey[0], plain, array, "x")
    reader.check_values([0, 1])
    with pytest.raises(DataError, match="sample 2 holds NaN or infinite"):
        reader.check_values([0, 1, 2])


def test_images_left_at_a_wrong_size_or_without_pixels_are_refused(grey: Inputs, plain: Preprocessing) -> None:
    keeps_size = Preprocessing(mode="L", mean=(0.0,), std=(1.0,))
    with pytest.raises(DataError, match=r"a preprocessed image is \[1, 9, 7\].*got uint8 \(1, 9, 7\)"):
        ArrayReader(grey[0], keeps_size, np.zeros((1, 9, 7), np.uint8), "x").check_values([0])
    with pytest.raises(DataError, match=r"size of 0 x 7.*got uint8 \(1, 0, 7\)"):
        ArrayReader(grey[0], plain, np.zeros((1, 0, 7), np.uint8), "x").check_values([0])


def test_an_input_of_integers_takes_integers_only() -> None:
    tokens = spec(None, 5, dtype="int64")
    sample = ArrayReader(tokens, None, np.arange(10, dtype=np.uint8).reshape(2, 5), "ids").sample(1)
    np.testing.assert_array_equal(sample, np.arange(5, 10, dtype=np.int64))
    assert sample.dtype == np.int64
    with pytest.raises(DataError, match="wrong type of number"):
        ArrayReader(tokens, None, np.zeros((2, 5), np.float32), "ids")


def test_a_uint8_input_takes_uint8_as_it_is(plain: Preprocessing) -> None:
    levels = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    sample = ArrayReader(spec(1, 4, 4, 3, dtype="uint8"), plain, levels, "x").sample(0)
    np.testing.assert_array_equal(sample, levels[0])
    assert sample.dtype == np.uint8


def test_samples_are_copies(grey: Inputs, plain: Preprocessing) -> None:
    values = np.zeros((1, 1, 4, 4), np.float32)
    ArrayReader(grey[0], plain, values, "x").sample(0)[:] = 9
    assert not values.any()


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["pixels", "x"], {"pixels": "pixels"}),
        (["other", "x"], {"pixels": "x"}),
        (["arr_0"], {"pixels": "arr_0"}),
    ],
)
def test_the_array_of_a_one_input_model(grey: Inputs, names: list[str], keys: dict[str, str]) -> None:
    assert array_keys(names, grey, "here") == keys


def test_a_missing_array_is_named(grey: Inputs) -> None:
    with pytest.raises(DataError, match="expected an array named pixels, or x, got a, b"):
        array_keys(["b", "a"], grey, "here")
    two = (spec(1, 2), InputSpec(name="mask", dtype="float32", shape=(1, 2)))
    with pytest.raises(DataError, match="expected an array named mask, got x"):
        array_keys(["x"], two, "here")
    with pytest.raises(DataError, match="expected an array named x, mask, got none"):
        array_keys([], two, "here")


def test_damaged_files_are_refused(tmp_path: Path, grey: Inputs) -> None:
    whole = io.BytesIO()
    np.savez(whole, x=np.zeros((9, 1, 4, 4)))
    for number, content in enumerate(
        (b"", b"text", whole.getvalue()[:150], whole.getvalue().replace(b"NUMPY", b"DUMPY"))
    ):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be loaded as \.npz"):
            load_npz(path, grey)
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape'")
    with pytest.raises(DataError, match=r"cannot be loaded as \.npy"):
        load_npy(tmp_path / "x.npy")


def test_nothing_pickled_is_loaded(tmp_path: Path, grey: Inputs) -> None:
    objects = np.array([{"a": 1}], object)
    np.savez(tmp_path / "x.npz", x=objects)
    np.save(tmp_path / "x.npy", objects)
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load_npz(tmp_path / "x.npz", grey)
    with pytest.raises(DataError, match="Python objects"):
        load_npy(tmp_path / "x.npy")


def test_only_the_arrays_asked_for_are_loaded(tmp_path: Path, grey: Inputs) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3), y=np.ones(2), notes=np.array([{}], object))
    assert sorted(load_npz(tmp_path / "x.npz", grey)) == ["x"]
    assert sorted(load_npz(tmp_path / "x.npz", grey, also=("y",))) == ["x", "y"]
    with pytest.raises(DataError, match="expected an array named z"):
        load_npz(tmp_path / "x.npz", grey, also=("z",))


def test_a_file_with_the_other_suffix_is_refused(tmp_path: Path, grey: Inputs) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.savez(tmp_path / "y.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"name it \.npy"):
        load_npz((tmp_path / "x.npy").rename(tmp_path / "x.npz"), grey)
    with pytest.raises(DataError, match=r"name it \.npz"):
        load_npy((tmp_path / "y.npz").rename(tmp_path / "y.npy"))


def test_a_npy_file_stays_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    assert isinstance(load_npy(tmp_path / "x.npy"), np.memmap)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [([(None, 3)], None), ([(8, 3)], 8), ([(None, 3), (4, 2)], 4), ([(4, 3), (4, 2)], 4)],
)
def test_static_batch(shapes: list[tuple[int | None, ...]], expected: int | None) -> None:
    assert static_batch([spec(*shape) for shape in shapes]) == expected


@pytest.mark.parametrize("shapes", [[], [(4, 3), (2, 3)], [()]])
def test_inputs_without_a_common_batch_are_refused(shapes: list[tuple[int | None, ...]]) -> None:
    with pytest.raises(DataError, match="expected"):
        static_batch([spec(*shape) for shape in shapes])


def test_chunks_take_nothing_ahead() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    runs = chunks(numbers(), 2)
    assert next(runs) == [0, 1]
    assert taken == [0, 1]
    assert list(runs) == [[2, 3], [4]]


def test_stack_fills_up_with_the_samples_it_has() -> None:
    samples = [{"x": np.full(2, value)} for value in (1.0, 2.0)]
    np.testing.assert_array_equal(stack(samples, 5)["x"][:, 0], [1, 2, 1, 2, 1])


def test_stack_of_different_shapes_names_both() -> None:
    with pytest.raises(DataError, match=r"\[1, 2\] and \[1, 3\].*--resize"):
        stack([{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 3))}], 2)
