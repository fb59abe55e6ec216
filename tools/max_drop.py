"""Whether --max-drop keeps its promise on images that nothing has seen: five draws of calibration images, three budgets.

    python tools/max_drop.py [--images IMAGES.npz] [--bits w4a4] [--budgets 0.005 0.01 0.02] [--seeds 5] [--judged N ...]
        [--write [NAME]]

Each seed shuffles the bundled calibration and test images, or those of a .npz file (x, y). The first 64 calibrate the bundled
model, the next ones judge the promise where the table says so (--eval, with labels; otherwise held-out calibration images
judge), and the rest is what nobody has seen. "expected" and "at most" are what the report states, the second with 95 %
certainty: that is promised. "unseen" is what is lost of the rest, +- one standard error: without labels decisions that change,
with labels what top-1 falls by. A promise is kept there where that is at most the budget, "within the error" where it is less
1.645 of its standard errors. "raised" counts layers and products that got 8 bits, "float" those that were returned to float.
The fit is the fast one (--effort fast): what keeps the promise comes after it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fashion import CALIBRATION, MODEL, PREPROCESSOR_CONFIG, TEST, data
from PIL import Image
from running import infer
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq import api
from onnxvitq.core.config import QuantConfig

COLUMNS = columns(
    *(
        "evaluated on",
        "seed",
        ("budget %", "{:g}"),
        ("lost", "{} of {}"),
        ("expected %", "{:.2f}"),
        ("at most %", "{:.2f}"),
    ),
    *("raised", "float", "stated as kept", ("unseen %", "{:.2f} +- {:.2f}"), "kept there"),
)
CALIBRATED = 64
INPUT = "input"
CERTAIN = 1.645  # standard errors of what is measured on the rest
PREPROCESS = api.PreprocessOptions(config_file=PREPROCESSOR_CONFIG)


def images(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, 1, 28, 28) as the model takes them, and labels (N,)."""
    if path is not None:
        arrays = np.load(path)
        pixels, labels = arrays["x"], arrays["y"]
    else:
        arrays = np.load(TEST)
        files = sorted(CALIBRATION.glob("*.png"))
        pixels = np.concatenate([arrays["x"], np.stack([np.asarray(Image.open(file)) for file in files])])
        labels = np.concatenate([arrays["y"], [data.CLASSES.index(file.stem.partition("_")[2]) for file in files]])
    if pixels.dtype == np.uint8:
        pixels = (pixels[:, None].astype(np.float32) / 255 - np.float32(data.MEAN)) / np.float32(data.STD)
    return pixels.astype(np.float32), labels.astype(np.int64)


def lost(models: tuple[Path, Path], pixels: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """(N,) 1 where a decision is lost, -1 where one is gained."""
    before, after = (infer(model, {INPUT: pixels}, 64).argmax(axis=1) for model in models)
    if labels is None:
        return (before != after).astype(np.float64)
    return (before == labels).astype(np.float64) - (after == labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One run: its cells but for where and by which seed, whether the promise is kept on the rest, or within its error."""

    cells: tuple[Any, ...]
    kept: bool
    within: bool


def promise(case: tuple[np.ndarray, np.ndarray], judged: int, config: QuantConfig, folder: Path) -> Promise:
    """Quantize with a promise and hold it against the images that nothing has seen."""
    pixels, labels = case
    others, output = folder / "others.npz", folder / "int8.onnx"
    stop = CALIBRATED + judged
    np.savez(others, x=pixels[CALIBRATED:stop], y=labels[CALIBRATED:stop])
    config = QuantConfig.from_dict({**config.to_dict(), "judged_on": str(others) if judged else None})
    report = api.quantize(MODEL, pixels[:CALIBRATED], output, config, preprocess=PREPROCESS).report.to_dict()
    quality: Any = report["quality"]
    found = lost((MODEL, output), pixels[stop:], labels[stop:] if judged else None)
    share, error = float(found.mean()), float(found.std() / np.sqrt(len(found)))
    assert config.max_drop is not None  # main gave one
    kept, within = share <= config.max_drop, share - CERTAIN * error <= config.max_drop
    actions = [change["action"] for change in quality["changes"]]
    cells = (
        *(100 * config.max_drop, (quality["lost"], quality["samples"]), 100 * quality["expected"]),
        *(100 * quality["bound"], actions.count("raise"), actions.count("float")),
        *("yes" if quality["kept"] else "no", (100 * share, 100 * error)),
        "yes" if kept else "within the error" if within else "NO",
    )
    return Promise(cells=cells, kept=kept, within=within)


def main() -> None:
    """The table, a row as soon as it is known."""
    parser = parser_of(__doc__, "max_drop")
    parser.add_argument("--images", type=Path, help="labelled images (.npz) in place of the bundled ones")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.005, 0.01, 0.02], help="shares")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--judged", type=int, nargs="+", default=[0, 400], help="images that judge; 0: held-out ones")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    tables: list[Table] = []
    pixels, labels = images(args.images)
    for judged in args.judged:
        tables.append(Table(columns=COLUMNS))
        promises: list[Promise] = []
        for seed in range(args.seeds):
            order = np.random.default_rng(seed).permutation(len(pixels))
            for budget in args.budgets:
                config = QuantConfig(bits=args.bits, effort="fast", max_drop=budget, threads=args.threads)
                with tempfile.TemporaryDirectory() as folder:
                    promises.append(promise((pixels[order], labels[order]), judged, config, Path(folder)))
                tables[-1].add(judged or "held-out", seed, *promises[-1].cells)
        source = f"{judged} other images with labels" if judged else "held-out calibration images"
        exact, within = (sum(getattr(one, name) for one in promises) for name in ("kept", "within"))
        verdict = f"kept {exact} of {len(promises)}, {within} within the error of what was not seen"
        tables[-1].notes.append(f"Evaluated on {source}: {verdict}.")
    finish(Results(name="max_drop", tables=tables, made=provenance()), args.write)


if __name__ == "__main__":
    main()
