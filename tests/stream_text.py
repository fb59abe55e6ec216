"""The text transformer with a stream of its own: tokens are embedded from patches, and positions added."""

from transformer_text import transformer

EMBEDDED = "(float[N,T,8] patches)"


def embedded(*, depth: int = 2, **changes: str) -> str:
    """patches (N, T, 8) => logits; ``changes``: what is written in place of what, by any key, as "old -> new"."""
    text = transformer(depth=depth)
    text = text.replace("(float[N,T,32] tokens)", EMBEDDED)
    text = text.replace(
        "> {",
        ", float[8,32] e_W, float[32] e_b, float[5,32] positions> { embedded = MatMul(patches, e_W) "
        "placed = Add(embedded, e_b) tokens = Add(placed, positions)",
        1,
    )
    for change in changes.values():
        old, new = change.split(" -> ")
        assert old in text, old
        text = text.replace(old, new)
    return text


def with_weights(text: str, weights: str) -> str:
    """The text with more constants."""
    return text.replace("> {", f", {weights}> {{", 1)
