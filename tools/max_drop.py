"""Whether --max-drop keeps its promise on images that nothing has seen: five draws of calibration images, three budgets.

    python tools/max_drop.py [--write] [--images IMAGES.npz] [--bits w4a4] [--budgets 0.5% 1% 2%] [--seeds 5] [--judged N ...]

Each seed shuffles the bundled calibration and test images, or those of a .npz file (x, y). The first 64 calibrate the bundled
model, the next ones judge the promise where the table says so (--eval, with labels; otherwise held-out calibration images
judge), and the rest is what nobody has seen. "expected" and "at most" are what the report states, the second with 95 %
certainty: that is promised. "unseen" is what is lost of the rest, +- one standard error: without labels decisions that change,
with labels what top-1 falls by. A promise is kept there where that is at most the budget, "within the error" where it is less
1.645 of its standard errors. "raised" counts layers and products that got 8 bits, "float" those that were returned to float.
The fit is the fast one (--effort fast): what keeps the promise comes after it.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnxvitq import api
from onnxvitq.core.config import QuantConfig
from onnxvitq.runtime.session import Session

TOOLS = Path(__file__).parent
BUNDLED = TOOLS.parent / "models" / "fashion_vit"
RESULTS = TOOLS / "results" / "max_drop.md"
sys.path.insert(0, str(BUNDLED))
import data

CALIBRATED = 64
CERTAIN = 1.645  # standard errors of what is measured on the rest
PREPROCESS = api.PreprocessOptions(config_file=BUNDLED / "preprocessor_config.json")


def images(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, 1, 28, 28) as the model takes them, and labels (N,)."""
    if path is not None:
        arrays = np.load(path)
        pixels, labels = arrays["x"], arrays["y"]
    else:
        arrays = np.load(BUNDLED / "test.npz")
        files = sorted((BUNDLED / "calib").glob("*.png"))
        pixels = np.concatenate([arrays["x"], np.stack([np.asarray(Image.open(file)) for file in files])])
        labels = np.concatenate([arrays["y"], [data.CLASSES.index(file.stem.partition("_")[2]) for file in files]])
    if pixels.dtype == np.uint8:
        pixels = (pixels[:, None].astype(np.float32) / 255 - np.float32(data.MEAN)) / np.float32(data.STD)
    return pixels.astype(np.float32), labels.astype(np.int64)


def lost(models: tuple[Path, Path], pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """(N,) 1 where a decision is lost, -1 where one is gained."""
    batches = [pixels[index : index + 64] for index in range(0, len(pixels), 64)]
    sessions = [Session(model) for model in models]
    before, after = (
        np.concatenate([one.run({one.input_specs[0].name: batch})[0] for batch in batches]).argmax(axis=1)
        for one in sessions
    )
    if labels is None:
        return (before != after).astype(np.float64)
    return (before == labels).astype(np.float64) - (after == labels)


def row(case: tuple[np.ndarray, np.ndarray], judged: int, config: QuantConfig, folder: Path) -> tuple[str, bool, bool]:
    """One run: its line but for the seed, whether the promise is kept on the rest, and whether within the error of that."""
    pixels, labels = case
    judge, output, model = folder / "judge.npz", folder / "int8.onnx", BUNDLED / "model.onnx"
    stop = CALIBRATED + judged
    np.savez(judge, x=pixels[CALIBRATED:stop], y=labels[CALIBRATED:stop])
    config = QuantConfig.from_dict({**config.to_dict(), "judged_on": str(judge) if judged else None})
    report: Any = api.quantize(model, pixels[:CALIBRATED], output, config, preprocess=PREPROCESS).report
    quality = report["quality"]
    found = lost((model, output), pixels[stop:], labels[stop:] if judged else None)
    share, error = found.mean(), found.std() / np.sqrt(len(found))
    assert config.max_drop is not None  # main gave one
    kept, within = bool(share <= config.max_drop), bool(share - CERTAIN * error <= config.max_drop)
    verdict = "yes" if kept else "within the error" if within else "NO"
    actions = [change["action"] for change in quality["changes"]]
    text = (
        f"{100 * config.max_drop:g} | {quality['lost']} of {quality['samples']} | {100 * quality['expected']:.2f} "
        f"| {100 * quality['bound']:.2f} | {actions.count('raise')} | {actions.count('float')} "
        f"| {'yes' if quality['kept'] else 'no'} | {100 * share:.2f} +- {100 * error:.2f} | {verdict} |"
    )
    return text, kept, within


def main() -> None:
    """The table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="labelled images (.npz) in place of the bundled ones")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.005, 0.01, 0.02], help="shares")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--judged", type=int, nargs="+", default=[0, 400], help="images that judge; 0: held-out ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    lines = [
        "| judged on | seed | budget % | lost | expected % | at most % | raised | float | stated as kept | unseen % "
        "| kept there |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    pixels, labels = images(args.images)
    for judged in args.judged:
        kept = []
        for seed in range(args.seeds):
            order = np.random.default_rng(seed).permutation(len(pixels))
            for budget in args.budgets:
                config = QuantConfig(bits=args.bits, effort="fast", max_drop=budget, threads=args.threads)
                with tempfile.TemporaryDirectory() as folder:
                    text, *found = row((pixels[order], labels[order]), judged, config, Path(folder))
                kept.append(found)
                lines.append(f"| {judged or 'held-out'} | {seed} | {text}")
                print(lines[-1], flush=True)
        exact, within = np.sum(kept, axis=0)
        source = f"{judged} other images with labels" if judged else "held-out calibration images"
        verdict = f"kept {exact} of {len(kept)}, {within} within the error of what was not seen"
        lines += ["", f"Judged on {source}: {verdict}.", ""]
        print("\n".join(lines[-3:]), flush=True)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
