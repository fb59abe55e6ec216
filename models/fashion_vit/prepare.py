"""Write the files that go with the trained weights: model.onnx, calib/*.png, test.npz.

    python models/fashion_vit/prepare.py

The calibration images come from the part of the training set that never trained; the 1,000 test images are the first of the
test set. Needs the weights and Debian's dataset-fashion-mnist.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import data

HERE = Path(__file__).parent
TEST_IMAGES = 1000


def main() -> None:
    """Write everything."""
    images, labels = data.read("train")
    _, calibration, _ = data.split_indices(len(images))
    folder = HERE / "calib"
    folder.mkdir(exist_ok=True)
    for index in calibration:
        Image.fromarray(images[index]).save(folder / f"{index:05d}_{data.CLASSES[labels[index]]}.png", optimize=True)
    test_images, test_labels = data.read("t10k")
    np.savez_compressed(HERE / "test.npz", x=test_images[:TEST_IMAGES], y=test_labels[:TEST_IMAGES])
    command = [sys.executable, "-m", "onnxvitq", "export", "fashion_vit", "-o", str(HERE / "model.onnx")]
    subprocess.run(command, check=True, cwd=HERE.parent.parent)


if __name__ == "__main__":
    main()
