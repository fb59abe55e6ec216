"""One small transformer quantized, and what came of it: refused in one line, or every output held against plain min-max."""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
from oracle import OutputQuality, assess, interface, outputs_of, plain_quantization
from recipes import Recipe
from small_transformers import build, samples

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import OnnxVitqError

CALIBRATED, FRESH = 24, 24  # samples of 16 tokens each


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one recipe.

    Attributes:
        recipe: of the model.
        refusal: why it was not quantized; "" where it was.
        problems: what is wrong with the refusal or with what was written.
        outputs: how near each output is, in the worse of a plain and an optimised session.
    """

    recipe: Recipe
    refusal: str = ""
    problems: tuple[str, ...] = ()
    outputs: tuple[OutputQuality, ...] = ()


def attack(recipe: Recipe, config: QuantConfig, *, twice: bool = True) -> Outcome:
    """Build, calibrate, quantize, and hold every output of fresh samples against the float model's.

    twice: whether to quantize again and compare the files.
    """
    model, calibration = build(recipe), samples(recipe, 1, CALIBRATED)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = Path(name) / "float.onnx", Path(name) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize(source, calibration, target, config)
        except OnnxVitqError as error:
            return Outcome(recipe=recipe, refusal=str(error), problems=_problems_of_refusal(error, target))
        except Exception as error:  # noqa: BLE001 - any other error is a defect, which this looks for
            return Outcome(recipe=recipe, problems=(f"crashed: {type(error).__name__}: {str(error)[:200]}",))
        first = target.read_bytes()
        if twice:
            quantize(source, calibration, target, config)
        same = target.read_bytes() == first
        outputs = _qualities(recipe, model, target)
        problems = [] if same else ["another file the second time"]
        problems += _problems_of_file(model, target)
        problems += [f"{one.name}: {one.got:.2f}, plainly {one.wanted:.2f}" for one in outputs if one.bad]
        return Outcome(recipe=recipe, problems=tuple(problems), outputs=outputs)


def _problems_of_refusal(error: OnnxVitqError, target: Path) -> tuple[str, ...]:
    problems = ["a refusal of several lines"] if "\n" in str(error) else []
    return tuple(problems + (["a file beside a refusal"] if target.exists() else []))


def _problems_of_file(model: onnx.ModelProto, target: Path) -> list[str]:
    written = onnx.load(target)
    onnx.checker.check_model(written, full_check=True)
    wanted, found = interface(model), interface(written)
    return [] if found == wanted else [f"another interface: {found} for {wanted}"]


def _qualities(recipe: Recipe, model: onnx.ModelProto, target: Path) -> tuple[OutputQuality, ...]:
    calibration, fresh = samples(recipe, 1, CALIBRATED), samples(recipe, 2, FRESH)
    plain = plain_quantization(build(recipe, fused=False), calibration)
    exact, reference = (outputs_of(one, fresh, optimised=False) for one in (model, plain))
    names = [output.name for output in model.graph.output]
    levels = (
        assess(names, exact, outputs_of(str(target), fresh, optimised=level), reference) for level in (False, True)
    )
    return tuple(min(pair, key=lambda one: (not one.bad, one.got)) for pair in zip(*levels, strict=True))
