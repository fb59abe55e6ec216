"""Canonical form: the many ways in which exporters write the same layer become one, before anything is searched or measured.

Each pass (``graph/passes``) is one function ``graph -> number of edits``. It is idempotent, and leaves the outputs as they
are up to float rounding. Passes remove waste from the *written* model too, because the quantized model is made from the
canonical graph. The rules of a pass are numbered in its docstring; the code cites them.
"""

from collections.abc import Callable

import onnx_graphsurgeon as gs

from onnxvitq.graph.passes.activations import fuse_hard_swish
from onnxvitq.graph.passes.attention import merge_flat_softmax, open_attention
from onnxvitq.graph.passes.channels import fold_batch_norm, fold_channel_scales, fold_channel_shifts
from onnxvitq.graph.passes.constants import fold_constants, static_reshapes
from onnxvitq.graph.passes.convolutions import patch_convolution, pointwise_convolution
from onnxvitq.graph.passes.einsum import open_einsum
from onnxvitq.graph.passes.fused import open_fused
from onnxvitq.graph.passes.layout import merge_layout, merge_reshapes, merge_transposes
from onnxvitq.graph.passes.linears import gemm_to_matmul
from onnxvitq.graph.passes.no_ops import remove_nan_guard, remove_no_ops
from onnxvitq.graph.passes.packed import split_packed_linears
from onnxvitq.graph.passes.scales import fold_scalar_scales
from onnxvitq.graph.passes.selection import pick_early
from onnxvitq.graph.shapes import infer_shapes
from onnxvitq.graph.validate import check_graph

Pass = Callable[[gs.Graph], int]
MAX_ROUNDS = 8  # shapes that one pass makes known let another go on; real graphs need two or three rounds
PASSES: tuple[Pass, ...] = (
    open_fused,
    fold_constants,
    static_reshapes,
    open_attention,
    merge_flat_softmax,
    remove_no_ops,
    remove_nan_guard,
    open_einsum,
    gemm_to_matmul,
    fold_batch_norm,
    patch_convolution,
    pointwise_convolution,
    split_packed_linears,
    merge_layout,
    merge_transposes,
    merge_reshapes,
    fold_channel_scales,
    fold_channel_shifts,
    fuse_hard_swish,
    fold_scalar_scales,
)
SHAPES_STAY_KNOWN = frozenset(
    {remove_nan_guard, gemm_to_matmul, merge_transposes, merge_reshapes, fold_scalar_scales, pick_early}
)


def canonicalise(graph: gs.Graph) -> dict[str, int]:
    """Run all passes until none finds anything to do. The graph is valid, sorted and shape-inferred afterwards.

    Returns:
        Name of each pass -> number of its edits.

    Raises:
        InvalidGraphError: a pass left an invalid graph; the error names the pass.
    """
    edits = dict.fromkeys((rewrite.__name__ for rewrite in PASSES), 0)
    for _ in range(MAX_ROUNDS):
        before = sum(edits.values())
        for rewrite in PASSES:
            edits[rewrite.__name__] += run_pass(graph, rewrite)
        if sum(edits.values()) == before:
            break
    return edits


def run_pass(graph: gs.Graph, rewrite: Pass, *, shapes_stay_known: bool = False) -> int:
    """Run one pass until it finds nothing more to do, and return its number of edits.

    The graph is cleaned up, sorted, checked and shape-inferred afterwards.

    Args:
        graph: edited in place.
        rewrite: the pass.
        shapes_stay_known: of a pass that is none of ``PASSES``: its edits leave no shape to infer.

    Raises:
        InvalidGraphError: the pass left an invalid graph.
    """
    total = 0
    for _ in range(MAX_ROUNDS):
        count = rewrite(graph)
        if not count:
            break
        total += count
        graph.cleanup().toposort()
        check_graph(graph, f"pass {rewrite.__name__}")
        if not (shapes_stay_known or rewrite in SHAPES_STAY_KNOWN):
            infer_shapes(graph)
    return total
