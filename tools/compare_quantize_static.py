"""Time and peak memory of quantizing ViT-S geometry: onnxvitq against onnxruntime's quantize_static at its defaults.

    python tools/compare_quantize_static.py [--folder vit_s] [--images 32] [--repeats 3]
        [--contestants NAME ...] [--write [NAME]]

Each run is a process of its own, on the same float model and the same images; the contestants take turns, so that a drift
of the machine's speed meets all of them. Seconds are wall time from the call to the written model; imports are not counted.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from bench_tools import reader
from command import apart
from tables import Results, Table, columns, finish, parser_of, provenance
from vit_s import export, prepare

from onnxvitq.runtime.footprint import peak_resident

CONTESTANTS = ("quantize_static", "onnxvitq minmax", "onnxvitq default")


def quantize(contestant: str, model: str, data: str, output: str) -> dict[str, float]:
    """Quantize once in this process; seconds, and peak resident memory in MB."""
    images = np.load(data, mmap_mode="r")
    if contestant == "quantize_static":
        from onnxruntime.quantization import quantize_static

        start = time.perf_counter()
        quantize_static(model, output, reader({"pixel_values": images}))
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
    parser = parser_of(__doc__, "compare_quantize_static")
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(quantize(*json.loads(args.one))))
        return
    config, data = prepare(args.folder, args.images)
    model = export(config, "dynamo", "dynamic")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.contestants}
    for _ in range(args.repeats):
        for name in args.contestants:
            results[name].append(apart(__file__, [name, str(model), str(data), str(args.folder / "out.onnx")]))
    table = Table(
        columns=columns(
            "", ("seconds", "{:.1f}"), ("of the first", "{:.2f}"), ("peak MB", "{:.0f}"), ("all seconds", "{}")
        )
    )
    medians = {name: float(np.median([run["seconds"] for run in runs])) for name, runs in results.items()}
    for name, runs in results.items():
        peak = float(np.median([run["peak_mb"] for run in runs]))
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        table.add(name, medians[name], medians[name] / medians[args.contestants[0]], peak, seconds)
    about = (
        f"ViT-S geometry, torch.export graph, {args.images} images, all threads, "
        f"median of {args.repeats} runs taken in turn"
    )
    made = provenance(["torch", "transformers"])
    finish(Results(name="compare_quantize_static", tables=[table], made=made, about=[about]), args.write)


if __name__ == "__main__":
    main()
