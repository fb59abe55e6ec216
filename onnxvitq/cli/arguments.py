"""What every command's parser is made of: one-line errors, types of options, options that several share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from onnxvitq.core.errors import ConfigError

if TYPE_CHECKING:
    from onnxvitq.api import PreprocessOptions


SUBCOMMANDS = ("inspect", "export", "evaluate", "bench")


class Parser(argparse.ArgumentParser):
    """Wrong use is one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """As argparse calls it."""
        raise ConfigError(self.prog, message, "see --help")


def add_output(group: "argparse._ActionsContainer") -> None:
    """How the result is printed."""
    group.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """The options that ``preprocess_options`` reads."""
    group = parser.add_argument_group("preprocessing (default: from the model's metadata or preprocessor_config.json)")
    group.add_argument(
        "--preprocessor-config", type=Path, help="Hugging Face preprocessor_config.json or timm config.json"
    )
    # Their values go as text to the parser that reads them in files, too.
    group.add_argument("--mean", nargs="+", help="one value, or one a channel")
    group.add_argument("--std", nargs="+", help="the same")
    group.add_argument("--resize", nargs="+", help="shortest side, or height and width (also 224x224)")
    group.add_argument("--crop", nargs="+", help="side, or height and width, of the centre crop")
    group.add_argument("--interpolation", help="nearest, bilinear, bicubic or lanczos")
    group.add_argument("--scale", help="multiplies the 0..255 values (default 1/255)")
    group.add_argument("--color", help="L or RGB")


def preprocess_options(args: argparse.Namespace) -> "PreprocessOptions":
    """What the flags of ``add_preprocessing`` say."""
    from onnxvitq.api import PreprocessOptions

    flags: dict[str, object] = {"interpolation": args.interpolation, "scale": args.scale, "color": args.color}
    for name in ("mean", "std", "resize", "crop"):
        values = getattr(args, name)
        flags[name] = values[0] if values is not None and len(values) == 1 else values
    return PreprocessOptions(flags=flags, config_file=args.preprocessor_config)


def override(text: str) -> tuple[str, str]:
    """``block*.mlp.fc2=w4a8``: a pattern may hold a "=" of its own."""
    pattern, equals, bits = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected PATTERN=wNaM or PATTERN=float, got {text!r}")
    return pattern, bits


def thread_counts(text: str) -> list[int]:
    """An option's type: whole numbers between commas."""
    parse = integer(0, 1024)
    return [parse(part) for part in text.split(",")]


def integer(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """An option's type: a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from error
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {value}")
        return value

    return parse


def share(text: str) -> float:
    """An option's type: 0.5% or 0.005."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.5%, got {text!r}") from error


def megabytes(text: str) -> float:
    """An option's type: a size, 12MB, 500kB or bytes, in MB."""
    units = {"gb": 1e3, "mb": 1.0, "kb": 1e-3, "b": 1e-6}
    number = text.lower().rstrip("bgkm")
    unit = text.lower()[len(number) :]
    try:
        return float(number) * units[unit or "b"]
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"expected a size such as 12MB, got {text!r}") from error


def table_file(text: str) -> Path:
    """An option's type: a file whose suffix says how a table is written."""
    if Path(text).suffix not in (".csv", ".json"):
        raise argparse.ArgumentTypeError(f"expected a .csv or a .json file, got {text!r}")
    return Path(text)
