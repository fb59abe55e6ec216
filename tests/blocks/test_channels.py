"""Where the channels go in a node that moves elements, and back."""

import pytest
from textgraph import graph_of

from onnxvitq.blocks.channels import axis_after, axis_before

WEIGHTS = (
    "int64[3] flat = {0, 8, 30}, int64[3] torn = {0, 4, -1}, int64[4] split = {2, 8, 6, 5}, int64[1] last = {3},"
    " int64[1] second = {1}, int64[1] zero = {0}, int64[1] two = {2}, int64 one = {1}, int64[2] pair = {0, 1},"
    " int64[1] end = {-1}, int64[5] wide = {1, 2, 8, 5, 6}, int64[5] fresh = {2, 8, 1, 5, 6}"
)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("y = Identity(x)", 1),
        ("y = Transpose<perm = [0, 2, 3, 1]>(x)", 3),
        ("y = Transpose(x)", 2),
        ("y = Reshape(x, flat)", 1),
        ("y = Reshape(x, torn)", None),
        ("y = Flatten<axis = 2>(x)", None),  # joined with the batch
        ("y = Unsqueeze(x, zero)", 2),
        ("y = Expand(x, wide)", 2),
        ("y = Slice(x, zero, two, last)", 1),
        ("y = Slice(x, zero, two, second)", None),
        ("y = Slice(x, pair, two)", None),  # of all axes
        ("y = Gather<axis = 0>(x, one)", 0),
        ("y = Gather<axis = 0>(x, pair)", 1),
        ("y = Gather<axis = 3>(x, one)", 1),
        ("y = Gather<axis = 1>(x, one)", None),
        ("y = ReduceMean<axes = [2, 3]>(x)", 1),
        ("y = ReduceMean<axes = [0], keepdims = 0>(x)", 0),
        ("y = ReduceMean<axes = [-3]>(x)", None),
        ("y = ReduceMean(x)", None),
        ("y = ReduceSum<keepdims = 0>(x, zero)", 0),
        ("y = GlobalAveragePool(x)", 1),
    ],
)
def test_the_second_axis_of_four(node: str, expected: int | None) -> None:
    made = graph_of(f"(float[2,8,5,6] x) => (float[] y) <{WEIGHTS}> {{ {node} }}").nodes[0]
    assert axis_after(made, 1) == expected
    if expected is not None:
        assert axis_before(made, expected) == 1


def test_a_size_that_is_only_a_name_is_no_obstacle() -> None:
    (node,) = graph_of(
        "(float[N,8,5,6] x) => (float[] y) <int64[3] shape = {0, 8, -1}> { y = Reshape(x, shape) }"
    ).nodes
    assert axis_after(node, 1) == 1


def test_two_axes_of_one_size_are_told_apart() -> None:
    (node,) = graph_of(
        "(float[2,6,6,6] x) => (float[] y) <int64[3] shape = {2, 36, 6}> { y = Reshape(x, shape) }"
    ).nodes
    assert [axis_after(node, axis) for axis in range(4)] == [0, None, None, 2]
