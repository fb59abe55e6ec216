"""Objective against accuracy on the bundled model, and on its twin with injected outliers.

    python tools/objective_table.py [--validation] [--write]

The twin computes the same function: channels of the layer norms and of the values are scaled by factors up to 30, and the
layers that read them by the inverse, which is what pretrained transformers look like inside. Figures are on the 1,000 bundled
test images; with --validation on the 1,936 training images that neither trained nor calibrated (needs Debian's
dataset-fashion-mnist), which is what the default objective was chosen on. Needs torch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

BUNDLED = Path(__file__).parent.parent / "models" / "fashion_vit"
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(BUNDLED))
import data
from model import FashionViT, build, example_inputs

OBJECTIVES = ("minmax", "mse", "pearson", "ranking")
SETTINGS = {
    "everything": ["--acceptance", "always"],
    "what does held-out images no harm": ["--acceptance", "held-out"],
}
LARGEST, SHARE = 30.0, 0.05  # factor of the largest outlier; share of the channels that are outliers


def with_outliers(model: FashionViT, rng: np.random.Generator) -> FashionViT:
    """The same function with outlier channels in every layer norm and in every value projection (in place)."""
    for block in model.blocks:
        qkv, width = block.attn.qkv, block.attn.proj.in_features
        for norm, reader in ((block.norm1, qkv), (block.norm2, block.fc1)):
            factors = _factors(width, rng)
            norm.weight.data *= factors
            norm.bias.data *= factors
            reader.weight.data /= factors  # (O, I): the channel that grew is read smaller
        factors = _factors(width, rng)
        qkv.weight.data[2 * width :] *= factors[:, None]
        qkv.bias.data[2 * width :] *= factors
        block.attn.proj.weight.data /= factors
    return model


def _factors(width: int, rng: np.random.Generator) -> torch.Tensor:
    """(C,) ones, but for a few channels between 5 and LARGEST."""
    factors = np.ones(width, np.float32)
    chosen = rng.permutation(width)[: max(1, round(SHARE * width))]
    factors[chosen] = rng.uniform(5, LARGEST, len(chosen))
    factors[chosen[0]] = LARGEST
    return torch.from_numpy(factors)


def onnxvitq(*arguments: object) -> dict[str, float]:
    """Run the command line with --json; what it printed."""
    command = [sys.executable, "-m", "onnxvitq", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def export(model: FashionViT, path: Path) -> None:
    """By torch's exporter, dynamic batch."""
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model,
        example_inputs(),
        path,
        dynamo=True,
        dynamic_shapes=batch,
        input_names=["input"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


def labelled(folder: Path, validation: bool) -> Path:
    """The images to measure on."""
    if not validation:
        return BUNDLED / "test.npz"
    images, labels = data.read("train")
    _, _, held_out = data.split_indices(len(images))
    path = folder / "validation.npz"
    np.savez(path, x=images[held_out], y=labels[held_out])
    return path


def main() -> None:
    """Quantize both models with each objective and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = labelled(folder, args.validation)
        for title, model in (("bundled", build()), ("with outliers", with_outliers(build(), np.random.default_rng(0)))):
            path = folder / f"{title.replace(' ', '_')}.onnx"
            export(model, path)
            for objective in OBJECTIVES:
                for setting, flags in SETTINGS.items():
                    output = folder / "int8.onnx"
                    prepared = ["--preprocessor-config", BUNDLED / "preprocessor_config.json"]
                    options = ["--objective", objective, *flags, *prepared]
                    onnxvitq(path, "--calib", BUNDLED / "calib", "-o", output, *options)
                    figures = onnxvitq("evaluate", path, output, "--data", images, *prepared)
                    rows.append((title, objective, setting, figures))
    count, kind = int(rows[0][3]["samples"]), "validation" if args.validation else "test"
    lines = [
        f"{count} {kind} images, 64 calibration images, W8A8, onnxruntime's int8 kernels",
        "",
        "| model | objective | what is kept | SQNR dB | agreement % | top-1 % | float top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, objective, setting, r in rows:
        accuracy = f"{r['top1_quantized']:.2f} | {r['top1_reference']:.2f}"
        figures = f"{r['sqnr_db']:.2f} | {100 * r['agreement']:.2f} | {accuracy}"
        lines.append(f"| {title} | {objective} | {setting} | {figures} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        (RESULTS / f"objectives{'_validation' if args.validation else ''}.md").write_text(text)


if __name__ == "__main__":
    main()
