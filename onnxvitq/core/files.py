"""Output files: refused before any work where they cannot be written, and replaced in one step."""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxvitq.core.errors import OutputError, first_line


def refuse_output(path: Path, model: Path) -> None:
    """Find out before any work whether the output can be written.

    Args:
        path: the output file.
        model: the input file.

    Raises:
        OutputError: it is the input, a folder, or lies in a folder that does not exist or cannot be written to.
    """
    where = str(path)
    if path.exists() and model.exists() and path.samefile(model):
        raise OutputError(where, "the output is the input", "name another file with -o")
    if path.is_dir():
        raise OutputError(where, "expected a file name, got a folder")
    if path.exists() and not path.is_file():  # taking its place would do away with /dev/null itself
        raise OutputError(where, "expected a file name, got a device or a pipe")
    if not path.parent.is_dir():
        raise OutputError(where, f"the folder {str(path.parent)!r} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(where, f"the folder cannot be written to: {error.strerror}") from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the file cannot be written; what was at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    try:  # named before it is made: an interrupt in between leaves nothing behind
        temporary.open("xb").close()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(str(path), f"cannot be written: {error.strerror or first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
