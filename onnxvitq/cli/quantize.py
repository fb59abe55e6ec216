"""The main command: quantize one model."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from onnxvitq.cli.arguments import (
    SUBCOMMANDS,
    Parser,
    add_output,
    add_preprocessing,
    integer,
    megabytes,
    override,
    preprocess_options,
    share,
    table_file,
)
from onnxvitq.cli.console import ProgressBar, console_of_results, warn_skipped
from onnxvitq.core.config import (
    Criterion,
    Effort,
    Granularity,
    InputForm,
    Method,
    ObjectiveName,
    Preset,
    Products,
    QuantConfig,
    RankSearchName,
    StepName,
    Target,
    load_config,
)
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import parse_bits

# Spellings that users of other tools type by habit.
CALIBRATION = ("--calib", "--calibration-data-path")
EXTERNAL = ("--external-data", "--use-external-data-format")
SAMPLES = ("--num-samples", "--samples", "--subset-size")
OBJECTIVE = ("--objective", "--calibration-method")
HABITS = {"--no-bias-correction": "bias", "--no-rebuild": "weights"}
EXIT_BELOW_QUALITY = 3


def run(arguments: Sequence[str]) -> int:
    """Quantize one model; the exit code."""
    args = _quantize_parser().parse_args(arguments)
    model = _one_model(args)
    if args.calib is None:
        raise ConfigError("--calib", "expected calibration data: a folder of images, an .npz or an .npy file")
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    config = _config(args)
    output = args.output or model.with_name(f"{model.stem}_int8.onnx")
    _refuse_clashes(args, output)
    from onnxvitq import api  # loads onnxruntime; --help and wrong options need not wait for it
    from onnxvitq.core.files import refuse_output
    from onnxvitq.report.build import describe_quality, to_json

    for path in (args.report, args.save_config_file, args.sensitivity_file):
        if path is not None:
            refuse_output(path, model)
    with ProgressBar(hidden=args.quiet or args.json) as progress:
        result = api.quantize(model, args.calib, output, config, preprocess=preprocess_options(args), progress=progress)
    report = result.report
    _write(args.report, to_json(report))
    _write_sensitivity(args.sensitivity_file, report)
    _write(args.save_config_file, json.dumps(config.to_dict(), indent=2) + "\n")
    _print_report(report, args)
    if args.strict and not report["audit_passed"]:
        sys.stderr.write("onnxvitq: written, but the audit failed: a planned layer is not on an integer kernel\n")
        return EXIT_BELOW_QUALITY
    quality = report.get("quality")
    if quality is not None and not quality["kept"]:
        sys.stderr.write(f"onnxvitq: written, but too many decisions are lost: {describe_quality(quality)}\n")
        return EXIT_BELOW_QUALITY
    return 0


def _one_model(args: argparse.Namespace) -> Path:
    given = [path for path in (args.model, args.input) if path is not None]
    if len(given) != 1:
        usage = "python -m onnxvitq model.onnx --calib images/ -o model_int8.onnx"
        raise ConfigError("onnxvitq", f"expected one model, got {' and '.join(map(str, given)) or 'none'}", usage)
    return Path(given[0])


def _refuse_clashes(args: argparse.Namespace, output: Path) -> None:
    """No file is written over another one of the same command (the model is looked after by the pipeline)."""
    read = {"--calib": args.calib, "--preprocessor-config": args.preprocessor_config, "--config": args.config}
    if args.judged_on != str(args.calib):  # which the pipeline refuses with a better reason
        read["--eval"] = args.judged_on
    written = {"-o": output, "--report": args.report, "--save-config-file": args.save_config_file}
    written["--sensitivity"] = args.sensitivity_file
    taken = {os.path.realpath(path): option for option, path in read.items() if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        other = taken.setdefault(os.path.realpath(path), option)
        if other != option and (other, option) != ("--config", "--save-config-file"):
            raise ConfigError(option, f"expected a file of its own, got {path}, which {other} names too")


def _write(path: Path | None, text: str) -> None:
    from onnxvitq.core.files import atomic_file

    if path is not None:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _write_sensitivity(path: Path | None, report: Mapping[str, Any]) -> None:
    from onnxvitq.report.build import to_json
    from onnxvitq.report.sensitivity import sensitivity_csv

    if path is not None:
        described = report["sensitivity"]
        _write(path, sensitivity_csv(described) if path.suffix == ".csv" else to_json(described))


def _print_report(report: Mapping[str, Any], args: argparse.Namespace) -> None:
    from onnxvitq.report.build import ablation_table, summary, to_json
    from onnxvitq.report.sensitivity import sensitivity_table

    calibration = report["calibration"]
    warn_skipped(calibration["skipped"])
    if "quality" in report:
        warn_skipped(report["quality"]["judge"]["skipped"])
    if args.json:
        sys.stdout.write(to_json(report))
    elif not args.quiet:
        if calibration["preprocessing"] is not None:
            origin = calibration["preprocessing_from"]
            console_of_results().print(f"preprocessing: {calibration['described']} ({origin})", soft_wrap=True)
        console_of_results().print(summary(report))
        if args.ablation:
            console_of_results().print(ablation_table(report))
        if "sensitivity" in report:
            console_of_results().print(sensitivity_table(report["sensitivity"]))


def _quantize_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="onnxvitq",
        description="Quantize a Vision Transformer for onnxruntime's int8 CPU kernels.",
        epilog=f"Other commands: {', '.join(SUBCOMMANDS)} (each with --help).",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", type=Path, help="float ONNX model")
    parser.add_argument("-i", "--input", type=Path, help="the same, as an option")
    parser.add_argument(*CALIBRATION, dest="calib", type=Path, help="folder of images, .npz or .npy")
    parser.add_argument("-o", "--output", type=Path, help="model to write (default: MODEL_int8.onnx)")
    fitting = parser.add_argument_group("fitting (defaults: QuantConfig)")
    fitting.add_argument("--method", choices=get_args(Method), help="how far the fit goes; aiqvit needs torch")
    fitting.add_argument("--iterations", type=int, help="of learning a block (aiqvit)")
    fitting.add_argument(
        "--branch-budget", type=float, help="bytes of low-rank branches over those of the weights (aiqvit)"
    )
    fitting.add_argument("--ranks", choices=get_args(RankSearchName), help="how the budget is shared out (aiqvit)")
    fitting.add_argument(
        "--curriculum", action="store_const", const=True, help="learn blocks from easy samples first (aiqvit)"
    )
    fitting.add_argument(*OBJECTIVE, dest="objective", choices=get_args(ObjectiveName), help="how scales are chosen")
    fitting.add_argument("--candidates", type=int, help="scales tried for each tensor and round")
    fitting.add_argument("--rounds", type=int, help="rounds of the alternating search at most")
    fitting.add_argument("--effort", choices=get_args(Effort), help="how much time the fit may take")
    for flag, text in (("--skip", "steps to leave out"), ("--also", "steps to run that are left out otherwise")):
        fitting.add_argument(flag, nargs="+", action="extend", choices=get_args(StepName), help=text)
    for flag, step in HABITS.items():
        text = f"the same as --skip {step}"
        fitting.add_argument(flag, action="append_const", const=step, dest="skip", help=text)
    fitting.add_argument(
        "--acceptance", choices=("held-out", "always"), help="keep of a step what does no harm, or everything"
    )
    fitting.add_argument("--preset", choices=get_args(Preset), help="what the next two say where they are not given")
    fitting.add_argument("--activations", choices=get_args(InputForm), help="ranges of the linears' inputs")
    fitting.add_argument("--attention", choices=get_args(Products), help="the two products of each attention")
    fitting.add_argument("--bits", metavar="wNaM", help="bits of weights and of activations, 2 to 8 each")
    fitting.add_argument("--weight-bits", type=integer(2, 8), metavar="N", help="the N of --bits; 7 is safe on AVX2")
    fitting.add_argument(
        "--reduce-range", action="store_const", const=7, dest="weight_bits", help="the same as --weight-bits 7"
    )
    fitting.add_argument("--activation-bits", type=integer(2, 8), metavar="M", help="the M of --bits")
    fitting.add_argument(
        "--bits-for",
        dest="bit_overrides",
        type=override,
        action="append",
        metavar="PATTERN=wNaM",
        help="other bits, or float, for globs of node names or roles; the last that matches counts",
    )
    fitting.add_argument(
        "--edges-at-8-bits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="patch embedding and head keep 8 bits",
    )
    fitting.add_argument(
        "--nodes-to-exclude",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="globs of node names or roles to keep float",
    )
    fitting.add_argument(*SAMPLES, dest="num_samples", type=int, help="calibration samples at most")
    fitting.add_argument("--static-batch", type=int, metavar="N", help="freeze the batch of the written model")
    fitting.add_argument(
        *EXTERNAL, dest="external_data", action="store_const", const=True, help="weights in a file beside the model"
    )
    fitting.add_argument("--cache", metavar="FOLDER", help="keep what calibration measures, for runs with other bits")
    fitting.add_argument("--target", choices=get_args(Target), help="processors to write for; auto: all of them")
    fitting.add_argument("--seed", type=int, help="of every random draw")
    fitting.add_argument("--threads", type=int, help="of onnxruntime; 0: one a core")
    fitting.add_argument("--config", type=Path, help="options from a .json or .toml file; the command line wins")
    _add_budgets(fitting)
    add_preprocessing(parser)
    results = parser.add_argument_group("results")
    results.add_argument("--report", type=Path, help="write the report as JSON")
    results.add_argument(
        "--ablation", action="store_true", help="print what every step did to SQNR and agreement on held-out samples"
    )
    results.add_argument(
        "--sensitivity",
        dest="sensitivity_file",
        type=table_file,
        metavar="FILE",
        help="measure and write the output's error by kind of site and block (.csv or .json)",
    )
    results.add_argument("--save-config-file", type=Path, help="write the options used as JSON")
    results.add_argument(
        "--strict", action="store_true", help="exit 3 when a planned layer is not on an integer kernel"
    )
    add_output(results)
    results.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    results.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    return parser


def _add_budgets(fitting: "argparse._ActionsContainer") -> None:
    fitting.add_argument(
        "--average-bits", type=float, metavar="N", help="mixed precision: mean bits of the layers' weights"
    )
    fitting.add_argument("--target-size", type=megabytes, metavar="SIZE", help="mixed precision: of the file, as 12MB")
    fitting.add_argument("--bit-candidates", nargs="+", metavar="BITS", help="widths to choose from: 2 to 8 and float")
    fitting.add_argument("--granularity", choices=get_args(Granularity), help="what gets bits of its own")
    fitting.add_argument("--criterion", choices=get_args(Criterion), help="what bits are chosen by")
    fitting.add_argument("--max-drop", type=share, metavar="SHARE", help="decisions that may be lost, as 0.5%%")
    fitting.add_argument(
        "--eval",
        dest="judged_on",
        metavar="DATA",
        help="what --max-drop is judged on: a folder a class, .npz with x and y, or data without labels",
    )


def _config(args: argparse.Namespace) -> QuantConfig:
    values = load_config(args.config) if args.config is not None else {}
    for name in QuantConfig.__dataclass_fields__:
        given = getattr(args, name, None)
        if given is not None:
            values[name] = dict(given) if name == "bit_overrides" else given
    if args.weight_bits is not None or args.activation_bits is not None:
        weights, activations = parse_bits("bits", str(values.get("bits", QuantConfig().bits)))
        values["bits"] = f"w{args.weight_bits or weights}a{args.activation_bits or activations}"
    if args.sensitivity_file is not None:
        values["sensitivity"] = True
    return QuantConfig.from_dict(values)
