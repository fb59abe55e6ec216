"""A folder for temporary files that is removed afterwards, whatever happens in between.

Why not tempfile.TemporaryDirectory: an interrupt while it is made or removed leaves the folder behind.
"""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from onnxvitq.core.errors import OutputError
from onnxvitq.graph.writing import save_for_session


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder below TMPDIR, readable by this user only, removed with all that is in it when the block ends.

    Raises:
        OutputError: it cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / f"onnxvitq_{secrets.token_hex(8)}"
    try:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise scratch_error(folder, error) from error
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def scratch_error(folder: Path, error: OSError) -> OutputError:
    """The error to raise where a file in a scratch folder cannot be written."""
    problem = f"temporary files cannot be written: {error.strerror}"
    return OutputError(str(folder), problem, "set TMPDIR to a folder with room")


def save_in_scratch(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model into a scratch folder, for a session to open (``save_for_session``); ``proto`` loses its weights.

    Raises:
        OutputError: the files cannot be written.
    """
    try:
        save_for_session(proto, path)
    except OSError as error:
        raise scratch_error(path.parent, error) from error
