"""``onnxvitq export``: torch to ONNX."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from onnxvitq.cli.arguments import Parser, read
from onnxvitq.cli.shared_options import JsonOption
from onnxvitq.core.options import option, required


@dataclass(frozen=True, kw_only=True)
class ExportCommandOptions(JsonOption):
    """Which torch model to export, and how."""

    title = ""

    spec: str = required(
        help="The model: module:factory, file.py:factory, the name of a bundled model, a Hugging Face folder or "
        "config.json, or timm:NAME.",
        positional=True,
    )
    output: Path = required(help="ONNX file to write.", flags=("-o", "--output"))
    exporter: Literal["dynamo", "torchscript"] = option("dynamo", help="Which of torch's exporters writes the graph.")
    static_batch: int | None = option(None, help="Freeze the graph to this batch size.", none="the batch is dynamic")
    opset: int | None = option(None, help="Version of ONNX's operator set.", none="the exporter's own")
    image_size: int | None = option(None, help="Pixels of an image's side.", none="what the model says")
    seed: int = option(0, help="Seed of random weights and example images.", least=0, most=2**32 - 1)


def parser() -> Parser:
    """The command's parser."""
    description = "Export a torch model to ONNX and check its outputs against torch."
    return Parser("onnxvitq export", description, ExportCommandOptions)


def run(arguments: Sequence[str]) -> int:
    """Export and say how close the outputs are; 0."""
    args = read(parser().parse_args(arguments), ExportCommandOptions)
    from onnxvitq.api import export
    from onnxvitq.export.exporter import ExportOptions

    options = ExportOptions(
        exporter=args.exporter,
        dynamic_batch=args.static_batch is None,
        batch=1 if args.static_batch is None else args.static_batch,
        opset=args.opset,
        image_size=args.image_size,
        seed=args.seed,
    )
    result = export(args.spec, args.output, options)
    if args.json:
        sys.stdout.write(json.dumps({**asdict(result), "path": str(result.path)}, indent=2, default=str) + "\n")
    else:
        shapes = ", ".join(
            f"{spec.name} {['batch' if size is None else size for size in spec.shape]}" for spec in result.inputs
        )
        sys.stdout.write(
            f"{result.path}: {result.exporter}, opset {result.opset}, {shapes}, weights {result.weights}; "
            f"outputs within {result.max_difference:.1e} of torch (allowed {result.tolerance:.0e})\n"
        )
    return 0
