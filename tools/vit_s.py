"""ViT-S geometry from a Hugging Face configuration (random weights): exported four ways, quantized, audited, timed.

    python tools/vit_s.py [--folder vit_s] [--runs 15] [--threads 1] [--write [NAME]]

The models stay in the folder, so that other tools can
time the very same files. Random weights: this measures size, kernels and time, never accuracy.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from command import onnxvitq, onnxvitq_json
from tables import Results, Table, columns, finish, parser_of, provenance

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


def timed(models: list[Path], runs: int, threads: int) -> list[dict[str, Any]]:
    """Of each model what ``onnxvitq bench`` measures, interleaved."""
    found: list[dict[str, Any]] = onnxvitq_json("bench", *models, "--runs", runs, "--threads", threads)["models"]
    return found


def counts(report: dict[str, Any], kind: str) -> tuple[int, int]:
    """(on integer kernels, found) of a report's linears or products."""
    return report[kind]["integer_kernels"], report[kind]["found"]


def conditions(runs: int, threads: int) -> str:
    """What times were taken under."""
    return f"ViT-S geometry, {threads} thread(s), batch 1, median of {runs} interleaved runs"


def main() -> None:
    """Make the models, measure, print."""
    parser = parser_of(__doc__, "vit_s")
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    config, data = prepare(args.folder, 8)
    reports: list[dict[str, Any]] = []
    models: list[Path] = []
    for exporter, batch in FORMS:
        path = export(config, exporter, batch)
        output = path.with_name(f"{path.stem}_int8.onnx")
        reports.append(onnxvitq_json(path, "--calib", data, "-o", output, "--objective", "minmax"))
        models += [path, output]
    bench = timed(models, args.runs, args.threads)
    table = Table(
        columns=columns(
            *("exporter", "batch", ("integer linears", "{} of {}"), ("integer products", "{} of {}")),
            *(("size MB", "{:.2f}"), ("of float", "{:.1f} %"), ("float ms", "{:.1f}"), ("int8 ms", "{:.1f}")),
            ("times float", "{:.2f}"),
        )
    )
    for index, (form, report) in enumerate(zip(FORMS, reports, strict=True)):
        reference, quantized = bench[2 * index]["median_ms"], bench[2 * index + 1]["median_ms"]
        size = report["size_mb"]
        kernels = (counts(report, "linears"), counts(report, "attention_products"))
        share = 100 * size["quantized"] / size["float"]
        table.add(*form, *kernels, size["quantized"], share, reference, quantized, reference / quantized)
    made = provenance(["torch", "transformers"])
    finish(Results(name="vit_s", tables=[table], made=made, about=[conditions(args.runs, args.threads)]), args.write)


if __name__ == "__main__":
    main()
