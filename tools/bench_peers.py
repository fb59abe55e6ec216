"""Speed of onnxvitq and of other quantizers, W8A8, on four geometries (random weights) from both exporters.

    python tools/bench_peers.py [--geometries T S B W] [--exporters dynamo torchscript] [--tools NAME ...] [--threads 1 2]
        [--batches 1 8] [--runs 15] [--folder bench_peers] [--peer-python PYTHON ...] [--write [NAME]]

T: DeiT-T, S: ViT-S, B: ViT-B, W: Swin-T, from Hugging Face configurations, batch dynamic. Tools: see tools/bench_tools.py. A
tool that is not installed beside onnxvitq is looked for in the interpreters of --peer-python (pip install nncf). Models stay
in the folder and are not made again. For one geometry, exporter, number of threads and batch, all models run in turn within
one loop, so a ratio holds when the machine's speed drifts. Then what loading takes, and the memory at the peak of loading and
running, in fresh processes on one thread: medians of seven, and the largest peak; of ours the static form with its weights in
a second file (--external-data), too. Random weights: this measures time, never accuracy.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from bench_accuracy import TOOLS_SCRIPT, first_line, interpreter
from bench_tools import TOOLS
from command import onnxvitq, save_feeds
from tables import Results, Table, columns, finish, parser_of, provenance
from vit_s import CONFIG

from onnxvitq.core.errors import OnnxVitqError
from onnxvitq.evaluation.bench import Timing, footprints, time_models
from onnxvitq.graph.writing import atomic_model, data_beside, save_model

PEERS = ["quantize_static", "quantize_static-minmax", "quantize_dynamic", "nncf"]
OURS = ["onnxvitq-minmax", "onnxvitq-minmax-dynamic"]  # the written layout does not depend on how scales are chosen
INPUT, SAMPLES, PATIENCE = "pixel_values", 8, 3600
SWIN = {
    "architectures": ["SwinForImageClassification"],
    "model_type": "swin",
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "num_labels": 1000,
}


def _vit(width: int, heads: int) -> dict[str, object]:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return {**CONFIG, **sizes}


GEOMETRIES = {
    "T": ("DeiT-T", _vit(192, 3)),
    "S": ("ViT-S", _vit(384, 6)),
    "B": ("ViT-B", _vit(768, 12)),
    "W": ("Swin-T", SWIN),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What one interleaved loop runs under."""

    geometry: str
    exporter: str
    threads: int
    batch: int


def export(folder: Path, geometry: str, exporter: str) -> Path:
    """The float model, kept when it is already there."""
    path = folder / f"{geometry}_{exporter}.onnx"
    if not path.exists():
        config = folder / f"{geometry}.json"
        config.write_text(json.dumps(GEOMETRIES[geometry][1]))
        onnxvitq("export", config, "-o", path, "--exporter", exporter)
    return path


def quantize(model: Path, tool: str, others: tuple[str, ...]) -> Path | str:
    """The tool's model, kept when it is already there; or why there is none."""
    output = model.with_name(f"{model.stem}_{tool}.onnx")
    if output.exists():
        return output
    python = interpreter(TOOLS[tool].imports, others)
    if python is None:
        return "not installed"
    with tempfile.TemporaryDirectory() as name:
        data, made = Path(name) / "calibration.npz", Path(name) / "int8.onnx"
        noise = np.random.default_rng(0).normal(size=(SAMPLES, 3, 224, 224)).astype(np.float32)
        save_feeds(data, {INPUT: noise})
        command = [python, str(TOOLS_SCRIPT), tool, str(model.resolve()), str(data), str(made)]
        # There, because some tools leave files in the current folder.
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=name)
        if done.returncode:
            return first_line(done.stderr) or f"exit code {done.returncode}"
        output.write_bytes(made.read_bytes())
    return output


