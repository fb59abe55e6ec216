"""What quantizing costs: seconds in float passes over the calibration images, peak memory, and a second run with the cache.

    python tools/fit_cost.py [--geometry S B] [--exporter dynamo] [--images 32] [--effort fast default] [--threads 2]
        [--average-bits N] [--folder bench_peers] [--write]

Geometries are those of tools/bench_peers.py (random weights: this measures time and memory, never accuracy), images are noise.
Every run is a process of its own; imports are not counted. A float pass is onnxruntime over all images, one by one, with as
many threads; a part of the images is timed before and after each run, since other work on the machine stretches both alike.
Seconds of the processor stand beside those of the clock: they say less about the waiting and more about the work. The first
run fills an empty cache at w8a8, the second reads it at w6a6. With --write the table goes to tools/results/fit_cost.md.

With --average-bits the table is of mixed precision instead: what choosing the bits of each layer takes on top of the fit, by
the clock of the report's step, of ``CHOICES`` runs the median. It goes to tools/results/choosing_cost.md.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench_peers import GEOMETRIES, INPUT, export

import onnxvitq.api
from onnxvitq.core.config import QuantConfig
from onnxvitq.report.build import environment
from onnxvitq.runtime.footprint import peak_resident
from onnxvitq.runtime.session import Session

RESULTS = Path(__file__).parent / "results"
CHOICES = 3
TIMED = 8  # images of a float pass that are timed
SEED = 0
ALLOWED = {"fast": (5, 10), "default": (15, 60)}  # float passes and seconds on top of them
FIT_COLUMNS = (
    "| model | images | effort | float pass s | seconds | float passes | allowed s | processor s | float passes "
    "| peak MB | float file MB | allowed MB | second run, other bits, s | of the first | of its processor time |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
CHOOSING_COLUMNS = (
    "| model | images | float pass s | choosing bits, s | float passes | least to most |",
    "|---|---|---|---|---|---|",
)
BITS = ("w8a8", "w6a6")  # of the first run and of the second


def images(count: int) -> np.ndarray:
    """(N, 3, 224, 224) of noise."""
    return np.random.default_rng(SEED).normal(size=(count, 3, 224, 224)).astype(np.float32)


def clocked(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of the clock and of the processor, and the process's peak resident memory in MB of 1e6 bytes."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak_resident() / 1e6}


def float_pass(model: str, count: int, threads: int) -> dict[str, float]:
    """Of one image: the session is made and has run once before."""
    session, feeds = Session(Path(model), threads=threads), [{INPUT: image[None]} for image in images(count)]
    session.run(feeds[0])
    found = clocked(lambda: [session.run(feed) for feed in feeds])
    return {"seconds": found["seconds"] / count, "cpu": found["cpu"] / count}


def quantize(model: str, count: int, config: dict[str, Any]) -> dict[str, float]:
    """One run, in this process; ``choosing``: of its seconds those of choosing bits."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        output, data = Path(name) / "int8.onnx", {INPUT: images(count)}
        options = QuantConfig.from_dict(config)
        found = clocked(lambda: report.update(onnxvitq.api.quantize(model, data, output, options).report))
    return found | {"choosing": sum(step["seconds"] for step in report["steps"] if step["name"] == "bits")}


def apart(function: str, *arguments: object) -> dict[str, float]:
    """What one of the two functions above returns in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps([function, *arguments])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(model: Path, effort: str, count: int, threads: int) -> list[dict[str, float]]:
    """The run with an empty cache and the one with other bits after it; ``pass`` and ``pass_cpu`` are of all images."""
    runs = []
    with tempfile.TemporaryDirectory() as cache:
        passes = [apart("float_pass", str(model), min(TIMED, count), threads)]
        for bits in BITS:
            config = {"effort": effort, "bits": bits, "threads": threads, "cache": cache}
            run = apart("quantize", str(model), count, config)
            passes.append(apart("float_pass", str(model), min(TIMED, count), threads))
            for name, key in (("seconds", "pass"), ("cpu", "pass_cpu")):
                run[key] = count * (passes[-2][name] + passes[-1][name]) / 2
            runs.append(run)
    return runs


def choosing_row(geometry: str, model: Path, count: int, threads: int, mean: float) -> str:
    """A line of it. Scales and biases come after the choice, which is made for weights that are solved again."""
    config = {"average_bits": mean, "threads": threads, "skip": ["scales", "bias"]}
    taken, passes = [], []
    for _ in range(CHOICES):
        before = apart("float_pass", str(model), min(TIMED, count), threads)["seconds"]
        taken.append(apart("quantize", str(model), count, config)["choosing"])
        passes.append(count * (before + apart("float_pass", str(model), min(TIMED, count), threads)["seconds"]) / 2)
    ratios = sorted(one / two for one, two in zip(taken, passes, strict=True))
    return (
        f"| {GEOMETRIES[geometry][0]} | {count} | {statistics.median(passes):.1f} | {statistics.median(taken):.1f} "
        f"| {statistics.median(ratios):.1f} | {ratios[0]:.1f} to {ratios[-1]:.1f} |"
    )


def row(geometry: str, model: Path, effort: str, count: int, runs: list[dict[str, float]]) -> str:
    """A line of the table."""
    first, second = runs
    passes, seconds = ALLOWED[effort]
    allowed = passes * first["pass"] + seconds
    size = model.stat().st_size / 1e6
    limit = 3 * size + 2**30 / 1e6
    return (
        f"| {GEOMETRIES[geometry][0]} | {count} | {effort} | {first['pass']:.1f} | {first['seconds']:.0f} "
        f"| {first['seconds'] / first['pass']:.1f} | {allowed:.0f} | {first['cpu']:.0f} "
        f"| {first['cpu'] / first['pass_cpu']:.1f} | {first['peak_mb']:.0f} | {size:.0f} | {limit:.0f} "
        f"| {second['seconds']:.0f} | {second['seconds'] / first['seconds']:.2f} | {second['cpu'] / first['cpu']:.2f} |"
    )


def fit_rows(args: argparse.Namespace) -> Iterator[str]:
    """Of the table of fits."""
    for geometry in args.geometry:
        model = export(args.folder, geometry, args.exporter)
        for count, effort in itertools.product(args.images, args.effort):
            yield row(geometry, model, effort, count, measure(model, effort, count, args.threads))


def choosing_rows(args: argparse.Namespace) -> Iterator[str]:
    """Of the table for mixed precision."""
    for geometry in args.geometry:
        model = export(args.folder, geometry, args.exporter)
        for count in args.images:
            yield choosing_row(geometry, model, count, args.threads, args.average_bits)


def main() -> None:
    """Make the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=["S", "B"])
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--images", type=int, nargs="+", default=[32])
    parser.add_argument("--effort", nargs="+", choices=ALLOWED, default=list(ALLOWED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--average-bits", type=float)
    parser.add_argument("--folder", type=Path, default=Path("bench_peers"))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        function, *arguments = json.loads(args.one)
        print(json.dumps(float_pass(*arguments) if function == "float_pass" else quantize(*arguments)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    name, columns, rows = ("fit_cost", FIT_COLUMNS, fit_rows)
    if args.average_bits is not None:
        name, columns, rows = ("choosing_cost", CHOOSING_COLUMNS, choosing_rows)
    env = environment(args.threads)
    lines = [
        f"onnxruntime {env['onnxruntime']}, {env['processor']}; {args.threads} threads, {args.exporter} graphs, noise",
        "",
        *columns,
    ]
    print("\n".join(lines), flush=True)
    for line in rows(args):
        lines.append(line)
        print(line, flush=True)
    if args.write:
        (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
