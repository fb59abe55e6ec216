"""The main command: quantize one model."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxvitq.cli.arguments import SUBCOMMANDS, Parser, given, read
from onnxvitq.cli.console import ProgressBar
from onnxvitq.cli.shared_options import JsonOption, PreprocessingOptions, preprocess_options
from onnxvitq.core.config import QuantConfig, load_config
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import FEWEST_BITS, MOST_BITS, parse_bits
from onnxvitq.core.options import Options, option
from onnxvitq.core.quantize_options import FormatOptions


def table_file(text: str) -> Path:
    """An option's type: a file whose suffix says how a table is written."""
    if Path(text).suffix not in (".csv", ".json"):
        raise ValueError(f"expected a .csv or a .json file, got {text!r}")
    return Path(text)


@dataclass(frozen=True, kw_only=True)
class FileOptions(Options):
    """What is read, and where the model goes."""

    model: Path | None = option(None, help="Float ONNX model.", positional=True)
    input: Path | None = option(None, help="The same as the argument model.", flags=("-i", "--input"))
    calib: Path | None = option(
        None,
        help="Calibration data, like what the model will be used on: a folder of images, an .npz or an .npy file.",
        flags=("--calib", "--calibration-data-path"),
        metavar="DATA",
    )
    output: Path | None = option(None, help="ONNX file to write.", flags=("-o", "--output"), none="MODEL_int8.onnx")
    config: Path | None = option(
        None, help="Options from a .json or .toml file, by their configuration keys; the command line wins."
    )


@dataclass(frozen=True, kw_only=True)
class BitOptions(Options):
    """One of the two numbers of --bits alone."""

    title = FormatOptions.title

    weight_bits: int | None = option(
        None,
        help="Bits of the weights alone, the N of --bits. With 7, no product saturates on AVX2 processors either.",
        least=FEWEST_BITS,
        most=MOST_BITS,
        shortcuts={"--reduce-range": 7},
    )
    activation_bits: int | None = option(
        None,
        help="Bits of the activations alone, the M of --bits.",
        metavar="M",
        least=FEWEST_BITS,
        most=MOST_BITS,
    )


@dataclass(frozen=True, kw_only=True)
class ResultOptions(JsonOption):
    """What is said about the result."""

    title = JsonOption.title

    report: Path | None = option(None, help="Write the report to this file as JSON.")
    ablation: bool = option(
        False, help="Print what every step did to SQNR and agreement on held-out samples, and how long it took."
    )
    sensitivity_file: Path | None = option(
        None,
        help="Measure the output's error with one kind of site of one block quantized at a time, and write it to this .csv "
        "or .json file.",
        flags=("--sensitivity",),
        text=table_file,
    )
    save_config_file: Path | None = option(None, help="Write all options that were used to this file as JSON.")
    strict: bool = option(
        False,
        help="Exit with 3 when a layer that was to be quantized is not on an integer kernel, or an output is lost (its SQNR "
        "is under 3 dB).",
    )
    quiet: bool = option(False, help="Show no progress bar and print no table.")
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "warning", help="Least severe messages that are logged on standard error."
    )


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(ResultOptions, PreprocessingOptions, BitOptions, FileOptions):
    """All options of the command that are not the configuration's."""


def parser() -> Parser:
    """The command's parser."""
    return Parser(
        "onnxvitq",
        "Quantize a Vision Transformer for onnxruntime's int8 CPU kernels.",
        *(FileOptions, QuantConfig, BitOptions, PreprocessingOptions, ResultOptions),
        usage="onnxvitq MODEL --calib DATA [-o FILE] [options]",
        epilog=f"Other commands: {', '.join(SUBCOMMANDS)} (each with --help).",
    )


def run(arguments: Sequence[str]) -> int:
    """Quantize one model; the exit code."""
    namespace = parser().parse_args(arguments)
    args = read(namespace, QuantizeOptions)
    model = _one_model(args)
    if args.calib is None:
        raise ConfigError("--calib", "expected calibration data: a folder of images, an .npz or an .npy file")
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    config = _config(args, given(namespace, QuantConfig))
    output = args.output or model.with_name(f"{model.stem}_int8.onnx")
    _refuse_clashes(args, config.judged_on, output)
    from onnxvitq import api  # loads onnxruntime; --help and wrong options need not wait for it
    from onnxvitq.cli import results
    from onnxvitq.core.files import refuse_output

    for path in (args.report, args.save_config_file, args.sensitivity_file):
        if path is not None:
            refuse_output(path, model)
    with ProgressBar(hidden=args.quiet or args.json) as progress:
        result = api.quantize(model, args.calib, output, config, preprocess=preprocess_options(args), progress=progress)
    results.write_results(result.report, args.report, args.sensitivity_file)
    results.write_text(args.save_config_file, json.dumps(config.to_dict(), indent=2) + "\n")
    results.print_results(result.report, as_json=args.json, quiet=args.quiet, ablation=args.ablation)
    return results.exit_code(result.report, strict=args.strict)


def _one_model(args: QuantizeOptions) -> Path:
    models = [path for path in (args.model, args.input) if path is not None]
    if len(models) != 1:
        usage = "python -m onnxvitq model.onnx --calib images/ -o model_int8.onnx"
        raise ConfigError("onnxvitq", f"expected one model, got {' and '.join(map(str, models)) or 'none'}", usage)
    return models[0]


def _refuse_clashes(args: QuantizeOptions, judged_on: str | None, output: Path) -> None:
    """No file is written over another one of the same command (the model is looked after by the pipeline)."""
    inputs: dict[str, Path | str | None] = {"--calib": args.calib, "--config": args.config}
    inputs["--preprocessor-config"] = args.preprocessor_config
    if judged_on != str(args.calib):  # which the pipeline refuses with a better reason
        inputs["--eval"] = judged_on
    outputs = {"-o": output, "--report": args.report, "--save-config-file": args.save_config_file}
    outputs["--sensitivity"] = args.sensitivity_file
    taken = {os.path.realpath(path): flag for flag, path in inputs.items() if path is not None}
    for flag, path in outputs.items():
        if path is None:
            continue
        other = taken.setdefault(os.path.realpath(path), flag)
        if other != flag and (other, flag) != ("--config", "--save-config-file"):
            raise ConfigError(flag, f"expected a file of its own, got {path}, which {other} names too")


def _config(command: QuantizeOptions, flags: dict[str, Any]) -> QuantConfig:
    """The configuration file's options, and over them those of the command line."""
    values = (load_config(command.config) if command.config is not None else {}) | flags
    if command.weight_bits is not None or command.activation_bits is not None:
        weights, activations = parse_bits("bits", str(values.get("bits", QuantConfig().bits)))
        values["bits"] = f"w{command.weight_bits or weights}a{command.activation_bits or activations}"
    if command.sensitivity_file is not None:
        values["sensitivity"] = True
    return QuantConfig.from_dict(values)
