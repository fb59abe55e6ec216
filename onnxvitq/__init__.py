"""Post-training quantizer for Vision Transformers: a float ONNX graph in, a graph on onnxruntime's int8 kernels out.

    import onnxvitq
    result = onnxvitq.quantize("model.onnx", "images/", "model_int8.onnx")
    print(result.report.compare)

Names are loaded when they are first used, so that importing the package loads neither onnxruntime nor torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "NumberFormat": "onnxvitq.core.formats",
    "OnnxVitqError": "onnxvitq.core.errors",
    "PreprocessOptions": "onnxvitq.data.opening",
    "QuantConfig": "onnxvitq.core.config",
    "Renderer": "onnxvitq.report.renderers.registry",
    "Result": "onnxvitq.api",
    "Step": "onnxvitq.fit.step",
    "Target": "onnxvitq.targets.target",
    "Task": "onnxvitq.evaluation.tasks.task",
    "bench": "onnxvitq.api",
    "evaluate": "onnxvitq.api",
    "inspect": "onnxvitq.api",
    "quantize": "onnxvitq.api",
}  # exporting is ``onnxvitq.api.export``: ``onnxvitq.export`` is the package that does it
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxvitq' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    """That of the installed package; "unknown" for a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # half of what importing this package would cost

    try:
        return version("onnxvitq")
    except PackageNotFoundError:
        return "unknown"
