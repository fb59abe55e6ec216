"""onnxvitq, and a tool's own script, as processes of their own. Imports no onnxvitq: other interpreters read this, too."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def onnxvitq(*arguments: object) -> str:
    """Run the command line; its standard output."""
    command = [sys.executable, "-m", "onnxvitq", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def onnxvitq_json(*arguments: object) -> Any:
    """Run the command line with --json; what it printed."""
    return json.loads(onnxvitq(*arguments, "--json"))


def apart(script: str, arguments: Sequence[object]) -> Any:
    """Run a script's hidden option --one in a process of its own; what its last line of JSON says."""
    command = [sys.executable, script, "--one", json.dumps(list(arguments))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def save_feeds(path: Path, feeds: dict[str, Any]) -> None:
    """Arrays by input name as a .npz file."""
    np.savez(path, **feeds)
