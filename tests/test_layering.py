"""Imports point down only, heavy libraries stay in their packages, and importing the package is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxvitq

PACKAGE = Path(onnxvitq.__file__).parent

# Modules of report/ that every room may fill in: they stand at the bottom, and are a floor of their own.
RECORDS = frozenset({"records", "model_records", "report", "stopwatch"})

# Room of onnxvitq -> the rooms that it may import beside itself; bottom up.
NUMBERS = frozenset({"core", "numerics"})
GRAPHS = NUMBERS | {"graph", "blocks"}
RUNNING = GRAPHS | {"data", "runtime"}
MEASURING = RUNNING | {"calibration", "targets"}
MAY_IMPORT: dict[str, frozenset[str]] = {
    "records": frozenset(),
    "core": frozenset(),
    "numerics": frozenset({"core"}),
    "data": frozenset({"core"}),
    "export": frozenset({"core"}),
    "graph": NUMBERS,
    "blocks": NUMBERS | {"graph"},
    "runtime": NUMBERS | {"graph"},
    "calibration": RUNNING,
    "targets": GRAPHS | {"runtime", "records"},
    "evaluation": MEASURING | {"records"},
    "precision": MEASURING | {"evaluation", "records"},
    "report": frozenset({"core", "records"}),
    "fit": MEASURING | {"evaluation", "precision", "records"},
}
ROOMS = frozenset(MAY_IMPORT)
MAY_IMPORT["api"] = ROOMS
MAY_IMPORT["cli"] = MAY_IMPORT["__main__"] = MAY_IMPORT["__init__"] = ROOMS | {"api", "cli"}

# Library -> the rooms, or the folders of a room, that may import it.
HOMES: dict[str, frozenset[str]] = {
    "torch": frozenset({"export", "fit/steps/block_learning"}),
    "transformers": frozenset({"export"}),
    "timm": frozenset({"export"}),
    "onnxruntime": frozenset({"runtime"}),
    "PIL": frozenset({"data"}),
    "rich": frozenset({"cli", "report"}),
    "joblib": frozenset({"core/parallel.py"}),
    "threadpoolctl": frozenset({"core/parallel.py"}),
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    return _unit(path.relative_to(PACKAGE).with_suffix("").parts)


def _unit(parts: tuple[str, ...]) -> str:
    """Of a module's names below the package."""
    return "records" if parts[0] == "report" and len(parts) > 1 and parts[1] in RECORDS else parts[0]


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
            yield _unit(tuple(parts[1:])), names
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
    file = path.relative_to(PACKAGE).as_posix()
    libraries = {module.split(".")[0] for module, _ in imports(path)} & HOMES.keys()
    assert not {name for name in libraries if not any(f"{file}/".startswith(f"{home}/") for home in HOMES[name])}


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


@pytest.mark.parametrize(
    "module", ["onnxvitq", "onnxvitq.cli.main", "onnxvitq.core.config", "onnxvitq.export.exporter"]
)
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
        "import onnxvitq.graph.reading as reading\nfrom onnxvitq import api\nfrom onnxvitq.targets.ort_cpu import layout\n"
        "def late():\n    import torch.nn\n    if late:\n        from onnxvitq.fit import runner\n"
    )
    assert set(imported_units(source)) == {
        ("graph", ()),
        ("api", ()),
        ("targets", ("layout",)),
        ("fit", ("runner",)),
    }
    assert ("torch.nn", ()) in set(imports(source))


def test_relative_imports_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("def late():\n    from . import sibling\n")
    with pytest.raises(AssertionError, match="relative import"):
        list(imports(source))
