"""SPEC forms that name a Python callable: ``module.path:factory``, ``path/to/file.py:factory``, a bundled model."""

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from onnxvitq.core.errors import ExportError
from onnxvitq.export.foreign import foreign_code, import_path
from onnxvitq.export.source import ExportSource, check_inputs, preprocessor_text, random_images

BUNDLED = Path(__file__).resolve().parents[2] / "models"  # in a source checkout only: an installed wheel has no models


def factory_source(spec: str, image_size: int | None) -> ExportSource:
    """Call the factory that ``target:factory`` names.

    The target is imported as a script started in its folder (a file) or in the working directory (a dotted path) would
    import it, so what lies beside it is found.

    Raises:
        ExportError: the target cannot be imported, has no such factory, or the factory does not return a module.
    """
    target, _, name = spec.rpartition(":")
    if not target or not name:
        raise ExportError(spec, "expected module.path:factory or path/to/file.py:factory")
    if not target.endswith(".py"):
        with import_path(Path.cwd()):
            with foreign_code(spec, f"{target} cannot be imported", "a file is given as path/to/file.py:factory"):
                definition = importlib.import_module(target)
            return _call(definition, name, spec, image_size)
    file = Path(target)
    if not file.is_file():
        raise ExportError(spec, f"expected a Python file, found nothing at {file}")
    with import_path(file.parent):
        return _call(_import_file(file, spec), name, spec, image_size)


def bundled_source(name: str, image_size: int | None) -> ExportSource:
    """Call ``build`` of models/<name>/model.py in the source checkout.

    Raises:
        ExportError: there is no such bundled model; the message says which there are.
    """
    known = {file.parent.name: file for file in sorted(BUNDLED.glob("*/model.py"))}
    if name not in known:
        bundled = f"bundled are: {', '.join(known)}" if known else "only a source checkout has bundled models"
        raise ExportError(
            name,
            f"no such bundled model, nor a folder with a config.json; {bundled}",
            "or give module.path:factory, path/to/file.py:factory or timm:NAME; nothing is downloaded",
        )
    file = known[name]
    with import_path(file.parent):
        source = _call(_import_file(file, name), "build", name, image_size)
    return replace(source, preprocessor=preprocessor_text(file.parent))


def _import_file(file: Path, spec: str) -> ModuleType:
    """Import a file under a name of its own, so that it neither finds nor replaces a module of the same name."""
    name = f"_onnxvitq_export_{file.stem}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ExportError(spec, f"{file} cannot be imported")
    definition = importlib.util.module_from_spec(found)
    sys.modules[name] = definition  # dataclasses and torch look a class's module up there
    with foreign_code(spec, f"{file} cannot be imported"):
        found.loader.exec_module(definition)
    return definition


def _call(definition: ModuleType, name: str, spec: str, image_size: int | None) -> ExportSource:
    factory = getattr(definition, name, None)
    if not callable(factory):
        own = [key for key, value in vars(definition).items() if _is_own_callable(value, definition)]
        raise ExportError(
            spec,
            f"expected a callable {name!r} in {definition.__file__}, got {type(factory).__name__}",
            f"callables there: {', '.join(own) or 'none'}",
        )
    with foreign_code(spec, f"{name}() failed"):
        module = factory()
    if not isinstance(module, nn.Module):
        raise ExportError(spec, f"expected {name}() to return a torch.nn.Module, got {type(module).__name__}")
    inputs = _example_inputs(definition, spec, image_size)
    return ExportSource(module=module, inputs=inputs, input_name="input", weights=f"as {name}() returned them")


def _is_own_callable(value: object, definition: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", "") == definition.__name__


def _example_inputs(definition: ModuleType, spec: str, image_size: int | None) -> tuple[torch.Tensor, ...]:
    """From ``example_inputs`` beside the factory; an explicit image size wins, with the example's channel count."""
    make = getattr(definition, "example_inputs", None)
    if make is None and image_size is None:
        raise ExportError(
            spec,
            "the shape of the inputs is unknown",
            "define example_inputs() -> tuple of tensors beside the factory, or give --image-size",
        )
    if make is None:
        assert image_size is not None
        return random_images(3, image_size, image_size)
    with foreign_code(spec, "example_inputs() failed"):
        made = make()
    inputs = check_inputs(made, spec)
    if image_size is None:
        return inputs
    if len(inputs) != 1 or inputs[0].ndim != 4:
        shapes = [tuple(tensor.shape) for tensor in inputs]
        raise ExportError(spec, f"an image size needs one input (B, C, H, W), example_inputs() gave {shapes}")
    return random_images(inputs[0].shape[1], image_size, image_size)
