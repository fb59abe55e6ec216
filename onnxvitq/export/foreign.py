"""Running code that is not ours (a user's factory, torch's exporters): its errors in one line, its output suppressed.

Why the broad ``except`` below: what a user's module may raise is not known beforehand, and every such error has to end
as one line. It raises again whatever it catches, and Ctrl-C passes through.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from onnxvitq.core.errors import ExportError, OnnxVitqError


@contextlib.contextmanager
def foreign_code(where: str, failure: str, hint: str = "") -> Iterator[None]:
    """Turn whatever the body raises into an ExportError with the first line of its cause.

    Args:
        where: the SPEC or file concerned.
        failure: what did not work, the beginning of the message ("the factory failed").
        hint: what the user can do.

    Raises:
        ExportError: the body raised. The package's own errors pass unchanged.
    """
    try:
        yield
    except OnnxVitqError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may well call sys.exit when imported
        raise ExportError(where, f"{failure}: {cause_line(error)}", hint) from error


def cause_line(error: BaseException) -> str:
    """The type and first line of an error, with the second where the first only announces it ("...:").

    torch.onnx wraps what went wrong in errors whose own text is general advice; there the cause speaks.
    """
    while error.__cause__ is not None and type(error).__module__.startswith("torch.onnx"):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[: 2 if lines and lines[0].endswith(":") else 1]
    return " ".join([f"{type(error).__name__}:", *said]) if said else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which nothing that is printed, logged or warned reaches the user; all is restored afterwards.

    The file descriptor is redirected too: the TorchScript exporter prints whole graphs from C++ when it fails.
    """
    disabled = logging.root.manager.disable
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, disabled)
        logging.disable(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_descriptor_silenced(1))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _descriptor_silenced(descriptor: int) -> Iterator[None]:
    saved = os.dup(descriptor)
    try:
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


@contextlib.contextmanager
def import_path(folder: Path) -> Iterator[None]:
    """Let the body import what lies in ``folder``, as a script started there could."""
    before = list(sys.path)
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path[:] = before
