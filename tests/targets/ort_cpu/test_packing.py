"""Packed weights come back as they were, take the bits they should, and are gone when a session has loaded."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from textgraph import run

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.writing import to_proto
from onnxvitq.runtime.session import Session
from onnxvitq.targets.ort_cpu import packing as pack_module
from onnxvitq.targets.ort_cpu.packing import FIELDS, Packer, pack

Codes = dict[str, np.ndarray]


def codes_of(bits: int, *shapes: tuple[int, int]) -> Codes:
    """Random codes with both extremes, int8."""
    rng, edge = np.random.default_rng(bits), 1 << (bits - 1)
    codes = {f"w{i}": rng.integers(-edge, edge, shape).astype(np.int8) for i, shape in enumerate(shapes)}
    for values in codes.values():
        values.flat[:2] = -edge, edge - 1
    return codes


def model_of(codes: Codes, bits: int, opset: int) -> onnx.ModelProto:
    """A model that puts out every weight."""
    graph = gs.Graph(opset=opset, ir_version=10)
    packer = Packer(Editor(graph), opset)
    weights = [packer.int8(name, values, bits) for name, values in codes.items()]
    packer.write()
    for weight in weights:
        output = gs.Variable(f"{weight.name}_out", dtype=np.int8, shape=codes[weight.name].shape)
        graph.nodes.append(gs.Node("Identity", output.name, inputs=[weight], outputs=[output]))
        graph.outputs.append(output)
    proto = to_proto(graph, {})
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 21])
@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_come_back(bits: int, opset: int) -> None:
    codes = codes_of(bits, (64, 96), (101, 96), (99, 64))  # of the same and of other widths, and no multiple of 8 rows
    for level in ("disabled", "all"):
        for got, expected in zip(run(model_of(codes, bits, opset), {}, level), codes.values(), strict=True):
            assert got.dtype == np.int8
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("bits", FIELDS)
def test_a_weight_takes_its_bits(bits: int) -> None:
    count = 512 * 640
    size = model_of(codes_of(bits, (512, 320), (512, 320)), bits, 18).ByteSize()
    assert 0 < size - count * bits / 8 < 4500  # the nodes, 21 of them at 7 bits


def test_a_byte_holds_rows_that_lie_apart() -> None:
    values = np.array([[0b101], [0b011], [0b110], [0b000]], np.uint8)
    assert pack(values, 2, 0, 4).tolist() == [[0b00_10_11_01]]  # the first row in the lowest bits
    assert pack(values, 1, 2, 8).tolist() == [[0b0000_0101]]  # the third bit of each; rows made eight
    assert pack(values, 4, 0, 2).tolist() == [[0b0110_0101], [0b0000_0011]]


def test_weights_of_one_width_are_unpacked_together() -> None:
    one = Counter(node.op_type for node in model_of(codes_of(4, (64, 96)), 4, 18).graph.node)
    many = Counter(node.op_type for node in model_of(codes_of(4, *[(64, 96)] * 5), 4, 18).graph.node)
    assert many - one == Counter(Identity=4)
    assert one == Counter(BitShift=1, Concat=1, BitwiseAnd=1, Cast=1, Sub=1, Split=1, Identity=1)


def test_a_group_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "LARGEST_GROUP", 64 * 96 * 2)
    codes = codes_of(4, *[(64, 96)] * 5)
    model = model_of(codes, 4, 18)
    assert Counter(node.op_type for node in model.graph.node)["Split"] == 3
    assert all(np.array_equal(*pair) for pair in zip(run(model, {}), codes.values(), strict=True))


def test_weights_too_small_to_gain_stay_int8() -> None:
    model = model_of(codes_of(3, (8, 8)), 3, 18)
    assert [tensor.data_type for tensor in model.graph.initializer] == [onnx.TensorProto.INT8]


def test_nothing_is_left_to_unpack_when_a_session_has_loaded(tmp_path: Path) -> None:
    codes = codes_of(7, (128, 96), (99, 96))
    onnx.save(model_of(codes, 7, 18), tmp_path / "packed.onnx")
    Session(tmp_path / "packed.onnx", threads=1, optimized=tmp_path / "optimised.onnx")
    left = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert set(left) <= {"Identity"}
