"""tools/check_files.py notices each thing that it is there for."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_files.py"


def check(folder: Path, *names: str) -> tuple[int, str]:
    """Exit code and output for files of a folder."""
    command = [sys.executable, str(SCRIPT), *names]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stdout


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"x = 1", "expected one newline at the end"),
        (b"x = 1\n\n", "expected one newline at the end"),
        (b"x = 1 \n", ":1: white space"),
        (b"a\n<<<<<<< HEAD\n", ":2: merge marker"),
        (b"a\n>>>>>>> main\n", ":2: merge marker"),
        (b"x" * 500_000 + b"\n", "500001 bytes"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "file.py").write_bytes(content)
    code, printed = check(tmp_path, "file.py")
    assert code == 1
    assert complaint in printed
    assert printed.count("\n") == 1


def test_sound_files_pass(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_bytes(b"x = 1\n")
    (tmp_path / "page.md").write_bytes(b"a line that is broken  \nhere\n")
    (tmp_path / "data.bin").write_bytes(b"\0\1\2 \n\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").write_bytes(b"\0" * 600_000)
    assert check(tmp_path, "file.py", "page.md", "data.bin", "models/weights.bin") == (0, "4 files are fit to commit\n")
