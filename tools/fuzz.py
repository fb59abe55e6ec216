"""Random one-node edits of valid graphs: is what onnxvitq writes still the edited graph, or refused with a reason?

    python tools/fuzz.py --folder GRAPHS [--edits 200] [--seed 0] [--kind KIND] [--keep FOLDER]
        [--write [NAME]]

Takes float graphs from a folder in turn (tools/coverage.py --folder makes some), changes one node at random
(tests/graph_edits.py) and holds the canonical form and the integer model against the edited graph (tests/edit_evaluator.py).
The two modules live in tests, which must not need tools: tests/e2e/test_fuzz.py does the same with small graphs. Graphs
that fail are kept with --keep. Exit status 1 when any fails.
"""

import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from tables import Results, Table, columns, finish, parser_of, provenance

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from edit_evaluator import PLENTY_DB, Verdict, blame, evaluate_edit
from graph_edits import EDITS, Edited, draw, observe, prepared

MEMORY = 4 * 2**30  # bytes; an edit that folds the batch into the positions makes onnxruntime ask for far more
MAX_BYTES = 4 * 2**20  # of a graph: larger ones take a minute each
NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|[\w./:-]*[\d_/][\w./:-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One evaluated edit."""

    graph: str
    edited: Edited
    verdict: Verdict


def cases(files: Sequence[Path], edits: int, seed: int, kind: str) -> Iterator[Case]:
    """Edits of the files in a random order, again and again until there are enough; unreadable graphs are left out."""
    rng = np.random.default_rng(seed)
    order: list[Path] = []
    done = 0
    while done < edits:
        order = order or [files[int(index)] for index in rng.permutation(len(files))]
        path = order.pop()
        edited = edit_of(path, rng, kind)
        if edited is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            yield Case(graph=path.stem, edited=edited, verdict=evaluate_edit(edited, Path(scratch)))
        done += 1


def edit_of(path: Path, rng: np.random.Generator, kind: str) -> Edited | None:
    """A random edit of a file; None where the graph takes other than float inputs, is random or no edit is valid."""
    proto = prepared(onnx.load(path))
    if any(node.op_type.startswith("Random") for node in proto.graph.node):
        return None
    if any(one.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for one in proto.graph.input):
        return None
    try:
        seen = observe(proto)
    except Exception:  # noqa: BLE001 - the graph does not run on noise: nothing to hold an edit against
        return None
    return draw(proto, seen, rng, kind)


def show(console: Console, case: Case, keep: Path | None, seconds: float) -> None:
    """One case as it is done; a failing one is kept, with the pass that is to blame where one is."""
    verdict, line = case.verdict, f"{case.graph}: {case.edited.kind}: {case.edited.what}"
    figures = f"{verdict.canonical:.1e}, {verdict.sqnr:.1f} of {verdict.reference:.1f} dB"
    state = "[red]no[/]" if verdict.problems else "[yellow]refused[/]" if verdict.refusal else "[green]ok[/]"
    console.print(f"{state} {seconds:.1f} s ", end="")
    console.print(f"{line}: {verdict.refusal or figures}", highlight=False, markup=False, soft_wrap=True)
    if not verdict.problems:
        return
    for problem in verdict.problems:
        console.print(f"      {problem}", highlight=False, markup=False, soft_wrap=True)
    if keep is None:
        return
    keep.mkdir(parents=True, exist_ok=True)
    name = f"{case.graph}_{re.sub(r'[^A-Za-z0-9]+', '_', case.edited.what)[:80]}.onnx"
    onnx.save(case.edited.proto, keep / name)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            culprit = blame(case.edited, Path(scratch))
        except Exception as error:  # noqa: BLE001 - a pass that crashes is told by the problem above
            culprit = type(error).__name__
    console.print(f"      kept as {name}; pass: {culprit or 'none'}", highlight=False, markup=False, soft_wrap=True)


def results_of(done: Sequence[Case]) -> Results:
    """What was edited, what was refused and why, and the worst figures."""
    written = [case.verdict for case in done if not case.verdict.refusal]
    reasons = Counter(NAMES.sub("...", case.verdict.refusal) for case in done if case.verdict.refusal)
    kinds = Counter(case.edited.kind for case in done)
    failed = sum(bool(case.verdict.problems) for case in done)
    worst = max((verdict.gap for verdict in written), default=0.0)
    about = (
        f"{len(done)} edits of {len({case.graph for case in done})} graphs: {len(written)} written, "
        f"{len(done) - len(written)} refused, {failed} wrong.",
        f"Largest difference of a canonical form {max((v.canonical for v in written), default=0.0):.1e} of the largest "
        f"output; written models at most {worst:.1f} dB worse than plain quantization (beyond {PLENTY_DB:.0f} dB "
        "counts as equal).",
    )
    tables = (
        Table(columns=columns("edit", "graphs"), rows=list(kinds.most_common())),
        Table(columns=columns("refused because", "graphs"), rows=list(reasons.most_common())),
    )
    return Results(name="fuzz", tables=tables, made=provenance(), about=about)


def main() -> int:
    """Draw, evaluate, print; whether all went well."""
    parser = parser_of(__doc__, "fuzz")
    parser.add_argument("--folder", type=Path, action="append", required=True, help="of .onnx files; repeatable")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=tuple(EDITS), default="", help="only this kind of edit")
    parser.add_argument("--keep", type=Path, help="folder for the graphs that fail")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    files = sorted(path for folder in args.folder for path in folder.glob("*.onnx") if path.stat().st_size < MAX_BYTES)
    if not files:
        parser.error(f"no .onnx file in {' or '.join(map(str, args.folder))}")
    console, done, start = Console(), [], time.perf_counter()
    for case in cases(files, args.edits, args.seed, args.kind):
        done.append(case)
        show(console, case, args.keep, time.perf_counter() - start)
        start = time.perf_counter()
    finish(results_of(done), args.write)
    return 1 if any(case.verdict.problems for case in done) else 0


if __name__ == "__main__":
    raise SystemExit(main())
