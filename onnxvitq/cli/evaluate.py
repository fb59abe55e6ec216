"""``onnxvitq evaluate``: two models on labelled data."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxvitq.cli.arguments import Parser, read
from onnxvitq.cli.console import warn_skipped
from onnxvitq.cli.shared_options import JsonOption, PreprocessingOptions, preprocess_options
from onnxvitq.core.option_text import COUNT, MOST_THREADS
from onnxvitq.core.options import option, required


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(JsonOption, PreprocessingOptions):
    """Which models to compare, and on what."""

    title = ""

    float_model: Path = required(help="Float ONNX model, the reference.", positional=True, metavar="float")
    quantized_model: Path = required(help="Quantized ONNX model.", positional=True, metavar="int8")
    data: Path = required(
        help="Labelled data: a folder with a sub-folder for each class, or an .npz file with x and y.", metavar="DATA"
    )
    batch_size: int = option(32, help="Samples that are run at a time.", **COUNT)
    threads: int = option(0, help="Threads of onnxruntime; 0 takes one a core.", least=0, most=MOST_THREADS)


def parser() -> Parser:
    """The command's parser."""
    description = "Compare two models on labelled data: top-1 accuracy, agreement and SQNR."
    return Parser("onnxvitq evaluate", description, EvaluateOptions)


def run(arguments: Sequence[str]) -> int:
    """Compare two models; 0."""
    args = read(parser().parse_args(arguments), EvaluateOptions)
    from onnxvitq.api import evaluate

    models, options = (args.float_model, args.quantized_model), preprocess_options(args)
    report = evaluate(models, args.data, preprocess=options, batch=args.batch_size, threads=args.threads)
    warn_skipped(report.skipped)
    if args.json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    else:
        agreement = "" if report.agreement is None else f"agreement {100 * report.agreement:.2f} %; "
        name = {"top1": "top-1"}.get(report.metric, report.metric)
        sys.stdout.write(
            f"{report.samples} samples: {name} {report.reference:.2f} % float, {report.quantized:.2f} % quantized; "
            f"{agreement}SQNR {report.sqnr_db:.2f} dB\n"
        )
    return 0
