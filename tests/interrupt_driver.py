"""Interrupts the command line at chosen moments, in a process of its own; prints what was left behind, as JSON.

    python interrupt_driver.py FOLDER     # FOLDER holds model.onnx and images/; TMPDIR is FOLDER/scratch

Each moment is a call of a function: the signal is sent there, to this very process, so nothing depends on timing.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxvitq import api as public
from onnxvitq.calibration import subgraphs, sweep
from onnxvitq.cli import main as command_line
from onnxvitq.cli import results
from onnxvitq.data import source as sources
from onnxvitq.evaluation import compare as comparisons
from onnxvitq.evaluation import evaluator
from onnxvitq.fit import job as jobs
from onnxvitq.fit.steps.scale_search import SearchScales
from onnxvitq.fit.steps.weight_reconstruction import step as weights
from onnxvitq.graph import scratch
from onnxvitq.targets.ort_cpu import kernels as audit

# What these modules import is looked up in them, so that it can be replaced there.
api: Any = public
source: Any = sources
comparison: Any = comparisons
OLD = b"what an earlier run wrote"
# (what happens there, where the function is looked up, its name, on which call, before or after it)
MOMENTS: list[tuple[str, Any, str, int, str]] = [
    ("the model is read", jobs, "load_model", 1, "before"),
    ("the first image is read", source.ImageReader, "read", 1, "before"),
    ("the folder for temporary files is made", Path, "mkdir", 1, "after"),
    ("the observed model is half written", scratch, "save_for_session", 1, "half"),
    ("the observed model is written", scratch, "save_for_session", 1, "after"),
    ("the observed model is loaded", sweep, "Session", 1, "before"),
    ("the third image is calibrated", source.ImageReader, "read", 4, "after"),
    ("the folder for temporary files is removed", shutil, "rmtree", 1, "before"),
    ("scales are fitted", SearchScales, "apply", 1, "before"),
    ("biases are next", SearchScales, "apply", 1, "after"),
    ("a candidate is evaluated", evaluator, "Session", 1, "after"),
    ("weights are next", weights, "reconstruct_weights", 1, "before"),
    ("a subgraph of a network is written", subgraphs, "Session", 3, "before"),
    ("the weights are solved", weights, "reconstruct_weights", 1, "after"),
    ("the output is begun", api, "save_model", 1, "before"),
    ("the output is half written", api, "save_model", 1, "half"),
    ("the output is written", api, "save_model", 1, "after"),
    ("the output is checked", api, "check_written", 1, "after"),
    ("the audit has its optimised model", audit, "Session", 1, "after"),
    ("the comparison begins", api, "compare", 1, "before"),
    ("the comparison is under way", comparison.OutputDifference, "update", 4, "after"),
    ("the comparison is done", api, "compare", 1, "after"),
]
# From the moment that the output's place is about to be taken, a signal changes nothing any more.
LATE: list[tuple[str, Any, str, int, str]] = [
    ("the output is put in place", Path, "replace", 1, "before"),
    ("the output is in place", Path, "replace", 1, "after"),
    ("the report is written", results, "write_text", 1, "before"),
    ("the report is half written", Path, "write_text", 1, "after"),
    ("the command ends", results, "print_results", 1, "after"),
]


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


def interrupting(original: Callable[..., Any], number: int, call: int, when: str) -> Callable[..., Any]:
    """The function, but that this process gets a signal at one of its calls."""
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "half":
            args[1].write_bytes(b"half a model")
        if calls == call and when != "after":
            os.kill(os.getpid(), number)
        result = original(*args, **options)
        if calls == call and when == "after":
            os.kill(os.getpid(), number)
        return result

    return wrapped


def prepare(folder: Path) -> None:
    """The output folder holds an older output and nothing else."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    (folder / "out/model_int8.onnx").write_bytes(OLD)


def run(folder: Path) -> dict[str, Any]:
    """One command; its exit code, what it printed, and what is on the disk."""
    output = folder / "out"
    command = [str(folder / "model.onnx"), "--calib", str(folder / "images"), "--quiet", "--threads", "1"]
    command += ["-o", str(output / "model_int8.onnx"), "--report", str(output / "report.json"), "--candidates", "3"]
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = command_line.main(command)
    return {
        "code": code,
        "error": error.getvalue(),
        "files": sorted(path.name for path in output.iterdir()),
        "old": (output / "model_int8.onnx").read_bytes() == OLD,
        "scratch": sorted(path.name for path in (folder / "scratch").iterdir()),
        "model": (folder / "model.onnx").stat().st_size,
    }


def main() -> None:
    """Every moment with both signals, a second signal while the first one's mess is cleared, and no signal at all."""
    folder = Path(sys.argv[1])
    # A background job of a shell without job control is started with SIGINT ignored, and the command respects that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results: dict[str, Any] = {}
    for index, (name, owner, attribute, call, when) in enumerate(MOMENTS + LATE):
        number = (signal.SIGINT, signal.SIGTERM)[index % 2]
        prepare(folder)
        with replaced(owner, attribute, interrupting(getattr(owner, attribute), number, call, when)):
            results[name] = run(folder)
    prepare(folder)
    # A second signal while the mess of the first is cleared up.
    unlink = interrupting(Path.unlink, signal.SIGTERM, 1, "before")
    save = interrupting(api.save_model, signal.SIGINT, 1, "half")
    with replaced(api, "save_model", save), replaced(Path, "unlink", unlink):
        results["twice"] = run(folder)
    prepare(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with replaced(api, "compare", interrupting(api.compare, signal.SIGINT, 1, "before")):
        results["ignored"] = run(folder)
    results["handlers"] = [signal.getsignal(number) in (signal.SIG_IGN, signal.SIG_DFL) for number in (2, 15)]
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
