"""``onnxvitq inspect``: what is found in a model, and what is not."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


if TYPE_CHECKING:
    from onnxvitq.api import Inspection


def run(arguments: Sequence[str]) -> int:
    """Print what is found; 0."""
    args = read(parser().parse_args(arguments), InspectOptions)
    from onnxvitq.api import inspect

    inspection = inspect(args.model)
    if args.json:
        sys.stdout.write(json.dumps(inspection.report.to_dict(), indent=2) + "\n")
    else:
        _print_inspection(inspection)
    return 0


def _print_inspection(inspection: "Inspection") -> None:
    graph, blockmap = inspection.report.graph, inspection.blockmap
    console = console_of_results()
    console.print(
        f"{inspection.report.model}: {graph.blocks} blocks, {graph.attention} attentions, "
        f"{graph.linears.found} linears, {graph.patch_embedding.found} patch embeddings, "
        f"{graph.norms} norms, {len(graph.unmatched)} unmatched",
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
