"""Whether a change of the code changed what a fit costs: time and peak memory of the default job, two checkouts in turn.

    python tools/same_cost.py --before DIR [--rounds 3] [--images 32] [--folder same_cost] [--write]

The job is ViT-S (random weights, torch.export) with the default options on images of noise. The package in DIR and the one of
this checkout run in turn, each in a process of its own, imports included. Seconds of the processor (user and system) say less
about waiting than those of the clock. The peak is that of the resident memory. Of each, medians of the rounds and the ratio.
With --write the table goes to tools/results/same_cost.md. Needs torch and transformers, to make the model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from vit_s import CONFIG

ROOT = Path(__file__).parent.parent.resolve()
INPUT = "pixel_values"


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


def prepare(folder: Path, images: int) -> tuple[Path, Path]:
    """The float model and its calibration data, made where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data = folder / "vit_s.onnx", folder / f"noise_{images}.npz"
    if not model.exists():
        config = folder / "vit_s.json"
        config.write_text(json.dumps(CONFIG))
        subprocess.run(
            [sys.executable, "-m", "onnxvitq", "export", config, "-o", model], check=True, capture_output=True
        )
    if not data.exists():
        noise = np.random.default_rng(0).normal(size=(images, 3, 224, 224))
        arrays: dict[str, Any] = {INPUT: noise.astype(np.float32)}
        np.savez(data, **arrays)
    return model, data


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("same_cost"))
    args = parser.parse_args()
    model, data = (path.resolve() for path in prepare(args.folder, args.images))
    sources = {"before": args.before.resolve(), "now": ROOT}
    costs: dict[str, list[Cost]] = {name: [] for name in sources}
    for _ in range(args.rounds):
        for name, source in sources.items():
            costs[name].append(run(source, model, data, args.folder.resolve() / f"{name}.onnx"))
            print(name, costs[name][-1], flush=True)
    for field in ("clock", "processor", "peak"):
        before, now = (statistics.median(getattr(cost, field) for cost in costs[name]) for name in sources)
        print(f"{field}: {before:.1f} -> {now:.1f}, {now / before:.3f} of before")


if __name__ == "__main__":
    main()
