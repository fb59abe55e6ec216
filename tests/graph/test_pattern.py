"""The matcher: what each kind of pattern fits, in which order it tries, and what it says when nothing fits."""

import pytest
from textgraph import digest, graph_of

from onnxvitq.graph.pattern import MAX_RUN, Const, Match, Miss, OneOf, Op, Pattern, Through, Var, match, producer

BIASED = "(float[N,4] x) => (float[A,B] y) <float[4,4] W, float[4] b> { p = MatMul(x, W) y = Add(p, b) }"
LINEAR = Op("Add", (Op("MatMul", (Var("x"), Const("W", rank=2)), name="product"), Const("b")), name="sum")


def found(pattern: Pattern, text: str, tensor: str = "y") -> Match:
    result = match(pattern, graph_of(text).tensors()[tensor])
    assert isinstance(result, Match), result
    return result


def missed(pattern: Pattern, text: str, tensor: str = "y") -> Miss:
    result = match(pattern, graph_of(text).tensors()[tensor])
    assert isinstance(result, Miss), result
    return result


def names(result: Match) -> dict[str, str]:
    return {name: tensor.name for name, tensor in result.tensors.items()}


def test_a_match_binds_tensors_and_nodes() -> None:
    result = found(LINEAR, BIASED)
    assert names(result) == {"x": "x", "W": "W", "b": "b"}
    assert {name: node.name for name, node in result.nodes.items()} == {"product": "p", "sum": "y"}
    assert result.tags == {}
    assert result.runs == {}


def test_var_takes_inputs_and_computed_tensors_but_no_constant() -> None:
    assert names(found(Var("v"), BIASED, "x")) == {"v": "x"}
    assert names(found(Var("v"), BIASED, "p")) == {"v": "p"}
    assert missed(Var("v"), BIASED, "b") == Miss("b: expected a computed tensor, got a constant", 0)


def test_const_takes_constants_only() -> None:
    assert names(found(Const("c"), BIASED, "b")) == {"c": "b"}
    assert missed(Const("c"), BIASED, "p") == Miss("p: expected a constant, got a computed tensor", 0)
    assert missed(Const("c"), BIASED, "x") == Miss("x: expected a constant, got a computed tensor", 0)


def test_const_restricts_the_rank() -> None:
    assert isinstance(found(Const("c", rank=1), BIASED, "b"), Match)
    assert missed(Const("c", rank=2), BIASED, "b") == Miss("b: expected a constant of rank 2, got shape [4]", 0)


@pytest.mark.parametrize("value", [1.4142135, 1.4142, 1.41432, 1.41408])
def test_a_scalar_is_equal_within_one_part_in_ten_thousand(value: float) -> None:
    text = f"(float[N] x) => (float[A] y) <float[1] c = {{{value}}}> {{ y = Mul(x, c) }}"
    assert isinstance(found(Const("root", 2**0.5), text, "c"), Match)


@pytest.mark.parametrize(
    "constant", ["float c = {1.4145}", "float c = {1.4140}", "float c = {0}", "float[2] c = {1.4142, 1.4142}"]
)
def test_a_scalar_is_not_another_value_or_a_vector(constant: str) -> None:
    text = f"(float[2] x) => (float[A] y) <{constant}> {{ y = Mul(x, c) }}"
    assert missed(Const("root", 2**0.5), text, "c") == Miss("c: expected the constant 1.4142", 0)


@pytest.mark.parametrize(
    ("tensor", "got"),
    [("x", "a graph input"), ("b", "a constant"), ("p", "MatMul")],
    ids=["input", "constant", "other"],
)
def test_an_operator_that_is_not_there_is_named_with_what_is(tensor: str, got: str) -> None:
    assert missed(Op("Softmax"), BIASED, tensor) == Miss(f"{tensor}: expected Softmax, got {got}", 0)


