"""The folder for temporary files: private, and gone afterwards in every case."""

import shutil
import stat
from pathlib import Path

import pytest

from onnxvitq.core.errors import OutputError
from onnxvitq.graph.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_removed_with_all_that_is_in_it(temporary: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == temporary
        assert folder.name.startswith("onnxvitq_")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "below").mkdir()
        (folder / "below/file").write_bytes(b"x")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_removed_when_the_block_fails(temporary: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with scratch_folder() as folder:
            (folder / "file").write_bytes(b"x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(temporary.iterdir()) == []


def test_two_do_not_meet(temporary: Path) -> None:
    with scratch_folder() as one, scratch_folder() as other:
        assert one != other
    assert list(temporary.iterdir()) == []


def test_an_interrupt_of_the_removal_removes_all_the_same(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, calls = shutil.rmtree, 0

    def interrupted(folder: Path, ignore_errors: bool) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        pass
    assert list(temporary.iterdir()) == []


def test_an_interrupt_of_the_making_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def interrupted(folder: Path, mode: int) -> None:
        make(folder, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        pass
    assert list(temporary.iterdir()) == []


def test_a_place_that_cannot_be_written_to(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "nowhere"))
    with pytest.raises(OutputError, match="temporary files cannot be written: No such file"), scratch_folder():
        pass
