"""A branch in the written graph: what it computes, what it runs on, and what branches share."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import difference, feeds_of, model_of, run

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import NumberFormat, TensorFormat
from onnxvitq.core.plan import Branch, Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.low_rank.fit import FACTOR_A, FACTOR_B, INNER, quantized_linear
from onnxvitq.fit.steps.ranges import fit_ranges
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.query import constants
from onnxvitq.graph.reading import to_graph
from onnxvitq.graph.writing import to_proto
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_weight
from onnxvitq.report.model_records import LayerCounts
from onnxvitq.targets.ort_cpu.branches import branch_names
from onnxvitq.targets.ort_cpu.kernels import audit
from onnxvitq.targets.ort_cpu.layout import apply_plan

TEXT = (
    "(float[N,5,32] x, float[N,2,5,4] q) => (float[A,B,C] y, float[A,B,C] u, float[D,E,F,G] z)"
    "<float[32,24] W, float[24] b, float[32,16] V>"
    "{ p = MatMul(x, W) y = Add(p, b) u = MatMul(x, V) k = Transpose<perm = [0, 1, 3, 2]>(q) s = MatMul(q, k)"
    " w = Softmax<axis = -1>(s) z = MatMul(w, q) }"
)


def branch(inputs: int, outputs: int, seed: int) -> Branch:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((inputs, 3), (3, outputs)))
    inner = params_from_range(-12.0, 12.0, INNER)
    return Branch(
        a=a,
        b=b,
        a_params=params_from_weight(a, FACTOR_A),
        b_params=params_from_weight(b, FACTOR_B),
        inner=inner,
    )


class Case:
    """A linear with a bias and one without that read one tensor; 7-bit weights, which no processor saturates."""

    def __init__(self, branches: dict[str, Branch]) -> None:
        proto = model_of(TEXT)
        self.feeds = feeds_of(proto, N=2)
        self.graph = to_graph(proto)
        canonicalise(self.graph)
        self.blockmap = find_blocks(self.graph, "test")
        names = {name for linear in self.blockmap.linears for name in (linear.weight, linear.bias) if name}
        self.layers = Layers(blockmap=self.blockmap, constants=constants(self.graph, names))
        plan = make_plan(self.blockmap, QuantConfig(bits="w7a8", attention="float"))
        bounds = (float(self.feeds["x"].min()), float(self.feeds["x"].max()))
        plan = fit_ranges(self.layers, plan, Statistics(count=1, ranges={"x": bounds}))
        self.plan = plan.with_branches(branches)

    def written(self, plan: QuantPlan | None = None) -> onnx.ModelProto:
        proto = to_proto(apply_plan(self.graph, self.layers, plan or self.plan), {})
        onnx.checker.check_model(proto, full_check=True)
        return proto


def two_branches() -> dict[str, Branch]:
    first = branch(32, 24, 0)
    second = branch(32, 16, 1)
    return {"p": first, "u": replace(second, a=first.a, a_params=first.a_params)}


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_it_computes_what_fake_quantization_says(level: str) -> None:
    case = Case(two_branches())
    found = run(case.written(), case.feeds, level)[:2]
    expected = [
        quantized_linear(case.layers, case.plan, case.layers.blockmap.linear(name))(case.feeds["x"]) for name in "pu"
    ]
    without = run(case.written(replace(case.plan, branches={})), case.feeds, level)[:2]
    assert difference(without, expected) > 0.5  # the branch is most of it
    # A code of z A that lies on a tie may fall to either side; one step of it, through B, is under a hundredth here.
    assert difference(found, expected) < 0.01
    read = fake_quantize(case.feeds["x"], case.plan.params("x"))  # type: ignore[arg-type]
    one = case.plan.branches["p"]
    inner = fake_quantize(read @ fake_quantize(one.a, one.a_params), one.inner)
    assert difference([found[0] - without[0]], [inner @ fake_quantize(one.b, one.b_params)]) < 0.01


def test_both_products_run_on_integers_and_the_first_is_shared(tmp_path: Path) -> None:
    case = Case(two_branches())
    written = case.written()
    counts = Counter(node.op_type for node in written.graph.node)
    assert counts["Gemm"] == 5  # two linears, one A, two B
    assert counts["QuantizeLinear"] == 2
    assert branch_names(case.plan, case.blockmap) == {
        "p": ("p_branch_a", "p_branch_b"),
        "u": ("p_branch_a", "u_branch_b"),
    }
    onnx.save(written, tmp_path / "written.onnx")
    audited = audit(tmp_path / "written.onnx", case.blockmap, case.plan, 1)
    assert audited.sound
    assert audited.branches == LayerCounts(found=4, quantized=4, integer_kernels=4)
    assert audited.linears.integer_kernels == 2


def test_a_branch_that_lost_its_kernel_is_named(tmp_path: Path) -> None:
    case = Case(two_branches())
    written = case.written()
    lost = next(node for node in written.graph.node if node.name == "u_branch_b")
    quantized = next(node for node in written.graph.node if node.output[0] == lost.input[0])
    codes = next(node for node in written.graph.node if node.output[0] == quantized.input[0])
    lost.input[0] = codes.input[0]  # z A in float
    onnx.save(written, tmp_path / "written.onnx")
    audited = audit(tmp_path / "written.onnx", case.blockmap, case.plan, 1)
    assert not audited.sound
    assert "u B" in audited.branches.reasons


def test_beside_a_simulated_layer_the_side_that_reads_its_input_is_simulated(tmp_path: Path) -> None:
    case = Case(two_branches())
    int16 = TensorFormat(NumberFormat(bits=16, signed=True, symmetric=True))
    params = params_from_range(float(case.feeds["x"].min()), float(case.feeds["x"].max()), int16)
    decisions = {**case.plan.decisions, "x": replace(case.plan.decisions["x"], spec=int16, params=params)}
    plan = replace(case.plan, decisions=decisions)
    onnx.save(case.written(plan), tmp_path / "written.onnx")
    audited = audit(tmp_path / "written.onnx", case.blockmap, plan, 1)
    assert audited.sound
    assert (audited.linears.integer_kernels, audited.linears.simulated) == (0, 2)
    assert (audited.branches.integer_kernels, audited.branches.simulated) == (2, 2)
    assert audited.branches.reasons.keys() == {"p A", "u A"}


def test_different_factors_are_not_shared() -> None:
    case = Case({"p": branch(32, 24, 0), "u": branch(32, 16, 1)})
    assert Counter(node.op_type for node in case.written().graph.node)["Gemm"] == 6
    assert branch_names(case.plan, case.blockmap)["u"] == ("u_branch_a", "u_branch_b")


def test_bytes_of_a_branch() -> None:
    assert branch(32, 24, 0).nbytes == 3 * (32 + 24) + 4 * (3 + 1)
