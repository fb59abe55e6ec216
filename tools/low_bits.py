"""Uniform bit widths against accuracy, on the bundled model and on its twin with outlier channels.

    python tools/low_bits.py [--validation] [--write] [--bits w8a8 w6a6 ...]

Default steps, the 64 bundled calibration images. Figures are on the 10,000 Fashion-MNIST test images; with --validation on
the training images that neither trained nor calibrated, which is what the search's grid was chosen on. Both need Debian's
dataset-fashion-mnist. With --write the table also goes to tools/results/low_bits.md. Needs torch, for the twin.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from objective_table import BUNDLED, RESULTS, build, data, export, labelled, onnxvitq, with_outliers

BITS = ("w8a8", "w6a6", "w4a8", "w4a4", "w3a3")


def main() -> None:
    """Quantize both models at every width and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    prepared = ["--preprocessor-config", BUNDLED / "preprocessor_config.json"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = labelled(folder, validation=True) if args.validation else _test(folder)
        twin, output = folder / "twin.onnx", folder / "quantized.onnx"
        export(with_outliers(build(), np.random.default_rng(0)), twin)
        for title, model in (("bundled", BUNDLED / "model.onnx"), ("with outliers", twin)):
            for bits in args.bits:
                onnxvitq(model, "--calib", BUNDLED / "calib", "-o", output, "--bits", bits, *prepared)
                found = onnxvitq("evaluate", model, output, "--data", images, *prepared)
                rows.append((title, bits, output.stat().st_size, found))
    count, kind = int(rows[0][3]["samples"]), "validation" if args.validation else "test"
    lines = [
        f"{count} {kind} images, 64 calibration images, onnxruntime's int8 kernels",
        "",
        "| model | bits | file kB | SQNR dB | agreement % | top-1 % | float top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, bits, size, r in rows:
        accuracy = f"{r['top1_quantized']:.2f} | {r['top1_reference']:.2f}"
        lines.append(
            f"| {title} | {bits} | {size / 1e3:.0f} | {r['sqnr_db']:.2f} | {100 * r['agreement']:.2f} | {accuracy} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        (RESULTS / f"low_bits{'_validation' if args.validation else ''}.md").write_text(text)


def _test(folder: Path) -> Path:
    images, labels = data.read("t10k")
    path = folder / "test.npz"
    np.savez(path, x=images, y=labels)
    return path


if __name__ == "__main__":
    main()
