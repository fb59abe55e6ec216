"""What quantizing costs: seconds in float passes over the calibration images, peak memory, and a second run with the cache.

    python tools/fit_cost.py [--geometry S B] [--exporter dynamo] [--images 32] [--effort fast default] [--threads 2]
        [--average-bits N] [--folder bench_peers] [--write [NAME]]

Geometries are those of tools/bench_peers.py (random weights: this measures time and memory, never accuracy), images are noise.
Every run is a process of its own; imports are not counted. A float pass is onnxruntime over all images, one by one, with as
many threads; a part of the images is timed before and after each run, since other work on the machine stretches both alike.
Seconds of the processor stand beside those of the clock: they say less about the waiting and more about the work. The first
run fills an empty cache at w8a8, the second reads it at w6a6.

With --average-bits the table is of mixed precision instead: what choosing the bits of each layer takes on top of the fit, by
the clock of the report's step, of ``CHOICES`` runs the median; with --write it goes to tools/results/choosing_cost.md.
"""

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_peers import GEOMETRIES, INPUT, export
from command import apart
from tables import Results, Table, columns, finish, parser_of, provenance

import onnxvitq.api
from onnxvitq.core.config import QuantConfig
from onnxvitq.runtime.footprint import peak_resident
from onnxvitq.runtime.session import Session

CHOICES = 3
TIMED = 8  # images of a float pass that are timed
SEED = 0
ALLOWED = {"fast": (5, 10), "default": (15, 60)}  # float passes and seconds on top of them
FIT_COLUMNS = columns(
    *("model", "images", "effort", ("float pass s", "{:.1f}"), ("seconds", "{:.0f}"), ("float passes", "{:.1f}")),
    *(("allowed s", "{:.0f}"), ("processor s", "{:.0f}"), ("float passes", "{:.1f}"), ("peak MB", "{:.0f}")),
    *(("float file MB", "{:.0f}"), ("allowed MB", "{:.0f}"), ("second run, other bits, s", "{:.0f}")),
    *(("of the first", "{:.2f}"), ("of its processor time", "{:.2f}")),
)
CHOOSING_COLUMNS = columns(
    *("model", "images", ("float pass s", "{:.1f}"), ("choosing bits, s", "{:.1f}"), ("float passes", "{:.1f}")),
    ("least to most", "{:.1f} to {:.1f}"),
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
        found = clocked(lambda: report.update(onnxvitq.api.quantize(model, data, output, options).report.to_dict()))
    return found | {"choosing": sum(step["seconds"] for step in report["steps"] if step["name"] == "bits")}


def measured_apart(function: str, *arguments: object) -> dict[str, float]:
    """What one of the two functions above returns in a process of its own."""
    found: dict[str, float] = apart(__file__, [function, *arguments])
    return found


def measure(model: Path, effort: str, count: int, threads: int) -> list[dict[str, float]]:
    """The run with an empty cache and the one with other bits after it; ``pass`` and ``pass_cpu`` are of all images."""
    runs = []
    with tempfile.TemporaryDirectory() as cache:
        passes = [measured_apart("float_pass", str(model), min(TIMED, count), threads)]
        for bits in BITS:
            config = {"effort": effort, "bits": bits, "threads": threads, "cache": cache}
            run = measured_apart("quantize", str(model), count, config)
            passes.append(measured_apart("float_pass", str(model), min(TIMED, count), threads))
            for name, key in (("seconds", "pass"), ("cpu", "pass_cpu")):
                run[key] = count * (passes[-2][name] + passes[-1][name]) / 2
            runs.append(run)
    return runs


def choosing_row(geometry: str, model: Path, count: int, threads: int, mean: float) -> tuple[Any, ...]:
    """A row of it. Scales and biases come after the choice, which is made for weights that are solved again."""
    config = {"average_bits": mean, "threads": threads, "skip": ["scales", "bias"]}
    taken, passes = [], []
    for _ in range(CHOICES):
        before = measured_apart("float_pass", str(model), min(TIMED, count), threads)["seconds"]
        taken.append(measured_apart("quantize", str(model), count, config)["choosing"])
        passes.append(
            count * (before + measured_apart("float_pass", str(model), min(TIMED, count), threads)["seconds"]) / 2
        )
    ratios = sorted(one / two for one, two in zip(taken, passes, strict=True))
    medians = (statistics.median(passes), statistics.median(taken), statistics.median(ratios))
    return (GEOMETRIES[geometry][0], count, *medians, (ratios[0], ratios[-1]))


def row(geometry: str, model: Path, effort: str, count: int, runs: list[dict[str, float]]) -> tuple[Any, ...]:
    """A row of the table."""
    first, second = runs
    passes, seconds = ALLOWED[effort]
    allowed = passes * first["pass"] + seconds
    size = model.stat().st_size / 1e6
    limit = 3 * size + 2**30 / 1e6
    return (
        *(GEOMETRIES[geometry][0], count, effort, first["pass"], first["seconds"], first["seconds"] / first["pass"]),
        *(allowed, first["cpu"], first["cpu"] / first["pass_cpu"], first["peak_mb"], size, limit),
        *(second["seconds"], second["seconds"] / first["seconds"], second["cpu"] / first["cpu"]),
    )


def fit_rows(args: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Of the table of fits."""
    for geometry in args.geometry:
        model = export(args.folder, geometry, args.exporter)
        for count, effort in itertools.product(args.images, args.effort):
            yield row(geometry, model, effort, count, measure(model, effort, count, args.threads))


def choosing_rows(args: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Of the table for mixed precision."""
    for geometry in args.geometry:
        model = export(args.folder, geometry, args.exporter)
        for count in args.images:
            yield choosing_row(geometry, model, count, args.threads, args.average_bits)


def main() -> None:
    """Make the models, measure, print."""
    parser = parser_of(__doc__, "fit_cost")
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=["S", "B"])
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--images", type=int, nargs="+", default=[32])
    parser.add_argument("--effort", nargs="+", choices=ALLOWED, default=list(ALLOWED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--average-bits", type=float)
    parser.add_argument("--folder", type=Path, default=Path("bench_peers"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        function, *arguments = json.loads(args.one)
        print(json.dumps(float_pass(*arguments) if function == "float_pass" else quantize(*arguments)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    name, titles, rows = ("fit_cost", FIT_COLUMNS, fit_rows)
    if args.average_bits is not None:
        name, titles, rows = ("choosing_cost", CHOOSING_COLUMNS, choosing_rows)
        args.write = name if args.write == "fit_cost" else args.write
    table = Table(columns=titles)
    for cells in rows(args):
        table.add(*cells)
    about = f"{args.threads} threads, {args.exporter} graphs, noise"
    made = provenance(["torch", "transformers"])
    finish(Results(name=name, tables=[table], made=made, about=[about]), args.write)


if __name__ == "__main__":
    main()
