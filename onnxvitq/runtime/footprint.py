"""The cost of a model in a fresh process: the time to load it, and the peak of memory while it is loaded and run.

    python -m onnxvitq.runtime.footprint MODEL FEED.npz THREADS

is that process; it prints JSON.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.runtime.session import Session

RUNS = 2  # the second run reuses the arena of the first
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The cost of one model.

    Attributes:
        model: path of the model.
        load_ms: milliseconds to make the session, with the file in the page cache.
        peak_mb: peak of resident memory beyond that of Python and the libraries, in MB of 10^6 bytes.
    """

    model: str
    load_ms: float
    peak_mb: float


def footprint(model: Path, feed: Path, threads: int) -> Footprint:
    """Load and run a model on the arrays of an .npz file, in a process of its own.

    Args:
        model: path of the model.
        feed: path of the .npz file, its arrays named as the inputs.
        threads: of onnxruntime.

    Raises:
        InvalidGraphError: the process failed; its last line says why.
    """
    command = [sys.executable, "-m", __name__, str(model), str(feed), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InvalidGraphError(str(model), f"a process that loads and runs it fails: {lines[-1]}")
    return Footprint(**json.loads(done.stdout))


def _measure(model: Path, feed: Path, threads: int) -> Footprint:
    with np.load(feed) as file:
        values = {name: file[name] for name in file.files}
    before = peak_resident()
    start = time.perf_counter()
    session = Session(model, threads=threads)
    load = time.perf_counter() - start
    for _ in range(RUNS):
        session.run(values)
    return Footprint(model=str(model), load_ms=round(1e3 * load, 2), peak_mb=round((peak_resident() - before) / 1e6, 2))


def peak_resident() -> int:
    """Peak of this process's resident memory, in bytes.

    From Linux's status file where there is one: getrusage starts with the parent's peak.
    """
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in fields:
            return 1024 * int(fields["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    result = _measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(asdict(result)))
