"""A configuration without defaults, and one with an option that the package does not have."""

from dataclasses import dataclass
from typing import Any

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.options import option
from onnxvitq.core.quantize_options import CONFIG_VERSION

OTHER: dict[str, Any] = {  # nothing at its default
    "version": CONFIG_VERSION,
    "method": "aiqvit",
    "iterations": 77,
    "branch_budget": 0.25,
    "ranks": "darts",
    "curriculum": True,
    "objective": "ranking",
    "candidates": 7,
    "rounds": 5,
    "effort": "best",
    "skip": ["bias", "weights"],
    "also": ["rotation"],
    "acceptance": "always",
    "activations": "dynamic",
    "attention": "float",
    "preset": "accuracy",
    "bits": "w4a6",
    "bit_overrides": {"*.fc1": "w8a8", "head": "float"},
    "edges_at_8_bits": False,
    "average_bits": 4.5,
    "target_size": None,
    "bit_candidates": ["4", "float"],
    "granularity": "module",
    "criterion": "nuclear",
    "max_drop": 0.01,
    "judged_on": "unseen.npz",
    "sensitivity": True,
    "nodes_to_exclude": ["*.fc1", "block0*"],
    "num_samples": 12,
    "static_batch": 4,
    "external_data": True,
    "target": "arm64",
    "cache": "measured",
    "threads": 3,
    "seed": 99,
}


@dataclass(frozen=True, kw_only=True)
class Extended(QuantConfig):
    """The configuration and one option more, described in one field outside the package."""

    title = "extra"

    noise: int | None = option(None, help="Noise that is added.", least=1, most=5, none="what the data has")
