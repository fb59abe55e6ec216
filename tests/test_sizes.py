"""No class of the package is over 200 lines, no function over 60, no module over 400."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxvitq

PACKAGE = Path(onnxvitq.__file__).parent
LONGEST_MODULE, LONGEST_CLASS, LONGEST_FUNCTION = 400, 200, 60


def lengths(source: str) -> Iterator[tuple[str, int, int]]:
    """(name, lines, lines allowed) of a module ("" for its name), its classes and its functions; decorators count."""
    yield "", len(source.splitlines()), LONGEST_MODULE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            allowed = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            yield node.name, (node.end_lineno or node.lineno) - first + 1, allowed


def too_long(path: str, source: str) -> dict[str, str]:
    """What is over its limit -> by how much it is."""
    return {
        f"{path}: {name}" if name else path: f"{lines} lines, {allowed} allowed"
        for name, lines, allowed in lengths(source)
        if lines > allowed
    }


def test_no_module_class_or_function_is_too_long() -> None:
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found |= too_long(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    assert found == {}


@pytest.mark.parametrize(("head", "limit"), [("def long():", 60), ("class Long:", 200), ("async def long():", 60)])
def test_what_is_too_long_is_noticed(head: str, limit: int) -> None:
    name = head.split()[-1].strip("():")
    within = "\n".join([head, *["    x = 1"] * (limit - 1)])
    assert too_long("room.py", within) == {}
    assert too_long("room.py", f"{within}\n    x = 2") == {f"room.py: {name}": f"{limit + 1} lines, {limit} allowed"}
    assert list(too_long("room.py", f"@decorator\n{within}")) == [f"room.py: {name}"]
    nested = "\n".join(f"    {line}" for line in f"{within}\n    x = 2".splitlines())
    assert list(too_long("room.py", f"if True:\n{nested}")) == [f"room.py: {name}"]


def test_a_long_module_is_noticed() -> None:
    assert too_long("room.py", "x = 1\n" * LONGEST_MODULE) == {}
    assert list(too_long("room.py", "x = 1\n" * (LONGEST_MODULE + 1))) == ["room.py"]