def test_an_operator_may_be_one_of_several() -> None:
    assert isinstance(found(Op(("Sub", "Add")), BIASED), Match)
    assert missed(Op(("Sub", "Div")), BIASED) == Miss("y: expected Sub or Div, got Add", 0)


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_operands_of_add_and_mul_fit_in_either_order(operator: str) -> None:
    pattern = Op(operator, (Var("x"), Const("c")))
    for order in ("x, c", "c, x"):
        text = f"(float[N] x) => (float[A] y) <float[1] c> {{ y = {operator}({order}) }}"
        assert names(found(pattern, text)) == {"x": "x", "c": "c"}


@pytest.mark.parametrize("operator", ["Sub", "Div", "Pow", "MatMul"])
def test_operands_of_others_fit_in_their_own_order_only(operator: str) -> None:
    pattern = Op(operator, (Var("x"), Const("c")))
    text = f"(float[4] x) => (float y) <float[4] c> {{ y = {operator}(x, c) }}"
    assert isinstance(found(pattern, text), Match)
    assert missed(pattern, text.replace("(x, c)", "(c, x)")) == Miss("c: expected a computed tensor, got a constant", 1)


def test_a_name_used_twice_stands_for_one_tensor() -> None:
    square = Op("Mul", (Var("x"), Var("x")))
    assert isinstance(found(square, "(float[N] x, float[N] z) => (float[A] y) { y = Mul(x, x) }"), Match)
    reason = "z: expected the same tensor as 'x' elsewhere in the pattern"
    assert missed(square, "(float[N] x, float[N] z) => (float[A] y) { y = Mul(x, z) }") == Miss(reason, 1)


def test_matching_goes_back_when_a_later_operand_does_not_fit() -> None:
    # Add(a, b) with a first taken for "left" fails at the second operand; the other order fits.
    pattern = Op("Add", (Var("left"), Op("Relu", (Var("x"),))))
    text = "(float[N] x) => (float[A] y) { r = Relu(x) e = Exp(x) y = Add(r, e) }"
    assert names(found(pattern, text)) == {"left": "e", "x": "x"}


def test_matching_goes_back_into_an_operand_that_fitted() -> None:
    # The inner Mul fits both ways; only with "a" = p does the outer operand agree.
    pattern = Op("Sub", (Op("Mul", (Var("a"), Var("b"))), Op("Relu", (Var("a"),))))
    text = "(float[N] x, float[N] z) => (float[A] y) { m = Mul(x, z) r = Relu(z) y = Sub(m, r) }"
    assert names(found(pattern, text)) == {"a": "z", "b": "x"}


def test_inputs_beyond_those_of_the_pattern_are_optional() -> None:
    norm = Op("LayerNormalization", (Var("x"), Const("gamma")))
    text = "(float[N,4] x) => (float[A,B] y) <float[4] g, float[4] b> { y = LayerNormalization(x, g, b) }"
    assert isinstance(found(norm, text), Match)
    assert isinstance(found(norm, text.replace("g, b)", "g)")), Match)


def test_too_few_inputs_are_a_miss() -> None:
    pattern = Op("Clip", (Var("x"), Const("low"), Const("high")))
    text = "(float[N] x) => (float[A] y) <float low = {0}> { y = Clip(x, low) }"
    assert missed(pattern, text) == Miss("y: expected 3 inputs, got 2", 0)


LAYOUT = frozenset({"Reshape", "Transpose"})
RUN = (
    "(float[2,4] x) => (float[A,B] y) <int64[2] s = {8, 1}>"
    "{ r = Relu(x) a = Reshape(r, s) b = Transpose<perm = [1, 0]>(a) y = Reshape(b, s) }"
)


def test_through_passes_any_number_of_nodes_and_binds_them_outermost_first() -> None:
    result = found(Through(LAYOUT, Op("Relu", (Var("x"),)), name="run"), RUN)
    assert [node.name for node in result.runs["run"]] == ["y", "b", "a"]
    nothing = found(Through(LAYOUT, Op("Relu"), name="run"), RUN, "r")
    assert nothing.runs["run"] == ()


