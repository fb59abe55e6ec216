"""Whether a change of the code changed what a fit costs: time and peak memory of the default job, two checkouts in turn.

    python tools/same_cost.py --before DIR [--rounds 3] [--images 32] [--folder same_cost] [--write [NAME]]

The job is ViT-S (random weights, torch.export) with the default options on images of noise. The package in DIR and the one of
this checkout run in turn, each in a process of its own, imports included. Seconds of the processor (user and system) say less
about waiting than those of the clock. The peak is that of the resident memory. Of each, medians of the rounds and the ratio.
Needs torch and transformers, to make the model.
"""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tables import ROOT, Results, Table, columns, finish, parser_of, provenance
from vit_s import export, prepare

FIELDS = {"clock": "seconds of the clock", "processor": "seconds of the processor", "peak": "peak MB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run.

    Attributes:
        clock: seconds of the clock.
        processor: seconds of the processor, user and system.
        peak: largest resident memory in MB.
    """

    clock: float
    processor: float
    peak: float


def run(source: Path, model: Path, data: Path, output: Path) -> Cost:
    """One job of the package in a folder."""
    command = [sys.executable, "-m", "onnxvitq", str(model), "--calib", str(data), "-o", str(output), "--quiet"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=source, env={**os.environ, "PYTHONPATH": str(source)})
    _, status, usage = os.wait4(process.pid, 0)
    clock = time.perf_counter() - begun
    if status:
        raise SystemExit(f"the job of {source} failed")
    return Cost(clock=clock, processor=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss / 1e3)


def main() -> None:
    """Run both in turn and print the table."""
    parser = parser_of(__doc__, "same_cost")
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("same_cost"))
    args = parser.parse_args()
    config, data = prepare(args.folder, args.images)
    model = export(config, "dynamo", "dynamic")
    sources = {"before": args.before.resolve(), "now": ROOT}
    costs: dict[str, list[Cost]] = {name: [] for name in sources}
    for _ in range(args.rounds):
        for name, source in sources.items():
            costs[name].append(run(source, model.resolve(), data.resolve(), args.folder.resolve() / f"{name}.onnx"))
            print(name, costs[name][-1], file=sys.stderr, flush=True)
    table = Table(
        columns=columns(
            "", ("before", "{:.1f}"), ("now", "{:.1f}"), ("of before", "{:.3f}"), "each, before", "each, now"
        )
    )
    for field, title in FIELDS.items():
        each = {name: [getattr(cost, field) for cost in costs[name]] for name in sources}
        before, now = (statistics.median(each[name]) for name in sources)
        listed = (", ".join(f"{value:.1f}" for value in each[name]) for name in sources)
        table.add(title, before, now, now / before, *listed)
    about = f"ViT-S geometry, torch.export graph, {args.images} images, default options; medians of {args.rounds} runs in turn"
    made = provenance(["torch", "transformers"])
    finish(Results(name="same_cost", tables=[table], made=made, about=[about]), args.write)


if __name__ == "__main__":
    main()
