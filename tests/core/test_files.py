"""Output files: every refusal, and that writing is all or nothing."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from onnxvitq.core.errors import OutputError, RewriteError
from onnxvitq.core.files import atomic_file, refuse_output


def cannot_write(*arguments: object, **options: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_good_output_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "old.onnx").write_bytes(b"old")
    for name in ("new.onnx", "old.onnx"):
        refuse_output(tmp_path / name, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "old.onnx"]


def test_an_output_that_is_the_input_is_refused(tmp_path: Path) -> None:
    model, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    model.write_bytes(b"model")
    link.symlink_to(model)
    for output in (model, tmp_path / "." / "model.onnx", link):
        with pytest.raises(OutputError, match="the output is the input") as caught:
            refuse_output(output, model)
        assert caught.value.where == str(output)


def test_a_folder_is_refused_as_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a file name, got a folder"):
        refuse_output(tmp_path, tmp_path / "model.onnx")


def test_an_output_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder '.*absent' does not exist"):
        refuse_output(tmp_path / "absent" / "out.onnx", tmp_path / "model.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="does not exist"):
        refuse_output(tmp_path / "file" / "out.onnx", tmp_path / "model.onnx")


def test_an_output_in_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tempfile, "TemporaryFile", cannot_write
    )  # permissions do not bind the user that runs tests as root
    with pytest.raises(OutputError, match="the folder cannot be written to: Permission denied"):
        refuse_output(tmp_path / "out.onnx", tmp_path / "model.onnx")


def test_an_atomic_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_an_atomic_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_file(tmp_path / "out.onnx") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), RewriteError("graph", "wrong")])
@pytest.mark.parametrize("existing", [True, False])
def test_what_goes_wrong_inside_leaves_what_was_there(tmp_path: Path, error: BaseException, existing: bool) -> None:
    path = tmp_path / "out.onnx"
    if existing:
        path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    assert [file.name for file in tmp_path.iterdir()] == (["out.onnx"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="cannot be written: No space left on device") as caught, atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.where == str(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_an_atomic_file_needs_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written: No such file or directory"),
        atomic_file(tmp_path / "absent" / "out"),
    ):
        pytest.fail("there is nothing to write to")
    monkeypatch.setattr(Path, "open", cannot_write)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"), atomic_file(tmp_path / "out"):
        pytest.fail("there is nothing to write to")
    assert not list(tmp_path.iterdir())
