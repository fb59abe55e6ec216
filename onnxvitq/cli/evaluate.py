"""``onnxvitq evaluate``: two models on labelled data."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from onnxvitq.cli.arguments import Parser, add_output, add_preprocessing, integer, preprocess_options
from onnxvitq.cli.console import warn_skipped


def run(arguments: Sequence[str]) -> int:
    """Compare two models; 0."""
    parser = Parser(
        prog="onnxvitq evaluate", description="Top-1, agreement and SQNR on labelled data.", allow_abbrev=False
    )
    parser.add_argument("float", type=Path, help="float ONNX model, the reference")
    parser.add_argument("int8", type=Path, help="quantized ONNX model")
    parser.add_argument("--data", type=Path, required=True, help="a folder a class, or .npz with x and y")
    parser.add_argument("--batch-size", type=integer(1), default=32)
    parser.add_argument("--threads", type=integer(0, 1024), default=0)
    add_preprocessing(parser)
    add_output(parser)
    args = parser.parse_args(arguments)
    from onnxvitq.api import evaluate_models

    models, options = (args.float, args.int8), preprocess_options(args)
    result, skipped = evaluate_models(models, args.data, options, batch=args.batch_size, threads=args.threads)
    warn_skipped(skipped)
    if args.json:
        sys.stdout.write(json.dumps({**asdict(result), "skipped": skipped}, indent=2) + "\n")
    else:
        sys.stdout.write(
            f"{result.samples} samples: top-1 {result.top1_reference:.2f} % float, "
            f"{result.top1_quantized:.2f} % quantized; agreement {100 * result.agreement:.2f} %; "
            f"SQNR {result.sqnr_db:.2f} dB\n"
        )
    return 0
