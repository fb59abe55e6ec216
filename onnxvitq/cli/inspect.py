"""``onnxvitq inspect``: what is found in a model, and what is not."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxvitq.cli.arguments import Parser, read
from onnxvitq.cli.console import console_of_results, new_table
from onnxvitq.cli.shared_options import JsonOption
from onnxvitq.core.options import required


@dataclass(frozen=True, kw_only=True)
class InspectOptions(JsonOption):
    """Which model to look at."""

    title = ""

    model: Path = required(help="Float ONNX model.", positional=True)


def parser() -> Parser:
    """The command's parser."""
    description = "Print which layers of a model can be quantized, and why the others cannot."
    return Parser("onnxvitq inspect", description, InspectOptions)


def run(arguments: Sequence[str]) -> int:
    """Print what is found; 0."""
    args = read(parser().parse_args(arguments), InspectOptions)
    from onnxvitq.api import inspect

    described, blockmap = inspect(args.model)
    if args.json:
        sys.stdout.write(json.dumps(described, indent=2) + "\n")
        return 0
    console = console_of_results()
    console.print(
        f"{args.model}: {described['blocks']} blocks, {described['attention']} attentions, "
        f"{described['linears']['found']} linears, {described['patch_embedding']['found']} patch embeddings, "
        f"{described['norms']} norms, {len(described['unmatched'])} unmatched",
        soft_wrap=True,
    )
    attentions = new_table("Attention", "block", "attention", "heads", "keys", "head width", "MLPs")
    for block, found in zip(blockmap.blocks, blockmap.attentions, strict=True):
        mlps = ", ".join(f"{mlp.activation}" for mlp in block.mlps)
        attentions.add_row(
            str(block.index), found.name, *(str(size or "?") for size in (found.heads, found.tokens, found.width)), mlps
        )
    linears = new_table("Linear layers", "role", "linear", "inputs", "outputs")
    for linear in blockmap.linears:
        linears.add_row(linear.role, linear.name, str(linear.in_features), str(linear.out_features))
    console.print(attentions, linears)
    if blockmap.unmatched:
        unmatched = new_table("Unmatched", "operator", "node", "why it stays float")
        for entry in blockmap.unmatched:
            unmatched.add_row(entry.op, entry.name, entry.reason)
        console.print(unmatched)
    return 0
