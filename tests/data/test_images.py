import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxvitq.core.errors import DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.images import SUFFIXES, ImageReader, list_images, printable, read_image
from onnxvitq.data.preprocess import Preprocessing

Flat = Callable[[Path, int], Path]


def png_of_size(width: int, height: int) -> bytes:
    """The head of a PNG file that claims so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, b"IDAT")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder)[0]]


def test_folders_are_searched_and_sorted_by_path(tmp_path: Path, flat_image: Flat) -> None:
    for name in ("b/z.png", "b/c/a.JPG", "a.bmp", "b.png", "a/2.tiff", "a/10.webp"):
        flat_image(tmp_path / name, 1)
    for name in ("notes.txt", "model.onnx", ".hidden.png", "._a.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".cache").mkdir()
    flat_image(tmp_path / ".cache" / "a.png", 1)
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == ["a/10.webp", "a/2.tiff", "a.bmp", "b/c/a.JPG", "b/z.png", "b.png"]


def test_links_are_followed_once(tmp_path: Path, flat_image: Flat) -> None:
    flat_image(tmp_path / "elsewhere" / "x.png", 1)
    root = tmp_path / "root"
    root.mkdir()
    (root / "class").symlink_to(tmp_path / "elsewhere")
    (root / "same").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "absent.png")
    assert names(root) == ["class/x.png"]


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_can_be_read(tmp_path: Path, flat_image: Flat, suffix: str) -> None:
    path = flat_image(tmp_path / f"x{suffix}", 200)
    assert abs(int(np.asarray(read_image(path).convert("L")).mean()) - 200) <= 2  # lossy formats: two levels


def test_a_wrong_suffix_does_not_matter(tmp_path: Path, flat_image: Flat) -> None:
    path = flat_image(tmp_path / "x.png", 7).rename(tmp_path / "x.jpg")
    assert read_image(path).size == (6, 5)


def test_animations_give_their_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(tmp_path / "x.gif").convert("L")).max() == 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"a page of text, not an image\n" * 9, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png_of_size(4, 4), "cannot be decoded"),
        (png_of_size(10_000, 10_000), "cannot be decoded: .* decompression bomb"),
        (png_of_size(100_000, 100_000), "cannot be decoded: .* decompression bomb"),
    ],
    ids=["empty", "text", "EPS", "no pixels", "bomb by PIL's warning", "bomb by PIL's error"],
)
def test_an_unreadable_file_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path)
    assert caught.value.where == str(path)


def test_a_truncated_image_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"cannot be decoded: .*truncated"):
        read_image(path)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "absent.png")


def test_reading_leaves_the_warning_filters_alone(tmp_path: Path, flat_image: Flat) -> None:
    before = list(warnings.filters)
    read_image(flat_image(tmp_path / "x.png", 3))
    assert warnings.filters == before


def test_a_name_that_is_not_text_can_be_shown(tmp_path: Path, flat_image: Flat, plain: Preprocessing) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes(b"")
    (path,), _ = list_images(tmp_path)
    spec = InputSpec(name="x", dtype="float32", shape=(1, 1, 4, 4))
    reader = ImageReader(tmp_path, spec, plain)
    assert reader.read(path) is None
    assert reader.unreadable == (("\\udcff.png", "the file is empty"),)
    assert printable(path).encode("utf-8")


def test_an_image_of_another_size_than_the_model_takes_is_noted(tmp_path: Path, flat_image: Flat) -> None:
    keeps_size = Preprocessing(mode="L", mean=(0.0,), std=(1.0,))
    reader = ImageReader(tmp_path, InputSpec(name="x", dtype="float32", shape=(1, 1, 4, None)), keeps_size)
    assert reader.read(flat_image(tmp_path / "x.png", 1)) is None
    assert reader.unreadable == (("x.png", "the model takes [1, 4, None], this image gives [1, 5, 6]"),)


def test_the_sample_has_the_inputs_type(tmp_path: Path, flat_image: Flat, plain: Preprocessing) -> None:
    reader = ImageReader(tmp_path, InputSpec(name="x", dtype="float16", shape=(1, 1, 4, 4)), plain)
    sample = reader.read(flat_image(tmp_path / "x.png", 9))
    assert sample is not None
    assert sample.dtype == np.float16
    assert (sample == 9).all()
