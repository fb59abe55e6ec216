"""Imports point down only, heavy libraries stay in their packages, and importing the package is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxvitq

PACKAGE = Path(onnxvitq.__file__).parent

BOTTOM = frozenset({"errors", "spec"})
FLOOR = frozenset({"config", "blockmap", "fanout", "numerics", "graph", "export", "data"})
# Unit (a module or a package of onnxvitq) -> the units it may import beside itself; bottom up.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "spec": frozenset({"errors"}),
    **dict.fromkeys(FLOOR, BOTTOM),
    "blocks": BOTTOM | {"graph", "blockmap"},
    "runtime": BOTTOM | {"numerics"},
    "plan": BOTTOM | {"blockmap"},
    "steps": BOTTOM | {"plan", "numerics", "config", "blockmap", "fanout"},
    "rewrite": BOTTOM | {"plan", "graph", "numerics", "blockmap", "blocks"},
    "learn": BOTTOM
    | {"plan", "config", "numerics", "blockmap", "fanout", "graph", "runtime", "rewrite", "rebuild", "steps"},
    "rebuild": BOTTOM | {"plan", "numerics", "blockmap", "fanout", "graph", "runtime", "rewrite", "steps"},
    "evaluation": BOTTOM | {"runtime", "plan", "blockmap", "rewrite", "graph", "numerics", "data"},
}
MAY_IMPORT["replay"] = BOTTOM | {"data", "steps"}
MAY_IMPORT["calibration"] = BOTTOM | {"runtime", "graph", "plan"}
EVERYTHING_BELOW = BOTTOM | FLOOR | MAY_IMPORT.keys()
MAY_IMPORT["precision"] = EVERYTHING_BELOW
MAY_IMPORT["quality"] = EVERYTHING_BELOW | {"precision"}
MAY_IMPORT["measure"] = MAY_IMPORT["exact"] = EVERYTHING_BELOW
MAY_IMPORT["fitting"] = EVERYTHING_BELOW | {"precision", "quality", "measure", "exact"}
MAY_IMPORT["pipeline"] = EVERYTHING_BELOW | {"precision", "quality", "fitting"}
MAY_IMPORT["cli"] = MAY_IMPORT["__main__"] = MAY_IMPORT["__init__"] = EVERYTHING_BELOW | {
    "precision",
    "quality",
    "fitting",
    "pipeline",
    "cli",
}

# Library -> the units that may import it.
HOMES: dict[str, frozenset[str]] = {
    "torch": frozenset({"export", "learn"}),
    "transformers": frozenset({"export"}),
    "timm": frozenset({"export"}),
    "onnxruntime": frozenset({"runtime"}),
    "onnx_graphsurgeon": frozenset({"graph", "blocks", "rewrite", "learn"}),
    "PIL": frozenset({"data"}),
    "rich": frozenset({"cli", "evaluation"}),
    "joblib": frozenset({"fanout"}),
    "threadpoolctl": frozenset({"fanout"}),
}

# A file that names a library's type and does nothing with it but hand it on.
TYPE_ONLY = {
    ("evaluation/judge.py", "onnx_graphsurgeon"),
    ("evaluation/probe.py", "onnx_graphsurgeon"),
    ("exact.py", "onnx_graphsurgeon"),
    ("fitting.py", "onnx_graphsurgeon"),
    ("measure.py", "onnx_graphsurgeon"),
    ("precision.py", "onnx_graphsurgeon"),
    ("rebuild/pieces.py", "onnx_graphsurgeon"),
    ("rebuild/branches.py", "onnx_graphsurgeon"),
    ("rebuild/weights.py", "onnx_graphsurgeon"),
}

# What may be taken from a unit by one that must not depend on the rest of it.
NAMES_ONLY = {
    ("evaluation", "rewrite"): {
        "planned_linear",
        "planned_products",
        "integer_name",
        "apply_plan",
        "branch_names",
        "PACKED",
        "probe_graph",
        "probe_parameters",
        "weight_input",
    },
    ("rewrite", "blocks"): {"ACTIVATION"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names taken from it) of every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", tuple(alias.name for alias in node.names)


def imported_units(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(unit of onnxvitq, names taken from it)."""
    for module, names in imports(path):
        parts = module.split(".")
        if parts[0] != "onnxvitq":
            continue
        if len(parts) > 1:
            yield parts[1], names
        elif names:
            yield from ((name, ()) for name in names)
        else:
            yield "__init__", ()


def where(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def test_every_unit_has_a_layer() -> None:
    units = {unit_of(path) for path in sources()}
    assert units == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", sources(), ids=where)
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    allowed = MAY_IMPORT[unit] | {unit}
    assert not [other for other, _ in imported_units(path) if other not in allowed]


@pytest.mark.parametrize("path", sources(), ids=where)
def test_libraries_stay_at_home(path: Path) -> None:
    unit, file = unit_of(path), path.relative_to(PACKAGE).as_posix()
    libraries = {module.split(".")[0] for module, _ in imports(path)} & HOMES.keys()
    assert not {name for name in libraries if unit not in HOMES[name] and (file, name) not in TYPE_ONLY}


def test_only_the_agreed_names_cross_where_a_dependency_is_narrow() -> None:
    for path in sources():
        for other, names in imported_units(path):
            agreed = NAMES_ONLY.get((unit_of(path), other))
            assert agreed is None or set(names) <= agreed, where(path)


def test_the_table_has_no_cycle_and_names_only_what_exists() -> None:
    done: set[str] = set()
    waiting = dict(MAY_IMPORT)
    while ready := [unit for unit, below in waiting.items() if below - {unit} <= done]:
        done.update(ready)
        waiting = {unit: below for unit, below in waiting.items() if unit not in done}
    assert set(waiting) <= {"cli", "__main__", "__init__"}  # the top: these may see each other


def test_packages_do_nothing_when_they_are_imported() -> None:
    """An ``__init__`` holds a docstring; only the top one names the public API."""
    for path in sources():
        if path.name == "__init__.py" and path.parent != PACKAGE:
            (only,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(only, ast.Expr), where(path)
            assert isinstance(only.value, ast.Constant), where(path)


@pytest.mark.parametrize("module", ["onnxvitq", "onnxvitq.cli.main", "onnxvitq.config", "onnxvitq.export.exporter"])
def test_importing_loads_neither_torch_nor_onnxruntime(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'onnxruntime') if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert ran.stdout.strip() == "[]"
    assert ran.stderr == ""


# ------------------------------------------------------------------------------------------------ the checks notice


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import onnxvitq.graph.io as io\nfrom onnxvitq import pipeline\nfrom onnxvitq.rewrite.qdq import apply_plan\n"
        "def late():\n    import torch.nn\n    if late:\n        from onnxvitq.steps import bias\n"
    )
    assert set(imported_units(source)) == {
        ("graph", ()),
        ("pipeline", ()),
        ("rewrite", ("apply_plan",)),
        ("steps", ("bias",)),
    }
    assert ("torch.nn", ()) in set(imports(source))


def test_relative_imports_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("def late():\n    from . import sibling\n")
    with pytest.raises(AssertionError, match="relative import"):
        list(imports(source))
