"""The bundled model calibrated on what it will never see: crops of photographs in place of Fashion-MNIST.

    python tools/domain_shift.py [--images 64] [--bits w8a8 ...] [--write]

Photographs are those that scikit-image ships (pip install scikit-image); crops are drawn by a fixed seed, grey, 28 x 28. Top-1
and SQNR are on the 10,000 Fashion-MNIST test images (Debian's dataset-fashion-mnist). With --write the table also goes to
tools/results/domain_shift.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from objective_table import BUNDLED, data, onnxvitq

RESULTS = Path(__file__).parent / "results" / "domain_shift.md"
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w6a6"])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    lines = [
        f"10,000 test images, {args.images} calibration images",
        "",
        "| bits | calibrated on | SQNR dB | agreement % | top-1 % | float top-1 % |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test, photos, output = folder / "test.npz", folder / "photos", folder / "int8.onnx"
        images, labels = data.read("t10k")
        np.savez(test, x=images, y=labels)
        photos.mkdir()
        crops(photos, args.images)
        for bits in args.bits:
            for title, calibration in (("Fashion-MNIST", BUNDLED / "calib"), ("photographs", photos)):
                options = ("--bits", bits, "--num-samples", args.images)
                onnxvitq(BUNDLED / "model.onnx", "--calib", calibration, "-o", output, *options)
                found = onnxvitq("evaluate", BUNDLED / "model.onnx", output, "--data", test)
                figures = [found["sqnr_db"], 100 * found["agreement"], found["top1_quantized"], found["top1_reference"]]
                lines.append(f"| {bits} | {title} | " + " | ".join(f"{value:.2f}" for value in figures) + " |")
                print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
