"""The quantizers that tools/bench_accuracy.py compares, each used as its own documentation says.

    python tools/bench_tools.py TOOL MODEL CALIBRATION.npz OUTPUT

quantizes once in a process of its own and prints the seconds it took as JSON; imports are not counted. Only numpy is imported
outside the functions, so that a tool may live in another interpreter than onnxvitq.
"""

import argparse
import functools
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from command import save_feeds

Feeds = dict[str, np.ndarray]
Quantize = Callable[[Path, Feeds, Path], None]
PRODUCTS = ["MatMul", "Gemm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One way to quantize. package: what pip calls it; imports: loaded before the clock starts."""

    title: str
    prepare: Callable[[], Quantize]
    package: str = "onnxruntime"
    imports: str = "onnxruntime.quantization"
    calibrated: bool = True


def _samples(feeds: Feeds) -> list[Feeds]:
    """One feed a sample, with a batch axis of 1."""
    count = len(next(iter(feeds.values())))
    return [{name: values[index : index + 1] for name, values in feeds.items()} for index in range(count)]


def reader(feeds: Feeds) -> Any:
    """The samples as onnxruntime's calibration, and Quark's, reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.samples = iter(_samples(feeds))

        def get_next(self) -> Feeds | None:
            return next(self.samples, None)

    return Reader()


# --------------------------------------------------------------------------------------------------------- onnxruntime


def _static_defaults() -> Quantize:
    from onnxruntime.quantization import quantize_static

    return lambda model, feeds, output: quantize_static(model, output, reader(feeds))


def _prepared(model: Path, folder: Path) -> Path:
    """Its preparation; without symbolic shapes where it does not find them."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / "prepared.onnx"
    try:
        quant_pre_process(str(model), str(path))
    except Exception as error:
        if "symbolic" not in str(error):
            raise
        quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
    return path


def _static_best(calibration: str, *, outputs: bool = True) -> Quantize:
    """What suits its CPU provider best: uint8 activations, int8 weights by channel, matrix products only.

    outputs: quantize what the products give, too, as it does unless told otherwise.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    def quantize(model: Path, feeds: Feeds, output: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            quantize_static(
                _prepared(model, Path(folder)),
                output,
                reader(feeds),
                op_types_to_quantize=PRODUCTS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[calibration],
                extra_options={} if outputs else {"OpTypesToExcludeOutputQuantization": PRODUCTS},
            )

    return quantize


def _dynamic() -> Quantize:
    """By channel, matrix products only (by default convolutions too: slow and coarse), after the preparation it asks for."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantize(model: Path, feeds: Feeds, output: Path) -> None:
        del feeds
        with tempfile.TemporaryDirectory() as folder:
            prepared = _prepared(model, Path(folder))
            quantize_dynamic(
                prepared, output, op_types_to_quantize=PRODUCTS, per_channel=True, weight_type=QuantType.QInt8
            )

    return quantize


# -------------------------------------------------------------------------------------------------------- other vendors


def _nncf() -> Quantize:
    import nncf
    import onnx

    def quantize(model: Path, feeds: Feeds, output: Path) -> None:
        samples = _samples(feeds)
        quantized = nncf.quantize(
            onnx.load(model), nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
        )
        onnx.save(quantized, output)

    return quantize


def _quark() -> Quantize:
    """As onnxruntime's recipe for inputs only, with its smoothing and bias correction: its most accurate int8 settings here.

    Bias correction needs the convolution quantized as well.
    """
    from quark.onnx import (
        BiasCorrectionConfig,
        CalibMethod,
        Int8Spec,
        ModelQuantizer,
        QConfig,
        QLayerConfig,
        QuantGranularity,
        SmoothQuantConfig,
        UInt8Spec,
    )

    activations = UInt8Spec(calibration_method=CalibMethod.MinMax)
    weights = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    config = QConfig(
        global_config=QLayerConfig(input_tensors=activations, weight=weights),
        algo_config=[SmoothQuantConfig(), BiasCorrectionConfig()],
        OpTypesToQuantize=["Conv", *PRODUCTS],
        OpTypesToExcludeOutputQuantization=["Conv", *PRODUCTS],
    )
    return lambda model, feeds, output: ModelQuantizer(config).quantize_model(str(model), str(output), reader(feeds))


def _aimet() -> Quantize:
    """Weights by channel and its SQNR-searched ranges ("tf_enhanced"), written as QDQ.

    Only what enters a matrix product or a convolution: with everything, as configured, attention masks ruin the encoder.
    """
    import aimet_onnx
    import onnx

    [config] = Path(aimet_onnx.__file__).parent.rglob("default_config_per_channel.json")

    def quantize(model: Path, feeds: Feeds, output: Path) -> None:
        samples, proto = _samples(feeds), onnx.load(model)
        read = {name for node in proto.graph.node if node.op_type in {"Conv", *PRODUCTS} for name in node.input}
        simulation = aimet_onnx.QuantizationSimModel(
            proto,
            param_type=aimet_onnx.int8,
            activation_type=aimet_onnx.int8,
            quant_scheme="tf_enhanced",
            config_file=str(config),
            dummy_input=samples[0],
            providers=["CPUExecutionProvider"],
        )
        for name, quantizer in simulation.qc_quantize_op_dict.items():
            quantizer.enabled = quantizer.enabled and name in read
        simulation.compute_encodings(samples)
        onnx.save(simulation.to_onnx_qdq(prequantize_constants=True, export_int32_bias=True), output)

    return quantize


# ------------------------------------------------------------------------------------------------------------ onnxvitq


def _onnxvitq(**options: Any) -> Quantize:
    import onnxvitq.api
    from onnxvitq.core.config import QuantConfig

    def quantize(model: Path, feeds: Feeds, output: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "calibration.npz"
            save_feeds(data, feeds)
            onnxvitq.api.quantize(model, data, output, QuantConfig(**options))

    return quantize


RECIPES = {
    "minmax": ("min-max", "MinMax"),
    "entropy": ("entropy", "Entropy"),
    "percentile": ("percentile", "Percentile"),
}
OURS: dict[str, tuple[str, dict[str, str]]] = {
    "onnxvitq": ("onnxvitq", {}),
    "onnxvitq-minmax": ("onnxvitq --objective minmax", {"objective": "minmax"}),
    "onnxvitq-minmax-dynamic": (
        "onnxvitq --objective minmax --activations dynamic",
        {"objective": "minmax", "activations": "dynamic"},
    ),
    "onnxvitq-minmax-token": (
        "onnxvitq --objective minmax --activations token",
        {"objective": "minmax", "activations": "token"},
    ),
    "onnxvitq-fast": ("onnxvitq --effort fast", {"effort": "fast"}),
    "onnxvitq-best": ("onnxvitq --effort best", {"effort": "best"}),
    "onnxvitq-accuracy": ("onnxvitq --preset accuracy", {"preset": "accuracy"}),
}
TOOLS: dict[str, Tool] = {
    "quantize_static": Tool(title="quantize_static, defaults", prepare=_static_defaults),
    **{
        f"quantize_static-{name}": Tool(
            title=f"quantize_static, best recipe, {title}", prepare=functools.partial(_static_best, member)
        )
        for name, (title, member) in RECIPES.items()
    },
    "quantize_static-inputs": Tool(
        title="quantize_static, best recipe, min-max, only inputs of products",
        prepare=lambda: _static_best("MinMax", outputs=False),
    ),
    "quantize_dynamic": Tool(title="quantize_dynamic, per channel", prepare=_dynamic, calibrated=False),
    "nncf": Tool(title="NNCF, transformer", package="nncf", imports="nncf", prepare=_nncf),
    "quark": Tool(title="Quark, smoothing, bias correction", package="amd-quark", imports="quark.onnx", prepare=_quark),
    "aimet": Tool(title="AIMET, tf_enhanced", package="aimet-onnx", imports="aimet_onnx", prepare=_aimet),
    **{
        name: Tool(title=title, package="onnxvitq", imports="onnxvitq", prepare=functools.partial(_onnxvitq, **options))
        for name, (title, options) in OURS.items()
    },
}


def main() -> None:
    """Quantize with one tool; only JSON goes to standard output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="calibration samples, .npz")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    tool = TOOLS[args.tool]
    importlib.import_module(tool.imports)
    quantize = tool.prepare()
    with np.load(args.data) as file:
        feeds = {key: file[key] for key in file.files}
    start = time.perf_counter()
    quantize(args.model, feeds, args.output)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "version": f"{tool.package} {version(tool.package)}"}))


if __name__ == "__main__":
    main()
