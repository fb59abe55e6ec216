"""ViT-S geometry from a Hugging Face configuration (random weights): exported four ways, quantized, audited, timed.

    python tools/vit_s.py [--folder vit_s] [--runs 15] [--threads 1] [--write]

Prints a table; with --write it also goes to tools/results/vit_s.md. The models stay in the folder, so that other tools can
time the very same files. Random weights: this measures size, kernels and time, never accuracy.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "vit_s.md"
CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_hidden_layers": 12,
    "intermediate_size": 1536,
    "image_size": 224,
    "patch_size": 16,
    "num_labels": 1000,
}
FORMS = [(exporter, batch) for exporter in ("dynamo", "torchscript") for batch in ("dynamic", "static")]


def onnxvitq(*arguments: object) -> str:
    """Run the command line; its standard output."""
    command = [sys.executable, "-m", "onnxvitq", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def prepare(folder: Path, images: int) -> tuple[Path, Path]:
    """The configuration and ``images`` of noise as calibration data, both in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config, data = folder / "config.json", folder / "noise.npy"
    config.write_text(json.dumps(CONFIG))
    np.save(data, np.random.default_rng(0).normal(size=(images, 3, 224, 224)).astype(np.float32))
    return config, data


def export(config: Path, exporter: str, batch: str) -> Path:
    """One of the four float models; kept when it is already there."""
    path = config.parent / f"vit_s_{exporter}_{batch}.onnx"
    if not path.exists():
        static = ["--static-batch", 1] if batch == "static" else []
        onnxvitq("export", config, "-o", path, "--exporter", exporter, *static)
    return path


def main() -> None:
    """Make the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    config, data = prepare(args.folder, 8)
    rows, timed = [], []
    for exporter, batch in FORMS:
        path = export(config, exporter, batch)
        output = path.with_name(f"{path.stem}_int8.onnx")
        report = json.loads(onnxvitq(path, "--calib", data, "-o", output, "--json", "--objective", "minmax"))
        rows.append((exporter, batch, report))
        timed += [path, output]
    bench = json.loads(onnxvitq("bench", *timed, "--runs", args.runs, "--threads", args.threads, "--json"))["models"]
    env = rows[0][2]["environment"]
    lines = [
        f"onnxruntime {env['onnxruntime']}, {env['processor']}, {args.threads} thread(s), batch 1, "
        f"median of {args.runs} interleaved runs",
        "",
        "| exporter | batch | integer linears | integer products | size MB | of float | float ms | int8 ms | times float |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for index, (exporter, batch, report) in enumerate(rows):
        reference, quantized = bench[2 * index]["median_ms"], bench[2 * index + 1]["median_ms"]
        linears, products, size = report["linears"], report["attention_products"], report["size_mb"]["quantized"]
        share = 100 * size / report["size_mb"]["float"]
        lines.append(
            f"| {exporter} | {batch} | {linears['integer_kernels']} of {linears['found']} "
            f"| {products['integer_kernels']} of {products['found']} | {size:.2f} "
            f"| {share:.1f} % | {reference:.1f} | {quantized:.1f} | {reference / quantized:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
