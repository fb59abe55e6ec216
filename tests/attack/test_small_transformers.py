"""Any small transformer is refused in one line, or every output of what is written is as near as by plain min-max."""

import tempfile
import warnings
from pathlib import Path

import onnx
from hypothesis import given
from oracle import assess, interface, outputs_of, plain_quantization
from recipes import Recipe, recipes
from small_transformers import build, samples

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import OnnxVitqError

CALIBRATED, FRESH = 24, 24  # samples of 16 tokens each
CONFIG = QuantConfig(threads=1)


def refusal_or_problems(recipe: Recipe, config: QuantConfig = CONFIG) -> tuple[str, list[str]]:
    """Why the model was not quantized, or what is wrong with what was written."""
    model, calibration, fresh = build(recipe), samples(recipe, 1, CALIBRATED), samples(recipe, 2, FRESH)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given_file, written_file = Path(name) / "float.onnx", Path(name) / "int8.onnx"
        onnx.save(model, given_file)
        try:
            quantize(given_file, calibration, written_file, config)
        except OnnxVitqError as error:
            problems = ["a refusal of several lines"] if "\n" in str(error) else []
            return str(error), problems + (["a file beside a refusal"] if written_file.exists() else [])
        first = written_file.read_bytes()
        quantize(given_file, calibration, written_file, config)
        problems = [] if written_file.read_bytes() == first else ["another file the second time"]
        written = onnx.load(written_file)
        onnx.checker.check_model(written, full_check=True)
        if interface(written) != interface(model):
            problems.append(f"another interface: {interface(written)} for {interface(model)}")
        plain = plain_quantization(build(recipe, fused=False), calibration)
        exact, reference = (outputs_of(one, fresh, optimised=False) for one in (model, plain))
        names = [output.name for output in model.graph.output]
        for level in (True, False):
            found = assess(names, exact, outputs_of(str(written_file), fresh, optimised=level), reference)
            problems += [f"{one.name}: {one.got:.2f}, plainly {one.wanted:.2f}" for one in found if one.bad]
    return "", problems


@given(recipe=recipes())
def test_any_small_transformer(recipe: Recipe) -> None:
    _, problems = refusal_or_problems(recipe)
    assert not problems, (recipe, problems)
