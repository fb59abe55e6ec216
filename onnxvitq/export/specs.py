"""The forms of SPEC, the name of a model to export. The first form that fits is taken, in this order.

1. ``timm:NAME``
2. a folder with a ``config.json``, or a path to a .json file: a Hugging Face checkpoint or configuration
3. ``module.path:factory`` or ``path/to/file.py:factory``
4. a bundled name: ``models/<name>`` of the source checkout
"""

from pathlib import Path

from onnxvitq.export.checkpoints import huggingface_source, timm_source
from onnxvitq.export.factories import bundled_source, factory_source
from onnxvitq.export.foreign import foreign_code
from onnxvitq.export.source import ExportSource


def load_source(spec: str, image_size: int | None, seed: int) -> ExportSource:
    """The module that a SPEC names, on the CPU and in evaluation mode, with example inputs.

    Args:
        spec: in one of the forms above.
        image_size: pixels of a side, in place of the model's own; None keeps that.
        seed: that torch's generator was set to, for the text about random weights.

    Raises:
        ExportError: there is no such model, or it cannot be built.
    """
    source = _resolved(spec, image_size, seed)
    with foreign_code(spec, "the module cannot be put on the CPU in evaluation mode"):
        source.module.cpu().eval()
    return source


def _resolved(spec: str, image_size: int | None, seed: int) -> ExportSource:
    path = Path(spec)
    if spec.startswith("timm:"):
        return timm_source(spec.removeprefix("timm:"), image_size, seed)
    if (path / "config.json").is_file() or (path.suffix == ".json" and path.is_file()):
        return huggingface_source(path, image_size, seed)
    if ":" in spec:
        return factory_source(spec, image_size)
    return bundled_source(spec, image_size)
