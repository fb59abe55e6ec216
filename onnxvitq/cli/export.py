"""``onnxvitq export``: torch to ONNX."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from onnxvitq.cli.arguments import Parser, add_output, integer


def run(arguments: Sequence[str]) -> int:
    """Export and say how close the outputs are; 0."""
    parser = Parser(
        prog="onnxvitq export", description="Export a torch model to ONNX, its outputs checked.", allow_abbrev=False
    )
    parser.add_argument(
        "spec", help="module:factory, file.py:factory, bundled name, Hugging Face folder or config.json, timm:NAME"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--static-batch", type=int, metavar="N", help="freeze the batch (default: dynamic)")
    parser.add_argument("--opset", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=integer(0, 2**32 - 1), default=0)
    add_output(parser)
    args = parser.parse_args(arguments)
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
