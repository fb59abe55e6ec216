"""File size, load time and run time of packed weights on ViT-S geometry (random weights), beside 8 bits.

    python tools/packed_size.py [--folder vit_s] [--runs 15] [--threads 1] [--bits w8a8 ...] [--write [NAME]]

Expected size: every weight times its bits / 8, and 4 bytes for every other value (biases, scales, positions, norms); patch
embedding and head have 8 bits. Times are of one interleaved run.
"""

from pathlib import Path

from command import onnxvitq_json
from tables import Results, Table, columns, finish, parser_of, provenance
from vit_s import conditions, counts, export, prepare, timed

BITS = ("w8a8", "w7a8", "w6a8", "w5a8", "w4a8", "w3a8", "w2a8", "w6a6", "w4a4")


def main() -> None:
    """Write the models, measure, print."""
    parser = parser_of(__doc__, "packed_size")
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", nargs="+", default=BITS)
    args = parser.parse_args()
    config, data = prepare(args.folder, 8)
    model = export(config, "dynamo", "static")
    paths = [model.with_name(f"{model.stem}_{bits}.onnx") for bits in args.bits]
    options = ("--objective", "minmax", "--num-samples", 2)
    reports = [
        onnxvitq_json(model, "--calib", data, "-o", path, *options, "--bits", bits)
        for bits, path in zip(args.bits, paths, strict=True)
    ]
    timings = timed(paths, args.runs, args.threads)
    table = Table(
        columns=columns(
            *("bits", ("file MB", "{:.2f}"), ("expected MB", "{:.2f}"), ("over", "{:.1f} %")),
            *(("integer linears", "{} of {}"), ("integer products", "{} of {}"), ("load ms", "{:.0f}")),
            *(("run ms", "{:.1f}"), ("of the first", "{:.3f}")),
        )
    )
    for bits, report, timing in zip(args.bits, reports, timings, strict=True):
        size, expected = report["size_mb"]["quantized"], report["bits"]["expected_mb"]
        kernels = (counts(report, "linears"), counts(report, "attention_products"))
        median = timing["median_ms"]
        times = (timing["load_ms"], median, median / timings[0]["median_ms"])
        table.add(bits, size, expected, 100 * (size / expected - 1), *kernels, *times)
    made = provenance(["torch", "transformers"])
    about = [conditions(args.runs, args.threads)]
    finish(Results(name="packed_size", tables=[table], made=made, about=about), args.write)


if __name__ == "__main__":
    main()
