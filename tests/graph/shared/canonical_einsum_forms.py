"""The forms of ``passes/einsum``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import einsum


def two(equation: str, left: str, right: str, rank: int) -> str:
    """An Einsum of two inputs of these shapes."""
    axes = ",".join("ABCDEF"[:rank])
    return f'(float[{left}] x, float[{right}] z) => (float[{axes}] y) {{ y = Einsum<equation = "{equation}">(x, z) }}'


def weighted(equation: str, shape: str, weight: str, rank: int, order: str = "x, W") -> str:
    """An Einsum of an input and a constant of these shapes."""
    axes = ",".join("ABCDEF"[:rank])
    return f'(float[{shape}] x) => (float[{axes}] y) <float[{weight}] W> {{ y = Einsum<equation = "{equation}">({order}) }}'


PRODUCTS = (
    Form(
        einsum.open_einsum,
        "scores",
        two("bthd,bshd->bhts", "N,5,2,4", "N,6,2,4", 4),
        "Transpose Transpose MatMul",
        (
            NearMiss("three operands", {"bthd,bshd->": "bthd,bshd,bshd->", "(x, z)": "(x, z, z)"}),
            NearMiss("a label twice in one", {"bthd,bshd->bhts": "btdd,bsdd->bts", "4]": "2]", "C,D]": "C]"}),
            NearMiss("a label summed in one only", {"->bhts": "->bhs", "C,D]": "C]"}),
            NearMiss("nothing is summed", {"->bhts": "->bhtsd", "C,D]": "C,D,E]"}),
            NearMiss("everything is summed", {"bthd,bshd->bhts": "bthd,bthd->", "N,6,2,4": "N,5,2,4", "[A,B,C,D]": ""}),
            NearMiss("a head that is broadcast", {"N,6,2,4": "N,6,1,4"}),
            NearMiss("an unknown rank", {"float[N,5,2,4] x": "float[N] e, int64[R] r", "{ y": "{ x = Expand(e, r) y"}),
        ),
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "scores of two unknown numbers of tokens",
        two("bhid, bhjd -> bhij", "N,2,T,4", "N,2,T,4", 4),
        "Transpose MatMul",
        (
            NearMiss("element by element", {"bhid, bhjd -> bhij": "bhid, bhid -> bhid"}),
            NearMiss("with each other", {"bhid, bhjd -> bhij": "b,j->bj", "[N,2,T,4]": "[N]", "[A,B,C,D]": "[A,B]"}),
        ),
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "context",
        two("bhts,bshd->bthd", "N,2,5,6", "N,6,2,4", 4),
        "Transpose MatMul Transpose",
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "an ellipsis on both sides",
        two("...id,...jd->...ij", "N,2,5,4", "N,2,T,4", 4),
        "Transpose MatMul",
        (
            NearMiss("summed over the ellipsis", {"->...ij": "->ij", "[A,B,C,D]": "[A,B]"}),
            NearMiss("broadcast over the ellipsis", {"N,2,5,4": "N,1,5,4"}),
        ),
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "the result said by the order of letters",
        two("bti,itc", "N,5,2", "2,5,4", 2),
        "Reshape Transpose Reshape MatMul",
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "rows and a vector",
        two("btc,bc->bt", "N,5,8", "N,8", 2),
        "Reshape MatMul Reshape",
        exact=False,
    ),
)

LINEAR = weighted("btc,cd->btd", "N,T,8", "8,6", 3)
LINEARS = (
    Form(
        einsum.open_einsum,
        "a weight on the right",
        LINEAR,
        "MatMul",
        (
            NearMiss("its inputs are summed alone", {"btc,cd->btd": "btc,ed->btd"}),
            NearMiss("its outputs are summed", {"->btd": "->bt", "[A,B,C]": "[A,B]"}),
            NearMiss("one a channel", {"btc,cd->btd": "btc,c->btc", "[8,6]": "[8]"}),
        ),
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "a weight on the left",
        weighted("dc,btc->btd", "N,T,8", "6,8", 3, "W, x"),
        "Transpose MatMul",
        exact=False,
    ),
    Form(einsum.open_einsum, "leading axes", weighted("...c,cd->...d", "N,T,3,8", "8,6", 4), "MatMul", exact=False),
    Form(einsum.open_einsum, "no leading axes", weighted("...c,cd->...d", "8", "8,6", 1), "MatMul", exact=False),
    Form(
        einsum.open_einsum,
        "the result said by the order of letters",
        weighted("btc,cd", "N,T,8", "8,6", 3),
        "MatMul Transpose",
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "into heads",
        weighted("btc,chd->bhtd", "N,T,8", "8,2,3", 4),
        "Reshape MatMul Reshape Transpose",
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "out of heads",
        weighted("bhtd,hdc->btc", "N,2,T,3", "2,3,8", 3),
        "Transpose Reshape Reshape MatMul",
        (NearMiss("a width that is broadcast", {"[N,2,T,3]": "[N,2,T,1]"}),),
        exact=False,
    ),
    Form(
        einsum.open_einsum,
        "a matrix for each row of pixels",
        weighted("bhwc,hkc->bhwk", "N,3,5,4", "3,6,4", 4),
        "Transpose Transpose Reshape MatMul Reshape Transpose",
        (NearMiss("two unknown sizes", {"[N,3,5,4]": "[N,3,T,4]"}),),
        exact=False,
    ),
    Form(einsum.open_einsum, "a vector", weighted("btc,c->bt", "N,5,8", "8", 2), "Reshape MatMul Reshape", exact=False),
)
