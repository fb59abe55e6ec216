"""``onnxvitq bench``: latency, cold load, memory and operators of several models."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxvitq.cli.arguments import Parser, read
from onnxvitq.cli.console import console_of_results, new_table
from onnxvitq.cli.shared_options import JsonOption
from onnxvitq.core.option_text import COUNT, MOST_THREADS, thread_counts
from onnxvitq.core.options import option, required

if TYPE_CHECKING:
    from onnxvitq.api import Benchmark
    from onnxvitq.runtime.profile import OperatorTime


@dataclass(frozen=True, kw_only=True)
class BenchOptions(JsonOption):
    """What to measure, and how often."""

    title = ""

    models: tuple[Path, ...] = required(help="ONNX models; the first is the reference.", positional=True)
    threads: tuple[int, ...] = option(
        (1,),
        help="Threads of onnxruntime: one number or several with commas, as 1,2. 0 takes one a core.",
        metavar="N[,N...]",
        least=0,
        most=MOST_THREADS,
        text=thread_counts,
    )
    runs: int = option(15, help="Timed runs of each model.", **COUNT)
    batch_size: int = option(1, help="Batch size of models whose batch is dynamic.", **COUNT)
    seed: int = option(0, help="Seed of the random inputs.", least=0, most=2**32 - 1)
    profile: bool = option(False, help="Measure the time of every kind of operator, too.")


def parser() -> Parser:
    """The command's parser."""
    description = "Measure interleaved latency, cold load and peak memory of models; the first is the reference."
    return Parser("onnxvitq bench", description, BenchOptions, usage="onnxvitq bench MODEL [MODEL ...] [options]")


def run(arguments: Sequence[str]) -> int:
    """Measure and print; 0."""
    args = read(parser().parse_args(arguments), BenchOptions)
    from onnxvitq.api import bench

    threads = list(dict.fromkeys(args.threads))
    result = bench(
        args.models, batch=args.batch_size, threads=threads, runs=args.runs, seed=args.seed, profiled=args.profile
    )
    if args.json:
        operators = [{name: asdict(time) for name, time in one.items()} for one in result.operators]
        rows = {
            "threads": threads,
            "runs": args.runs,
            "batch": args.batch_size,
            "models": [{"threads": count, **asdict(one)} for count in threads for one in result.timings[count]],
            "footprints": [asdict(one) for one in result.footprints],
            "operators": operators,
        }
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print_benchmark(result, args)
    return 0


def _print_benchmark(result: "Benchmark", args: BenchOptions) -> None:
    console = console_of_results()
    for threads, timings in result.timings.items():
        title = f"{threads or 'one a core:'} thread(s), batch {args.batch_size}, {args.runs} runs"
        table = new_table(title, "model", "median ms", "quartiles ms", "times the first")
        for timing in timings:
            spread = f"{timing.lower_ms:.2f} to {timing.upper_ms:.2f}"
            table.add_row(timing.model, f"{timing.median_ms:.2f}", spread, f"{timing.speedup:.2f}")
        console.print(table)
    first = result.footprints[0]
    columns = ["model", "cold load ms", "peak MB", "largest", "load, of the first", "peak, of the first"]
    table = new_table("Medians of fresh processes, and the largest peak", *columns)
    for one in result.footprints:
        shares = (f"{one.load_ms / first.load_ms:.0%}", f"{one.peak_mb / first.peak_mb:.0%}")
        table.add_row(one.model, f"{one.load_ms:.0f}", f"{one.peak_mb:.1f}", f"{one.largest_mb:.1f}", *shares)
    console.print(table)
    if result.operators:
        columns = [f"{model.name} {unit}" for model in args.models for unit in ("ms", "nodes")]
        table = new_table("Time by operator", "operator", *columns)
        for name in dict.fromkeys(name for one in result.operators for name in one):
            times = [one.get(name) for one in result.operators]
            table.add_row(name, *(text for time in times for text in _cells(time)))
        totals = [sum(time.ms for time in one.values()) for one in result.operators]
        table.add_row("all", *(text for total in totals for text in (f"{total:.2f}", "")))
        console.print(table)


def _cells(time: "OperatorTime | None") -> tuple[str, str]:
    return ("", "") if time is None else (f"{time.ms:.2f}", str(time.nodes))
