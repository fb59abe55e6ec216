"""File size, load time and run time of packed weights on ViT-S geometry (random weights), beside 8 bits.

    python tools/packed_size.py [--folder vit_s] [--runs 15] [--threads 1] [--write]

Expected size: every weight times its bits / 8, and 4 bytes for every other value (biases, scales, positions, norms); patch
embedding and head have 8 bits. Times are of one interleaved run. With --write the table also goes to
tools/results/packed_size.md.
"""

import argparse
import json
from pathlib import Path

from vit_s import export, onnxvitq, prepare

RESULTS = Path(__file__).parent / "results" / "packed_size.md"
BITS = ("w8a8", "w7a8", "w6a8", "w5a8", "w4a8", "w3a8", "w2a8", "w6a6", "w4a4")


def main() -> None:
    """Write the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    config, data = prepare(args.folder, 8)
    model = export(config, "dynamo", "static")
    reports, paths = [], []
    for bits in BITS:
        path = model.with_name(f"{model.stem}_{bits}.onnx")
        options = ["--objective", "minmax", "--num-samples", 2, "--bits", bits, "--json"]
        reports.append(json.loads(onnxvitq(model, "--calib", data, "-o", path, *options)))
        paths.append(path)
    timings = json.loads(onnxvitq("bench", *paths, "--runs", args.runs, "--threads", args.threads, "--json"))["models"]
    env = reports[0]["environment"]
    lines = [
        f"onnxruntime {env['onnxruntime']}, {env['processor']}, {args.threads} thread(s), batch 1, "
        f"median of {args.runs} interleaved runs",
        "",
        "| bits | file MB | expected MB | over | integer linears | integer products | load ms | run ms | of w8a8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for bits, report, timing in zip(BITS, reports, timings, strict=True):
        size, expected = report["size_mb"]["quantized"], report["bits"]["expected_mb"]
        linears, products = report["linears"], report["attention_products"]
        lines.append(
            f"| {bits} | {size:.2f} | {expected:.2f} | {100 * (size / expected - 1):.1f} % "
            f"| {linears['integer_kernels']} of {linears['found']} "
            f"| {products['integer_kernels']} of {products['found']} | {timing['load_ms']:.0f} "
            f"| {timing['median_ms']:.1f} | {timing['median_ms'] / timings[0]['median_ms']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
