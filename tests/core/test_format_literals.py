"""Counts of bits are explained in ``core/formats.py``, and what a runtime's kernels want in ``targets/``: nowhere else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxvitq

PACKAGE = Path(onnxvitq.__file__).parent
HOMES = ("core/formats.py", "targets/")
NUMPY_TYPE = re.compile(r"u?int(2|4|8|16)")
ENDS_OF_FORMATS = {127, 128, 255, 256, 32767, 32768, 65535, 65536}
POWERS = {4, 7, 8, 15, 16}
FORMATS = {"weight_format", "activation_format", "with_bits"}
# File -> literals in it that say nothing of a number format -> why.
HEADER = "bytes of a JSON header in an .npz"
PIXELS = "values of image pixels"
ALLOWED: dict[str, dict[str, str]] = {
    "calibration/cache.py": {"uint8": HEADER},
    "cli/evaluate.py": {"'int8'": "a command's argument, the quantized model"},
    "core/plan.py": {"uint8": HEADER},
    "core/quantize_options.py": {"'int8'": "a choice of --attention, which users have: products are quantized"},
    "data/arrays.py": {"uint8": PIXELS},
    "data/config_files.py": {"255": PIXELS},
    "data/preprocess.py": dict.fromkeys(("uint8", "128", "255", "65535"), PIXELS),
    "fit/steps/block_learning/operators.py": dict.fromkeys(("uint8", "int8"), "ONNX's types of a Cast as torch's"),
    "numerics/affine.py": {"128": "outputs that are searched at a time"},
    "numerics/fit.py": {"256": "outputs that are compared at a time"},
    "numerics/rounding.py": {"128": "inputs that are rounded between two matrix products"},
    "runtime/session.py": dict.fromkeys(("'int8'", "'uint8'"), "onnxruntime's names of the types of inputs as numpy's"),
}


def is_bits(node: ast.expr) -> bool:
    """Whether an expression is called a number of bits."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name == "bits" or name.endswith("_bits")


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def literals(source: str) -> Iterator[str]:
    """Everything in a module that says something of a number format, docstrings aside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and NUMPY_TYPE.fullmatch(node.attr):
            yield node.attr
        elif isinstance(node, ast.Constant) and says_a_format(node.value):
            yield repr(node.value)
        elif isinstance(node, ast.BinOp) and is_power(node):
            yield ast.unparse(node)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(is_bits, sides)) and any(map(is_number, sides)):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield from literals_of_call(node)


def says_a_format(value: object) -> bool:
    if isinstance(value, str):
        return NUMPY_TYPE.fullmatch(value) is not None
    return type(value) is int and value in ENDS_OF_FORMATS


def is_power(node: ast.BinOp) -> bool:
    """2**8, 1 << 7 and the like."""
    sides = [side.value if isinstance(side, ast.Constant) else None for side in (node.left, node.right)]
    return isinstance(node.op, ast.Pow | ast.LShift) and sides[0] in (1, 2) and sides[1] in POWERS


def literals_of_call(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in FORMATS and any(map(is_number, node.args)):
        yield ast.unparse(node)
    for keyword in node.keywords:
        if keyword.arg == "bits" and is_number(keyword.value):
            yield f"bits={ast.unparse(keyword.value)}"


def unexplained(package: Path) -> dict[str, list[str]]:
    """File of a package -> what it says of number formats, outside their homes and without a reason."""
    said: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith(HOMES):
            said[name] = sorted(set(literals(path.read_text(encoding="utf-8"))) - ALLOWED.get(name, {}).keys())
    return {name: texts for name, texts in said.items() if texts}


def test_number_formats_are_said_in_one_place() -> None:
    assert unexplained(PACKAGE) == {}


def test_every_exception_is_there() -> None:
    for name, reasons in ALLOWED.items():
        assert reasons.keys() <= set(literals((PACKAGE / name).read_text(encoding="utf-8"))), name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("codes = x.astype(np.uint8)", "uint8"),
        ("kind = torch.int8", "int8"),
        ("kind = np.dtype('int16')", "'int16'"),
        ("largest = 255", "255"),
        ("lowest = -128", "128"),
        ("levels = 2**8", "2 ** 8"),
        ("offset = 1 << 7", "1 << 7"),
        ("few = spec.bits < 8", "spec.bits < 8"),
        ("few = 8 > weight_bits", "8 > weight_bits"),
        ("spec = NumberFormat(bits=8, signed=True, symmetric=True)", "bits=8"),
        ("spec = weight_format(4)", "weight_format(4)"),
        ("spec = formats.activation_format(8)", "formats.activation_format(8)"),
    ],
)
def test_a_literal_is_noticed(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "numerics").mkdir()
    (tmp_path / "numerics" / "new.py").write_text(f'"""Of uint8, int8 and 255."""\n{line}\n')
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "kernels.py").write_text(f"{line}\n")
    assert unexplained(tmp_path) == {"numerics/new.py": [said]}


@pytest.mark.parametrize("line", ["x = 8", "y = np.int64", "z = bits < other", "w = 2**20", "text = 'int8 codes'"])
def test_what_is_no_format_is_none(line: str) -> None:
    assert list(literals(line)) == []