def measure(models: dict[str, Path], setting: Setting, runs: int) -> dict[str, Timing | str]:
    """Title -> timing, all in one loop; a model that does not load or run is left out of it, with why."""
    feed = {INPUT: np.random.default_rng(1).normal(size=(setting.batch, 3, 224, 224)).astype(np.float32)}
    found: dict[str, Timing | str] = {}
    for name, path in models.items():
        try:
            time_models([path], [feed], threads=setting.threads, runs=1)
        except OnnxVitqError as error:
            found[name] = str(error).replace(str(path), path.name)
    sound = [name for name in models if name not in found]
    timings = time_models([models[name] for name in sound], [feed] * len(sound), threads=setting.threads, runs=runs)
    return {**dict(zip(sound, timings, strict=True)), **found}


def add_rows(table: Table, setting: Setting, measured: Mapping[str, Timing | str]) -> None:
    """A row of the table for each model; why there are no figures where there are none."""
    lead = (GEOMETRIES[setting.geometry][0], setting.exporter, setting.threads, setting.batch)
    for name, found in measured.items():
        if isinstance(found, str):
            table.add(*lead, name, f"fails: {found}", None, None)
        else:
            table.add(*lead, name, found.median_ms, (found.lower_ms, found.upper_ms), found.speedup)


def in_two_files(model: Path) -> Path:
    """The same model as --external-data writes it."""
    path = model.with_name(f"{model.stem}_external.onnx")
    proto = onnx.load(model)
    data = data_beside(proto, path, asked=True)
    with atomic_model(path) as temporary:
        save_model(proto, temporary, data)
    return path


def add_loads(table: Table, geometry: str, exporter: str, models: dict[str, Path]) -> None:
    """A row of the second table for each model; a model that does not load is not in ``models``."""
    feed = {INPUT: np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    taken = footprints(list(models.values()), [feed] * len(models), threads=1)
    first = taken[0]
    for name, footprint in zip(models, taken, strict=True):
        shares = (100 * footprint.load_ms / first.load_ms, 100 * footprint.peak_mb / first.peak_mb)
        lead = (GEOMETRIES[geometry][0], exporter, name)
        table.add(*lead, footprint.load_ms, shares[0], footprint.peak_mb, shares[1], footprint.largest_mb)


def main() -> None:
    """Make the models, measure, print."""
    parser = parser_of(__doc__, "peers_speed")
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--exporters", nargs="+", default=["dynamo", "torchscript"])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=[*PEERS, *OURS])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("bench_peers"))
    parser.add_argument("--peer-python", nargs="*", default=[])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    speed = Table(
        columns=columns(
            *(
                "model",
                "exporter",
                "threads",
                "batch",
                "quantizer",
                ("ms", "{:.1f}"),
                ("quartiles", "{:.1f} to {:.1f}"),
            ),
            ("times float", "{:.2f}"),
        )
    )
    loading = Table(
        columns=columns(
            *("model", "exporter", "quantizer", ("cold load ms", "{:.0f}"), ("of float", "{:.0f} %")),
            *(("peak MB", "{:.0f}"), ("of float", "{:.0f} %"), ("largest MB", "{:.0f}")),
        )
    )
    for geometry in args.geometries:
        for exporter in args.exporters:
            model = export(args.folder, geometry, exporter)
            made = {TOOLS[tool].title: quantize(model, tool, tuple(args.peer_python)) for tool in args.tools}
            models = {"float": model, **{name: path for name, path in made.items() if isinstance(path, Path)}}
            failed = {name: why for name, why in made.items() if isinstance(why, str)}
            for threads in args.threads:
                for batch in args.batches:
                    setting = Setting(geometry=geometry, exporter=exporter, threads=threads, batch=batch)
                    measured = measure(models, setting, args.runs)
                    add_rows(speed, setting, {**measured, **failed})
            sound = {name: path for name, path in models.items() if not isinstance(measured[name], str)}
            ours = TOOLS[OURS[0]].title
            if ours in sound:
                sound[f"{ours} --external-data"] = in_two_files(sound[ours])
            add_loads(loading, geometry, exporter, sound)
    about = f"Medians and quartiles of {args.runs} interleaved runs"
    finish(
        Results(
            name="peers_speed",
            tables=[speed, loading],
            made=provenance(["torch", "transformers", "nncf"]),
            about=[about],
        ),
        args.write,
    )


if __name__ == "__main__":
    main()
