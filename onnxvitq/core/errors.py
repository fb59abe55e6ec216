"""Every error that onnxvitq raises on purpose.

    OnnxVitqError
    ├── ConfigError               options and configuration files
    ├── ModelError                the input model
    │   ├── InvalidGraphError     not ONNX, truncated, or the checker refuses it
    │   ├── UnsupportedOpsetError
    │   └── UnsupportedModelError already quantized, already fused, not a float model
    ├── MatchError
    │   └── NoBlocksFoundError    no attention in the graph
    ├── DataError                 images, arrays, preprocessing
    ├── CalibrationError          statistics that cannot be used (NaN, empty)
    ├── PlanError                 a plan that does not fit its graph
    ├── RewriteError              the written graph would be wrong
    ├── OutputError               a file that cannot be written
    └── ExportError               a torch module that cannot be exported

A message says where, what was expected, what was found, and what to do about it, in one line.
"""


class OnnxVitqError(Exception):
    """Base of all: ``str()`` is one line, ready to show to a user.

    Args:
        where: the file, tensor, node or option concerned.
        problem: what is wrong ("expected ..., got ...").
        hint: what the user can do, if anything.
    """

    def __init__(self, where: str, problem: str, hint: str = "") -> None:
        self.where, self.problem, self.hint = where, problem, hint
        text = f"{where}: {problem}" + (f" ({hint})" if hint else "")
        super().__init__(" ".join(text.split()))


class ConfigError(OnnxVitqError):
    """An option or a configuration file is wrong."""


class ModelError(OnnxVitqError):
    """The input model cannot be used."""


class InvalidGraphError(ModelError):
    """The file is not a valid ONNX model."""


class UnsupportedOpsetError(ModelError):
    """The model's operator set is outside what onnxvitq and onnxruntime run."""


class UnsupportedModelError(ModelError):
    """A valid model that is not a plain float graph."""


class MatchError(OnnxVitqError):
    """The graph was read, but what was looked for is not in it."""


class NoBlocksFoundError(MatchError):
    """No attention block was found."""


class DataError(OnnxVitqError):
    """Images or arrays that cannot be fed to the model."""


class CalibrationError(OnnxVitqError):
    """Statistics that no scale can be fitted to."""


class PlanError(OnnxVitqError):
    """A plan that does not fit the graph it is applied to."""


class RewriteError(OnnxVitqError):
    """The quantized graph failed a check before it was written."""


class OutputError(OnnxVitqError):
    """A result cannot be written where it was asked for."""


class ExportError(OnnxVitqError):
    """A torch module that could not be turned into an equal ONNX model."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that is not empty, at most 300 characters; its type's name where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
