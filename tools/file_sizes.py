"""Size of the file that each quantizer writes, W8A8, for ViT-S geometry (random weights).

    python tools/file_sizes.py [--geometry S] [--exporter dynamo] [--tools NAME ...] [--folder bench_peers]
        [--peer-python PYTHON ...] [--write [NAME]]

Tools, models and folder are those of tools/bench_peers.py.
"""

from pathlib import Path

from bench_peers import GEOMETRIES, PEERS, export, quantize
from bench_tools import TOOLS
from tables import Results, Table, columns, finish, parser_of, provenance

OTHERS = ["quantize_static-inputs", "quark", "aimet"]
OURS = ["onnxvitq-minmax", "onnxvitq-accuracy"]


def main() -> None:
    """Make the models, weigh them, print."""
    parser = parser_of(__doc__, "file_sizes")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="S")
    parser.add_argument("--exporter", default="dynamo")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=[*PEERS, *OTHERS, *OURS])
    parser.add_argument("--folder", type=Path, default=Path("bench_peers"))
    parser.add_argument("--peer-python", nargs="*", default=[])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = export(args.folder, args.geometry, args.exporter)
    size = model.stat().st_size
    table = Table(columns=columns("tool", ("file MB", "{:.2f}"), ("of float", "{:.1f} %")))
    table.add("float", size / 1e6, 100.0)
    for tool in args.tools:
        made = quantize(model, tool, tuple(args.peer_python))
        if isinstance(made, str):
            table.add(TOOLS[tool].title, f"fails: {made[:80]}", None)
        else:
            table.add(TOOLS[tool].title, made.stat().st_size / 1e6, 100 * made.stat().st_size / size)
    about = f"{GEOMETRIES[args.geometry][0]} geometry, {args.exporter} graph"
    made_by = provenance(["torch", "transformers"])
    finish(Results(name="file_sizes", tables=[table], made=made_by, about=[about]), args.write)


if __name__ == "__main__":
    main()
