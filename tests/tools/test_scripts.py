"""Every tool starts: it prints its help, and that help names its first sentence."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def scripts() -> list[Path]:
    """The modules of tools/ that are run, not only imported."""
    return [path for path in sorted(TOOLS.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.stem)
def test_help_is_printed(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), "--help"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    first = (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()[0]
    assert " ".join(first.split()[:4]) in " ".join(ran.stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_there_are_scripts() -> None:
    assert {"same_bytes", "bench_accuracy", "coverage", "check_files"} <= {path.stem for path in scripts()}