def test_through_stops_at_the_first_place_that_fits() -> None:
    result = found(Through(LAYOUT, Var("end"), name="run"), RUN)
    assert names(result) == {"end": "y"}
    assert result.runs["run"] == ()


def test_through_stops_at_a_node_of_another_kind() -> None:
    miss = missed(Through(LAYOUT, Op("Exp")), RUN)
    assert miss == Miss("r: expected Exp, got Relu", 3)


def test_through_follows_every_computed_operand() -> None:
    pattern = Through(frozenset({"Add"}), Op("Softmax", name="softmax"))
    text = "(float[N] x, float[N] m) => (float[A] y) { s = Softmax(x) a = Add(m, s) y = Add(a, x) }"
    assert found(pattern, text).nodes["softmax"].name == "s"


def test_through_gives_up_on_an_endless_run() -> None:
    chain = " ".join(f"t{i + 1} = Transpose<perm = [1, 0]>(t{i})" for i in range(MAX_RUN + 3))
    text = f"(float[2,2] x) => (float[A,B] y) {{ t0 = Relu(x) {chain} y = Transpose<perm = [1, 0]>(t{MAX_RUN + 3}) }}"
    assert missed(Through(LAYOUT, Op("Relu")), text).depth <= MAX_RUN + 1


def test_one_of_takes_the_first_option_that_fits_and_tags_it() -> None:
    pattern = OneOf((("sub", Op("Sub")), ("biased", LINEAR), ("any", Op("Add"))), tag="form")
    result = found(pattern, BIASED)
    assert result.tags == {"form": "biased"}
    assert "product" in result.nodes


def test_one_of_takes_the_option_that_leads_to_a_complete_match() -> None:
    # "narrow" fits here, but what follows does not agree with it.
    inner = OneOf((("narrow", Op("Relu", (Var("x"),))), ("wide", Var("x"))), tag="form")
    pattern = Op("Sub", (inner, Op("Exp", (Var("x"),))))
    text = "(float[N] x) => (float[A] y) { r = Relu(x) e = Exp(r) y = Sub(r, e) }"
    result = found(pattern, text)
    assert result.tags == {"form": "wide"}
    assert names(result) == {"x": "r"}


def test_a_miss_of_all_options_reports_the_one_that_came_furthest() -> None:
    near = Op("Add", (Op("MatMul", (Op("Relu"), Const("W"))), Const("b")))
    pattern = OneOf((("far", Op("Sub")), ("near", near), ("far too", Op("Div"))), tag="form")
    assert missed(pattern, BIASED) == Miss("x: expected Relu, got a graph input", 2)


def test_depth_counts_the_nodes_matched_on_the_way() -> None:
    chain = "(float[N] x) => (float[A] y) { a = Exp(x) b = Relu(a) y = Sqrt(b) }"
    assert missed(Op("Abs"), chain).depth == 0
    assert missed(Op("Sqrt", (Op("Abs"),)), chain).depth == 1
    assert missed(Op("Sqrt", (Op("Relu", (Op("Abs"),)),)), chain).depth == 2
    assert missed(Op("Sqrt", (Op("Relu", (Op("Exp", (Const("c"),)),)),)), chain).depth == 3


def test_the_first_of_equally_deep_reasons_is_kept() -> None:
    pattern = Op("Add", (Op("Relu"), Op("Exp")))
    text = "(float[N] x) => (float[A] y) { a = Sin(x) b = Cos(x) y = Add(a, b) }"
    assert missed(pattern, text) == Miss("a: expected Relu, got Sin", 1)


def test_matching_never_changes_the_graph() -> None:
    graph = graph_of(BIASED)
    before = digest(graph)
    for pattern in (LINEAR, Op("Sub"), Through(LAYOUT, Var("x")), OneOf((("a", LINEAR), ("b", Var("x"))))):
        for tensor in graph.tensors().values():
            match(pattern, tensor)
    assert digest(graph) == before


