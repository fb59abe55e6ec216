"""Size of the file that each quantizer writes, W8A8, for ViT-S geometry (random weights).

    python tools/file_sizes.py [--geometry S] [--exporter dynamo] [--tools NAME ...] [--folder bench_peers]
        [--peer-python PYTHON ...] [--write]

Tools, models and folder are those of tools/bench_peers.py; ``--write`` writes tools/results/file_sizes.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from bench_peers import GEOMETRIES, PEERS, export, quantize
from bench_tools import TOOLS

from onnxvitq.report.build import environment

OTHERS = ["quantize_static-inputs", "quark", "aimet"]
OURS = ["onnxvitq-minmax", "onnxvitq-accuracy"]
RESULT = Path(__file__).parent / "results" / "file_sizes.md"


def main() -> None:
    """Make the models, weigh them, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="S")
    parser.add_argument("--exporter", default="dynamo")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=[*PEERS, *OTHERS, *OURS])
    parser.add_argument("--folder", type=Path, default=Path("bench_peers"))
    parser.add_argument("--peer-python", nargs="*", default=[])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = export(args.folder, args.geometry, args.exporter)
    size = model.stat().st_size
    env = environment(1)
    title = f"{GEOMETRIES[args.geometry][0]} geometry, {args.exporter} graph; onnx {env['onnx']}"
    lines = [title, "", "| tool | file MB | of float |", "|---|---|---|", f"| float | {size / 1e6:.2f} | 100.0 % |"]
    for tool in args.tools:
        made = quantize(model, tool, tuple(args.peer_python))
        if isinstance(made, str):
            lines.append(f"| {TOOLS[tool].title} | fails: {made[:80]} | |")
        else:
            bytes_ = made.stat().st_size
            lines.append(f"| {TOOLS[tool].title} | {bytes_ / 1e6:.2f} | {100 * bytes_ / size:.1f} % |")
        print(lines[-1], flush=True)
    if args.write:
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
