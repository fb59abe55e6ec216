import ast
from pathlib import Path
from typing import get_args

import pytest

import onnxvitq
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.quantize_options import TargetName
from onnxvitq.targets.ort_cpu.target import OrtCpu
from onnxvitq.targets.registry import DEFAULT_TARGET, TARGETS, target_of

PACKAGE = Path(onnxvitq.__file__).parent


def imports_of_a_runtime(package: Path) -> list[str]:
    """Files outside ``targets/`` that import a runtime's folder."""
    files = [path for path in sorted(package.rglob("*.py")) if path.relative_to(package).parts[0] != "targets"]
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(module.startswith("onnxvitq.targets.ort_cpu") for module in modules):
                found.append(path.relative_to(package).as_posix())
    return found


def test_nothing_outside_knows_a_runtime() -> None:
    assert imports_of_a_runtime(PACKAGE) == []


@pytest.mark.parametrize("line", ["from onnxvitq.targets.ort_cpu.layout import f", "import onnxvitq.targets.ort_cpu.x"])
def test_who_knows_a_runtime_is_seen(tmp_path: Path, line: str) -> None:
    for room in ("fit", "targets"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "step.py").write_text(f"{line}\n")
    assert imports_of_a_runtime(tmp_path) == ["fit/step.py"]


def test_every_name_of_the_option_is_a_target() -> None:
    assert TARGETS.keys() == set(get_args(TargetName))
    assert DEFAULT_TARGET is target_of(QuantConfig())
    assert len({target.name for target in TARGETS.values()}) == len(TARGETS)


@pytest.mark.parametrize(
    ("processor", "limited"), [("auto", True), ("x86-avx2", True), ("x86-vnni", False), ("arm64", False)]
)
def test_weights_are_limited_for_processors_that_saturate(processor: TargetName, limited: bool) -> None:
    target = target_of(QuantConfig(target=processor))
    assert target == OrtCpu(processor=processor)
    assert target.name == f"ort-cpu ({processor})"
    assert target.weight_format(8).limits_pairs is limited
    assert not target.weight_format(7).limits_pairs
