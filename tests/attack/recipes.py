"""What a small transformer is made of, and a hypothesis strategy that draws such recipes."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

LAYOUTS = ("tokens", "tokens first", "image", "channels first")
ATTENTIONS = (
    "split", "packed", "packed split", "grouped", "cross", "windows", "linear", "queries",
    "com.microsoft Attention", "com.microsoft MultiHeadAttention", "Attention",
)  # fmt: skip
SCALES = ("after", "on q", "on k", "on both", "folded", "double")
MASKS = ("none", "-inf", "-3.4e38", "-1e9", "all of a row", "bool input", "bias")
NORMS = ("layer", "layer in parts", "rms in parts", "rms", "batch")
ACTIVATIONS = ("erf gelu", "tanh gelu", "gelu", "relu", "silu", "hard swish", "quick gelu")
FFNS = ("plain", "gated", "gated packed", "none")
LINEARS = ("matmul", "bias first", "no bias", "gemm", "conv", "transposed")
OUTPUTS = (
    "logits", "tokens", "hidden", "probs", "scores", "query", "value", "context", "ffn hidden", "label", "mask", "boxes",
    "sequence", "constant", "unit vector", "shape", "input", "probabilities", "zero rows",
)  # fmt: skip
SUBGRAPHS = ("none", "if reads hidden", "loop reads hidden", "if before head")
MAGNITUDES = (
    "usual", "tiny head", "denormal head", "huge head", "largest head", "tiny input", "huge input", "tiny values",
    "huge values", "tiny ffn", "huge ffn", "outlier ffn", "outlier values", "outlier query", "outlier norm", "outlier fc1",
    "outlier embed", "zero rows", "zero layer", "one weight", "large bias", "huge bias", "constant output", "one-hot",
    "dead norm", "flat input", "zero input", "tiny logits of tiny norm", "constant feature", "outlier token",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One small transformer.

    Attributes:
        seed: of weights and samples.
        opset: 11 to 23.
        dtype: of the whole graph.
        layout: of inputs and of hidden tensors.
        batch: 0 for a free one, or its size.
        depth: blocks.
        shared: every block has the weights of the first.
        attention: form of each block's attention.
        scale: where scores are scaled.
        mask: what is added to scores.
        norm: kind and form of normalisations.
        post_norm: after each residual add, not before its branch.
        activation: of the feed-forward part.
        ffn: form of the feed-forward part.
        linear: form of linear layers.
        outputs: kinds, in order.
        subgraph: what reads a hidden tensor inside.
        magnitude: where sizes are unusual.
    """

    seed: int = 0
    opset: int = 17
    dtype: str = "float32"
    layout: str = "tokens"
    batch: int = 0
    depth: int = 1
    shared: bool = False
    attention: str = "split"
    scale: str = "after"
    mask: str = "none"
    norm: str = "layer"
    post_norm: bool = False
    activation: str = "erf gelu"
    ffn: str = "plain"
    linear: str = "matmul"
    outputs: tuple[str, ...] = ("logits",)
    subgraph: str = "none"
    magnitude: str = "usual"

    def __post_init__(self) -> None:
        for value, known in (
            (self.layout, LAYOUTS), (self.attention, ATTENTIONS), (self.scale, SCALES), (self.mask, MASKS),
            (self.norm, NORMS), (self.activation, ACTIVATIONS), (self.ffn, FFNS), (self.linear, LINEARS),
            (self.subgraph, SUBGRAPHS), (self.magnitude, MAGNITUDES),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"expected one of {known}, got {value!r}")

    @property
    def heads_in_view(self) -> bool:
        """Whether the attention is written out, so that its inner tensors can be outputs."""
        return not self.attention.endswith("Attention") and self.attention != "linear"

    def __repr__(self) -> str:
        """What differs from the plainest recipe, as Python text that makes this one."""
        plain = type(self).__dataclass_fields__
        parts = [f"{name}={getattr(self, name)!r}" for name in plain if getattr(self, name) != plain[name].default]
        return f"Recipe({', '.join(parts)})"


@st.composite
def recipes(draw: st.DrawFn, /, **fixed: Any) -> Recipe:
    """A valid recipe; shrinks towards the plainest one.

    Args:
        draw: hypothesis's.
        fixed: fields that are not drawn.
    """

    def pick(name: str, choices: Any) -> Any:
        return fixed[name] if name in fixed else draw(st.sampled_from(tuple(choices)))

    opset = pick("opset", (17, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23))
    dtype = pick("dtype", ("float32",) * 6 + ("float16",))
    layout = pick("layout", LAYOUTS)
    channels_first = layout == "channels first"
    attention = pick(
        "attention",
        [
            one
            for one in ATTENTIONS
            if not (channels_first and one not in {"split", "linear"})
            and not (layout == "tokens first" and (one in {"windows", "queries"} or one.endswith("Attention")))
            and not (one == "Attention" and opset < 23)
        ],
    )
    written = not attention.endswith("Attention") and attention != "linear"
    scale = pick("scale", SCALES if written else ("after",))
    masks = [one for one in MASKS if not (one == "bool input" and attention == "windows")]
    mask = pick("mask", masks if written and not channels_first else ("none",))
    norm = pick(
        "norm", [one for one in NORMS if not (one == "layer" and opset < 17) and not (one == "rms" and opset < 23)]
    )
    activation = pick("activation", [one for one in ACTIVATIONS if not (one == "gelu" and opset < 20)])
    shown = [
        one
        for one in OUTPUTS
        if (written or one not in {"probs", "scores", "query", "value", "context"})
        and not (channels_first and one == "context")
    ]
    outputs = fixed["outputs"] if "outputs" in fixed else tuple(
        draw(st.lists(st.sampled_from(shown), min_size=1, max_size=4, unique=True))
    )  # fmt: skip
    return Recipe(
        seed=pick("seed", range(100)),
        opset=opset,
        dtype=dtype,
        layout=layout,
        batch=pick("batch", (0, 1, 2)),
        depth=pick("depth", (1, 2)),
        shared=pick("shared", (False, False, True)),
        attention=attention,
        scale=scale,
        mask=mask,
        norm=norm,
        post_norm=pick("post_norm", (False, False, True)),
        activation=activation,
        ffn=pick("ffn", FFNS),
        linear=pick("linear", ("matmul",) if channels_first else LINEARS),
        outputs=outputs,
        subgraph=pick("subgraph", ("none",) * 5 + SUBGRAPHS),
        magnitude=pick("magnitude", ("usual",) * 8 + (MAGNITUDES if dtype == "float32" else ("usual", "zero rows"))),
    )
