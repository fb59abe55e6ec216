"""Code that is not ours: errors in one line, silence, and every switch put back."""

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

from onnxvitq.core.errors import DataError, ExportError
from onnxvitq.export.foreign import cause_line, foreign_code, import_path, quiet


def test_foreign_code_names_place_failure_and_first_line() -> None:
    with pytest.raises(ExportError) as caught, foreign_code("m:build", "build() failed", "look at it"):
        raise ValueError("first\nsecond")
    assert str(caught.value) == "m:build: build() failed: ValueError: first (look at it)"
    assert isinstance(caught.value.__cause__, ValueError)


def test_foreign_code_turns_an_exit_into_an_error() -> None:
    with pytest.raises(ExportError, match="SystemExit: 3"), foreign_code("m.py", "cannot be imported"):
        sys.exit(3)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("x", "y")])
def test_foreign_code_lets_ctrl_c_and_own_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign_code("m", "failed"):
        raise error
    assert caught.value is error


def test_cause_line_looks_through_torch_wrappers_only() -> None:
    wrapper = type("ConversionError", (Exception,), {"__module__": "torch.onnx.errors"})("general advice")
    wrapper.__cause__ = KeyError("aten::odd")
    assert cause_line(wrapper) == "KeyError: 'aten::odd'"
    own = RuntimeError("what the user should read")
    own.__cause__ = KeyError("detail")
    assert cause_line(own) == "RuntimeError: what the user should read"
    assert cause_line(RuntimeError()) == "RuntimeError"
    assert cause_line(RuntimeError("\nfield 'x':\n\n  not an int\nmore")) == "RuntimeError: field 'x': not an int"


def test_quiet_hides_prints_logs_warnings_and_descriptor_writes(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        sys.stdout.write("printed")
        sys.stderr.write("to stderr")
        os.write(1, b"from C\n")
        logging.getLogger("torch.onnx").error("logged")
        warnings.warn("warned", stacklevel=1)
    assert capfd.readouterr() == ("", "")


def test_quiet_restores_everything_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters)
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert (sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters)) == before
    os.write(1, b"heard again\n")
    assert capfd.readouterr().out == "heard again\n"


def test_import_path_is_temporary(tmp_path: Path) -> None:
    before = list(sys.path)
    with import_path(tmp_path):
        assert sys.path[0] == str(tmp_path.resolve())
    assert sys.path == before
