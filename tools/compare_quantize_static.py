"""Time and peak memory of quantizing ViT-S geometry: onnxvitq against onnxruntime's quantize_static at its defaults.

    python tools/compare_quantize_static.py [--folder vit_s] [--images 32] [--repeats 3] [--write]

Each run is a process of its own, on the same float model and the same images; the contestants take turns, so that a drift
of the machine's speed meets all of them. Seconds are wall time from the call to the written model; imports are not counted.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from vit_s import export, prepare

from onnxvitq.runtime.footprint import peak_resident

RESULTS = Path(__file__).parent / "results" / "compare_quantize_static.md"
CONTESTANTS = ("quantize_static", "onnxvitq minmax", "onnxvitq default")


def run_one(contestant: str, model: str, data: str, output: str) -> dict[str, float]:
    """Quantize once in this process; seconds, and peak resident memory in MB."""
    images = np.load(data, mmap_mode="r")
    if contestant == "quantize_static":
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.feeds = iter([{"pixel_values": np.array(image)[None]} for image in images])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.feeds, None)

        start = time.perf_counter()
        quantize_static(model, output, Reader())
    else:
        import onnxvitq.api
        from onnxvitq.core.config import QuantConfig

        config = QuantConfig(objective="minmax") if contestant.endswith("minmax") else QuantConfig()
        start = time.perf_counter()
        onnxvitq.api.quantize(model, data, output, config)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_resident() / 1e6}


def main() -> None:
    """Run the contestants in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(*args.one)))
        return
    config, data = prepare(args.folder, args.images)
    model = export(config, "dynamo", "dynamic")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.repeats):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--one", name, str(model), str(data), str(args.folder / "out.onnx")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    lines = [
        f"ViT-S geometry, torch.export graph, {args.images} images, all threads, median of {args.repeats} runs taken in turn",
        "",
        "| | seconds | of quantize_static | peak MB |",
        "|---|---|---|---|",
    ]
    reference = float(np.median([run["seconds"] for run in results["quantize_static"]]))
    for name, runs in results.items():
        seconds, peak = (float(np.median([run[key] for run in runs])) for key in ("seconds", "peak_mb"))
        lines.append(f"| {name} | {seconds:.1f} | {seconds / reference:.2f} | {peak:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
