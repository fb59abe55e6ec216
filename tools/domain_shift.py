"""The bundled model calibrated on what it will never see: crops of photographs in place of Fashion-MNIST.

    python tools/domain_shift.py [--images 64] [--bits w8a8 ...] [--write [NAME]]

Photographs are those that scikit-image ships (pip install scikit-image); crops are drawn by a fixed seed, grey, 28 x 28. Top-1
and SQNR are on the 10,000 Fashion-MNIST test images (Debian's dataset-fashion-mnist). Needs torch.
"""

import tempfile
from pathlib import Path

import numpy as np
from command import onnxvitq
from fashion import CALIBRATION, MODEL, PREPARED, tests_file
from objective_table import ACCURACY, accuracy
from PIL import Image
from tables import Results, Table, columns, finish, parser_of, provenance

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "page", "moon")
SIDE, CROP = 28, (56, 300)  # of what the model reads; shortest and longest side of a crop


def crops(folder: Path, count: int) -> None:
    """Write random crops of the photographs."""
    from skimage import data as photographs

    rng = np.random.default_rng(0)
    images = [Image.fromarray(getattr(photographs, name)()).convert("L") for name in PHOTOS]
    for number in range(count):
        image = images[number % len(images)]
        side = int(rng.integers(CROP[0], min(*image.size, CROP[1])))
        left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
        image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE)).save(folder / f"{number:03d}.png")


def main() -> None:
    """Quantize twice for each width and print top-1."""
    parser = parser_of(__doc__, "domain_shift")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w6a6"])
    args = parser.parse_args()
    table = Table(columns=columns("bits", "calibrated on", *ACCURACY))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test, photos, output = tests_file(folder), folder / "photos", folder / "int8.onnx"
        photos.mkdir()
        crops(photos, args.images)
        for bits in args.bits:
            for title, calibration in (("Fashion-MNIST", CALIBRATION), ("photographs", photos)):
                options = ("--bits", bits, "--num-samples", args.images, *PREPARED)
                onnxvitq(MODEL, "--calib", calibration, "-o", output, *options)
                table.add(bits, title, *accuracy(MODEL, output, test)[1])
    about = f"10,000 test images, {args.images} calibration images"
    finish(Results(name="domain_shift", tables=[table], made=provenance(["scikit-image"]), about=[about]), args.write)


if __name__ == "__main__":
    main()
