"""The command line: parse, build the configuration, call the pipeline, print. No logic lives here.

Exit codes:
    0: done. A quantized model was written, passed the checker of ONNX, and its outputs are finite numbers; how close they are
        to the float model's, and which layers are on integer kernels, is in the report.
    2: wrong use or bad input, in one line on standard error; nothing was written.
    3: written, but less good than was asked: a layer is not on an integer kernel (``--strict``), or too many decisions are
        lost (``--max-drop``).
    130: interrupted; nothing that is incomplete was written.
"""

import io
import sys
from collections.abc import Callable, Sequence

from onnxvitq.cli import bench, evaluate, export, inspect, quantize
from onnxvitq.cli.arguments import SUBCOMMANDS
from onnxvitq.cli.interrupts import interruptible
from onnxvitq.core.errors import OnnxVitqError

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
RUN = (inspect.run, export.run, evaluate.run, bench.run)
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = dict(zip(SUBCOMMANDS, RUN, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = [_dashed(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text
    command: Callable[[Sequence[str]], int] = quantize.run
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments.pop(0)]
    with interruptible() as interrupts:
        try:
            return command(arguments)
        except OnnxVitqError as error:
            sys.stderr.write(f"onnxvitq: error: {error}\n")
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            return _interrupted()
        except ImportError:  # a library written in C makes one of an interrupt that falls into its import
            if not interrupts:
                raise
            return _interrupted()


def _dashed(argument: str) -> str:
    """``--num_samples=3`` is ``--num-samples=3``: both spellings of a long option are accepted."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _interrupted() -> int:
    sys.stderr.write("onnxvitq: interrupted\n")
    return EXIT_INTERRUPTED