def test_patterns_are_values() -> None:
    assert Op("Add", (Op("MatMul", (Var("x"), Const("W", rank=2)), name="product"), Const("b")), name="sum") == LINEAR
    assert len({LINEAR, Var("x"), Var("x"), Const("c", 1.0)}) == 3


def test_producer_is_the_node_behind_a_tensor() -> None:
    tensors = graph_of(BIASED).tensors()
    made = producer(tensors["p"])
    assert made is not None
    assert made.name == "p"
    assert producer(tensors["x"]) is None
    assert producer(tensors["b"]) is None


MIXED = (
    "(float[2,3,4,4] x) => (float[A,B,C,D] y) <float[4,4] W, float[2,3,4,4] e>"
    "{ s = Softmax(x) m = MatMul(s, W) t = Transpose<perm = [0, 2, 1, 3]>(m) y = Transpose<perm = [1, 0, 2, 3]>(t) }"
)


def test_through_passes_a_product_with_a_matrix_only_when_mixing_is_let_through() -> None:
    mixing = Through(LAYOUT, Op("Softmax"), name="run", mixing=True)
    assert [node.name for node in found(mixing, MIXED).runs["run"]] == ["y", "t", "m"]
    assert [node.name for node in found(mixing, MIXED.replace("(s, W)", "(W, s)")).runs["run"]] == ["y", "t", "m"]
    assert missed(Through(LAYOUT, Op("Softmax")), MIXED) == Miss("m: expected Softmax, got MatMul", 2)


def test_mixing_does_not_let_a_product_of_two_activations_through() -> None:
    text = MIXED.replace("MatMul(s, W)", "MatMul(s, x)")
    assert missed(Through(LAYOUT, Op("Softmax"), mixing=True), text) == Miss("m: expected Softmax, got MatMul", 2)


def test_through_takes_the_nearest_place_that_fits() -> None:
    # The second operand of the last addition is nearer than what is behind its first.
    pattern = Through(frozenset({"Add"}), Op("Relu", name="end"), name="run")
    text = "(float[N] x) => (float[A] y) { f = Relu(x) a = Add(f, x) b = Add(a, x) n = Relu(x) y = Add(b, n) }"
    result = found(pattern, text)
    assert result.nodes["end"].name == "n"
    assert [node.name for node in result.runs["run"]] == ["y"]


def test_through_tries_every_tensor_once_on_the_shortest_way() -> None:
    # Each addition doubles the ways to x; tried one by one they would never end.
    chain = " ".join(f"a{i + 1} = Add(a{i}, a{i})" for i in range(MAX_RUN - 1))
    text = f"(float[N] x) => (float[A] y) {{ a0 = Relu(x) {chain} y = Add(a{MAX_RUN - 1}, a0) }}"
    result = found(Through(frozenset({"Add"}), Op("Relu"), name="run"), text)
    assert [node.name for node in result.runs["run"]] == ["y"]
    assert missed(Through(frozenset({"Add"}), Op("Exp")), text).depth <= MAX_RUN + 1


def test_through_goes_no_further_than_its_longest_run() -> None:
    def chain(length: int) -> str:
        nodes = " ".join(f"t{i + 1} = Transpose<perm = [1, 0]>(t{i})" for i in range(length - 1))
        return (
            f"(float[2,2] x) => (float[A,B] y) {{ t0 = Relu(x) {nodes} y = Transpose<perm = [1, 0]>(t{length - 1}) }}"
        )

    pattern = Through(LAYOUT, Op("Relu"), name="run")
    assert len(found(pattern, chain(MAX_RUN)).runs["run"]) == MAX_RUN
    assert missed(pattern, chain(MAX_RUN + 1)).depth == MAX_RUN
