import ast
import importlib
import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

import onnxvitq
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import (
    INT8,
    BitPair,
    Granularity,
    NumberFormat,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QParams,
    TensorFormat,
    activation_format,
    parse_bits,
    weight_format,
)
from onnxvitq.core.layers import Site
from onnxvitq.core.options import Options
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import InputSpec

PACKAGE = Path(onnxvitq.__file__).parent
UINT8 = activation_format(8)
CHANNELS = weight_format(8)


def keywords(decorator: ast.expr) -> dict[str, object] | None:
    """The keyword arguments of a dataclass decorator; None when it is another decorator."""
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = call.attr if isinstance(call, ast.Attribute) else call.id if isinstance(call, ast.Name) else ""
    if name != "dataclass":
        return None
    given = decorator.keywords if isinstance(decorator, ast.Call) else []
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in given if keyword.arg is not None}


def dataclasses_in(source: str) -> Iterator[tuple[str, dict[str, object]]]:
    """(class name, keyword arguments) of every dataclass of a module. Read, not imported: export would load torch."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                found = keywords(decorator)
                if found is not None:
                    yield node.name, found


def records_of_options(record: type[Options] = Options) -> set[str]:
    """Names of all records of options: they are combined by inheritance, which Python does not allow with slots."""
    return {record.__name__}.union(*map(records_of_options, record.__subclasses__()))


def test_every_record_is_frozen_and_has_slots() -> None:
    records = [
        (f"{path.relative_to(PACKAGE)}: {name}", given)
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, given in dataclasses_in(path.read_text(encoding="utf-8"))
    ]
    assert len(records) > 20
    assert [name for name, given in records if not given.get("frozen")] == []
    without_slots = {name.split(": ")[1] for name, given in records if not given.get("slots")}
    importlib.import_module("onnxvitq.cli.reference")  # which imports all commands' records
    assert without_slots - records_of_options() == set()


@pytest.mark.parametrize("decorator", ["@dataclass", "@dataclass()", "@dataclasses.dataclass(slots=True)"])
def test_a_record_that_is_not_frozen_is_seen(decorator: str) -> None:
    ((name, given),) = dataclasses_in(f"{decorator}\nclass Loose:\n    x: int\n")
    assert name == "Loose"
    assert not given.get("frozen")
    assert list(dataclasses_in("@total_ordering\nclass Other: ...\n")) == []


@pytest.mark.parametrize(
    ("bits", "signed", "symmetric", "qmin", "qmax", "storage"),
    [
        (8, False, False, 0, 255, "uint8"),
        (8, True, False, -128, 127, "int8"),
        (8, True, True, -127, 127, "int8"),
        (7, True, True, -63, 63, "int8"),
        (4, True, False, -8, 7, "int8"),
        (2, True, True, -1, 1, "int8"),
        (6, False, False, 0, 63, "uint8"),
        (9, False, False, 0, 511, "uint16"),
        (16, True, False, -32768, 32767, "int16"),
    ],
)
def test_codes_and_storage(bits: int, signed: bool, symmetric: bool, qmin: int, qmax: int, storage: str) -> None:
    spec = TensorFormat(NumberFormat(bits=bits, signed=signed, symmetric=symmetric))
    assert (spec.qmin, spec.qmax, spec.storage) == (qmin, qmax, np.dtype(storage))


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits: expected 2 to 16, got {bits}"):
        TensorFormat(NumberFormat(bits=bits, signed=True, symmetric=True))


@pytest.mark.parametrize(
    "granularity",
    [PerTensor(), PerChannel(axis=1), PerToken(), PerBlock(axis=0, size=32)],
    ids=lambda one: type(one).__name__,
)
def test_a_format_is_hashable_and_goes_to_json_and_back(granularity: Granularity) -> None:
    spec = TensorFormat(NumberFormat(bits=4, signed=True, symmetric=False), granularity, saturation_free=True)
    assert len({UINT8, activation_format(8), CHANNELS, spec}) == 3
    assert TensorFormat.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("number", "name", "levels"),
    [
        (INT8, "int8", 255),
        (NumberFormat(bits=8, signed=True, symmetric=False), "int8 asymmetric", 256),
        (NumberFormat(bits=4, signed=False, symmetric=False), "uint4", 16),
        (NumberFormat(bits=4, signed=False, symmetric=True), "uint4 symmetric", 16),
        (NumberFormat(bits=16, signed=True, symmetric=True), "int16", 65535),
    ],
)
def test_a_number_format_is_printed_and_parsed(number: NumberFormat, name: str, levels: int) -> None:
    assert (str(number), number.levels) == (name, levels)
    assert NumberFormat.parse(name) == number


@pytest.mark.parametrize("text", ["", "int", "float8", "INT8", "int8 symmetrical", "int1", "int17", "8"])
def test_what_is_no_number_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        NumberFormat.parse(text)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        (PerTensor(), 9.0),
        (PerChannel(axis=0), [3.0, 9.0]),
        (PerChannel(axis=1), [9.0, 8.0, 7.0]),
        (PerToken(), [[3.0], [9.0]]),
        (PerBlock(axis=1, size=2), [[2.0, 3.0], [9.0, 7.0]]),
        (PerBlock(axis=0, size=2), [[9.0, 8.0, 7.0]]),
    ],
)
def test_which_values_share_a_scale(granularity: Granularity, expected: object) -> None:
    values = np.array([[1, 2, 3], [9, 8, 7]], np.float32)
    largest = granularity.largest(values)
    np.testing.assert_array_equal(largest, expected)
    wide = np.broadcast_to(granularity.spread(largest, values.shape), values.shape)  # each value has its scale
    assert (wide >= values).all()
    assert set(wide.ravel()) == set(largest.ravel())
    assert granularity.rank in (None, largest.ndim)


def test_bits_of_a_layer_are_parsed_and_printed() -> None:
    assert parse_bits("bits", "w4a8") == BitPair(weights=4, activations=8) == (4, 8)
    assert str(BitPair(4, 8)) == "w4a8"
    with pytest.raises(ConfigError, match=r"bits: expected wNaM with N and M 2 to 8, such as w4a8, got 'w9a8'"):
        parse_bits("bits", "w9a8")


def test_records_cannot_be_changed() -> None:
    site = Site(name="x", kind="activation", role="r", consumers=(("node", 0),))
    request = StatisticsRequest(tensor="x", kind="rows")
    image = InputSpec(name="image", dtype="float32", shape=(None, 3, 8, 8))
    params = QParams(spec=UINT8, scale=np.array(1, np.float32), zero_point=np.array(0))
    for record, field in (
        (UINT8, "number"),
        (INT8, "bits"),
        (site, "name"),
        (request, "tensor"),
        (image, "shape"),
        (params, "scale"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(record, field, None)
    assert len({site, request, image}) == 3  # hashable
    assert Statistics().ranges == {}


def test_params_hold_read_only_copies() -> None:
    scale, zero = np.array([1.0, 2.0]), np.array([0, 3])
    params = QParams(
        spec=TensorFormat(NumberFormat(bits=8, signed=True, symmetric=False), PerChannel(1)),
        scale=scale,
        zero_point=zero,
    )
    scale[0], zero[0] = 9, 9
    assert (params.scale.tolist(), params.zero_point.tolist()) == ([1.0, 2.0], [0, 3])
    assert (params.scale.dtype, params.zero_point.dtype) == (np.dtype(np.float32), np.dtype(np.int8))
    for array in (params.scale, params.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert scale.flags.writeable  # the caller's array is left as it was


def test_per_tensor_params_are_scalars() -> None:
    params = QParams(spec=UINT8, scale=np.array(0.5, np.float32), zero_point=np.array(200))
    assert params.scale.shape == params.zero_point.shape == ()
    assert params.zero_point.dtype == np.uint8


@pytest.mark.parametrize(
    ("spec", "scale", "zero"),
    [(UINT8, [1.0], [0]), (CHANNELS, 1.0, 0), (CHANNELS, [1.0, 2.0], [0]), (CHANNELS, [[1.0]], [[0]])],
    ids=["vector", "scalar", "lengths", "matrix"],
)
def test_params_of_the_wrong_shape(spec: TensorFormat, scale: object, zero: object) -> None:
    with pytest.raises(ValueError, match="expected rank"):
        QParams(spec=spec, scale=np.array(scale), zero_point=np.array(zero))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-60])
def test_a_scale_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="scale: expected positive finite values"):
        QParams(spec=CHANNELS, scale=np.array([1.0, scale]), zero_point=np.array([0, 0]))


@pytest.mark.parametrize(
    "zero", [np.array(256), np.array(-1), np.array(65536), np.array(1.5), np.array(np.nan), np.array(300)]
)
def test_a_zero_point_must_be_a_code(zero: np.ndarray) -> None:
    with pytest.raises(ValueError, match="zero point: expected integers from 0 to 255"):
        QParams(spec=UINT8, scale=np.array(1, np.float32), zero_point=zero)


def test_a_zero_point_is_held_to_the_formats_codes_not_the_storages() -> None:
    four_bits = activation_format(4)
    assert QParams(spec=four_bits, scale=np.array(1, np.float32), zero_point=np.array(15)).zero_point == 15
    with pytest.raises(ValueError, match="from 0 to 15"):
        QParams(spec=four_bits, scale=np.array(1, np.float32), zero_point=np.array(16))
