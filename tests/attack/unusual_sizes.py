"""Weights and samples whose sizes are unusual, each with a float model that is finite and well defined in float32."""

from typing import Any

import numpy as np

WIDTH, HIDDEN = 16, 32
CHANNEL = 3  # the one that is scaled where one is


def _channel(size: int, value: float, copies: int = 1) -> np.ndarray:
    scale = np.ones((copies, size))
    scale[:, CHANNEL] = value
    return scale.reshape(-1)


def _ffn(up: Any, down: Any) -> dict[str, Any]:
    return {"fc1.w": up, "fc1.b": up, "fc2.w": down}


def _weights(kind: str) -> dict[str, Any]:
    """By the end of a weight's name: what it is multiplied with."""
    column, row = _channel(HIDDEN, 1e5), _channel(HIDDEN, 1e-5)[:, None]
    wide, narrow = _channel(WIDTH, 1e5), _channel(WIDTH, 1e-5)
    sparse = np.zeros((WIDTH, WIDTH))
    sparse[2, 5] = 1.0
    kinds: dict[str, dict[str, Any]] = {
        "tiny head": {"head.w": 1e-31, "head.b": 1e-31},
        "denormal head": {"head.w": 1e-39, "head.b": 1e-39},
        "huge head": {"head.w": 1e30, "head.b": 1e30},
        "largest head": {"head.w": 1e37, "head.b": 1e37},
        "tiny input": {"embed.w": 1e31},
        "huge input": {"embed.w": 1e-30},
        "tiny values": {"v.w": 1e-31, "v.b": 1e-31, "proj.w": 1e31},
        "huge values": {"v.w": 1e30, "v.b": 1e30, "proj.w": 1e-30},
        "tiny ffn": {"fc2.w": 1e-31},
        "huge ffn": {"gate.w": 1e25, "gate.b": 1e25, "fc2.w": 1e-25},
        "outlier ffn": {"gate.w": column, "gate.b": column, "fc2.w": row},
        "outlier values": {"v.w": wide, "v.b": wide, "proj.w": narrow[:, None]},
        "outlier query": {"q.w": wide, "q.b": wide, "k.w": narrow, "k.b": narrow},
        "outlier norm": {"norm.ffn.g": wide, "norm.ffn.t": wide, "fc1.w": narrow[:, None], "gate.w": narrow[:, None]},
        "zero rows": {
            "fc1.w": _channel(WIDTH, 0.0)[:, None], "v.w": _channel(WIDTH, 0.0), "q.w": _channel(WIDTH, 0.0),
            "v.b": _channel(WIDTH, 0.0), "q.b": _channel(WIDTH, 0.0), "fc2.w": _channel(WIDTH, 0.0),
        },
        "zero layer": {"fc2.w": 0.0, "k.w": 0.0},
        "one weight": {"proj.w": sparse},
        "large bias": {"fc1.b": 1e4, "fc1.w": 1e-3},
        "huge bias": {"head.b": 1e6, "head.w": 1e-3},
        "constant output": {"head.w": 0.0},
        "one-hot": {"q.w": 300.0, "k.w": 10.0},
        "dead norm": {"norm.attention.g": 0.0},
        "tiny logits of tiny norm": {"last.g": 1e-15, "last.t": 1e-15, "head.w": 1e-20, "head.b": 1e-35},
        "constant feature": {"embed.w": _channel(WIDTH, 0.0)},
        "outlier fc1": {"fc1.w": column, "fc1.b": column, "fc2.w": row},  # exact where a ReLU is between
        "outlier embed": {"embed.w": wide, "embed.b": wide},
    }  # fmt: skip
    return kinds.get(kind, {})


def scale_weights(kind: str, scaled: dict[str, Any]) -> None:
    """Enter what a kind of unusual size multiplies weights with."""
    scaled.update(_weights(kind))


def unusual_sample(kind: str, tokens: np.ndarray) -> np.ndarray:
    """(B, T, C) tokens of the kind."""
    if kind in {"tiny input", "huge input"}:
        return tokens * (1e-31 if kind == "tiny input" else 1e30)
    if kind == "flat input":
        return np.full_like(tokens, 0.75)
    if kind == "zero input":
        return np.zeros_like(tokens)
    if kind == "outlier token":
        tokens = tokens.copy()
        tokens[:, 0] *= 1e3
    return tokens
