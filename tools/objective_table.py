"""Objective against accuracy on the bundled model, and on its twin with injected outliers.

    python tools/objective_table.py [--validation] [--objectives NAME ...] [--write [NAME]]

Figures are on the 1,000 bundled test images; with --validation on the 1,936 training images that neither trained nor
calibrated (needs Debian's dataset-fashion-mnist), which is what the default objective was chosen on. Needs torch.
"""

import tempfile
from pathlib import Path

from command import onnxvitq, onnxvitq_json
from fashion import CALIBRATION, PREPARED, TEST, export_bundled, export_twin, validation_file
from tables import Results, Table, columns, finish, parser_of, provenance

OBJECTIVES = ("minmax", "mse", "pearson", "ranking")
SETTINGS = {
    "everything": ("--acceptance", "always"),
    "what does held-out images no harm": ("--acceptance", "held-out"),
}
ACCURACY = (("SQNR dB", "{:.2f}"), ("agreement %", "{:.2f}"), ("top-1 %", "{:.2f}"), ("float top-1 %", "{:.2f}"))


def accuracy(model: Path, output: Path, images: Path) -> tuple[int, tuple[float, float, float, float]]:
    """How many images, and the cells of ``ACCURACY``."""
    figures = onnxvitq_json("evaluate", model, output, "--data", images, *PREPARED)
    cells = (figures["sqnr_db"], 100 * figures["agreement"], figures["top1_quantized"], figures["top1_reference"])
    return int(figures["samples"]), cells


def main() -> None:
    """Quantize both models with each objective and print the table."""
    parser = parser_of(__doc__, "objectives")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    args = parser.parse_args()
    table = Table(columns=columns("model", "objective", "what is kept", *ACCURACY))
    count = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, output = validation_file(folder) if args.validation else TEST, folder / "int8.onnx"
        for title, make in (("bundled", export_bundled), ("with outliers", export_twin)):
            model = make(folder / "float.onnx")
            for objective in args.objectives:
                for setting, flags in SETTINGS.items():
                    options = ("--objective", objective, *flags, *PREPARED)
                    onnxvitq(model, "--calib", CALIBRATION, "-o", output, *options)
                    count, cells = accuracy(model, output, images)
                    table.add(title, objective, setting, *cells)
    kind = "validation" if args.validation else "test"
    about = f"{count} {kind} images, 64 calibration images, W8A8, onnxruntime's int8 kernels"
    finish(Results(name="objectives", tables=[table], made=provenance(["torch"]), about=[about]), args.write)


if __name__ == "__main__":
    main()
