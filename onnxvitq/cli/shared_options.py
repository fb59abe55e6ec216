"""Options that several commands share, and what the pipeline takes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxvitq.core.options import Options, option

if TYPE_CHECKING:
    from onnxvitq.data.opening import PreprocessOptions


@dataclass(frozen=True, kw_only=True)
class JsonOption(Options):
    """How the result is printed."""

    title = "results"

    json: bool = option(False, help="Print the result as JSON on standard output, and nothing else there.")


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions(Options):
    """How an image becomes the model's input. Values stay text: the parser of configuration files reads them, too."""

    title = "preprocessing (default: from the model's metadata or a preprocessor_config.json beside it)"

    preprocessor_config: Path | None = option(
        None, help="Preprocessing from a Hugging Face preprocessor_config.json or a timm config.json."
    )
    mean: tuple[str, ...] | None = option(
        None, help="Mean that is subtracted: one value, or one for each channel.", metavar="VALUE"
    )
    std: tuple[str, ...] | None = option(
        None, help="Standard deviation that is divided by: one value, or one for each channel.", metavar="VALUE"
    )
    resize: tuple[str, ...] | None = option(
        None, help="Resize to this shortest side, or to this height and width (224x224 will do, too).", metavar="SIDE"
    )
    crop: tuple[str, ...] | None = option(
        None, help="Side, or height and width, of the crop at the centre.", metavar="SIDE"
    )
    interpolation: str | None = option(
        None, help="How resizing interpolates: nearest, bilinear, bicubic or lanczos.", metavar="NAME"
    )
    scale: str | None = option(
        None, help="Factor that the values 0 to 255 are multiplied by.", metavar="NUMBER", none="1/255"
    )
    color: str | None = option(None, help="Channels of an image: L or RGB.", metavar="MODE")


def preprocess_options(given: PreprocessingOptions) -> "PreprocessOptions":
    """What the preprocessing flags say, for the pipeline."""
    from onnxvitq.data.opening import PreprocessOptions

    flags: dict[str, object] = {"interpolation": given.interpolation, "scale": given.scale, "color": given.color}
    for name in ("mean", "std", "resize", "crop"):
        values = getattr(given, name)
        flags[name] = values if values is None else values[0] if len(values) == 1 else list(values)
    return PreprocessOptions(flags=flags, config_file=given.preprocessor_config)
