"""Uniform bit widths against accuracy, on the bundled model and on its twin with outlier channels.

    python tools/low_bits.py [--validation] [--bits w8a8 w6a6 ...] [--write [NAME]]

Default steps, the 64 bundled calibration images. Figures are on the 10,000 Fashion-MNIST test images; with --validation on
the training images that neither trained nor calibrated, which is what the search's grid was chosen on. Both need Debian's
dataset-fashion-mnist. Needs torch, for the twin.
"""

import tempfile
from pathlib import Path

from command import onnxvitq
from fashion import CALIBRATION, MODEL, PREPARED, export_twin, tests_file, validation_file
from objective_table import ACCURACY, accuracy
from tables import Results, Table, columns, finish, parser_of, provenance

BITS = ("w8a8", "w6a6", "w4a8", "w4a4", "w3a3")


def main() -> None:
    """Quantize both models at every width and print the table."""
    parser = parser_of(__doc__, "low_bits")
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--validation", action="store_true")
    args = parser.parse_args()
    table = Table(columns=columns("model", "bits", ("file kB", "{:.0f}"), *ACCURACY))
    count = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = validation_file(folder) if args.validation else tests_file(folder)
        twin, output = export_twin(folder / "twin.onnx"), folder / "quantized.onnx"
        for title, model in (("bundled", MODEL), ("with outliers", twin)):
            for bits in args.bits:
                onnxvitq(model, "--calib", CALIBRATION, "-o", output, "--bits", bits, *PREPARED)
                count, cells = accuracy(model, output, images)
                table.add(title, bits, output.stat().st_size / 1e3, *cells)
    kind = "validation" if args.validation else "test"
    about = f"{count} {kind} images, 64 calibration images, onnxruntime's int8 kernels"
    finish(Results(name="low_bits", tables=[table], made=provenance(["torch"]), about=[about]), args.write)


if __name__ == "__main__":
    main()
