"""Speed of onnxvitq and of other quantizers, W8A8, on four geometries (random weights) from both exporters.

    python tools/bench_peers.py [--geometries T S B W] [--exporters dynamo torchscript] [--tools NAME ...] [--threads 1 2]
        [--batches 1 8] [--runs 15] [--folder bench_peers] [--peer-python PYTHON ...] [--write FILE.md]

T: DeiT-T, S: ViT-S, B: ViT-B, W: Swin-T, from Hugging Face configurations, batch dynamic. Tools: see tools/bench_tools.py. A
tool that is not installed beside onnxvitq is looked for in the interpreters of --peer-python (pip install nncf). Models stay
in the folder and are not made again. For one geometry, exporter, number of threads and batch, all models run in turn within
one loop, so a ratio holds when the machine's speed drifts. Then what loading takes, and the memory at the peak of loading and
running, in fresh processes on one thread: medians of seven, and the largest peak; of ours the static form with its weights in
a second file (--external-data), too. Random weights: this measures time, never accuracy.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent))
from bench_accuracy import first_line, interpreter
from bench_tools import TOOLS
from vit_s import CONFIG, onnxvitq

from onnxvitq.core.errors import OnnxVitqError
from onnxvitq.evaluation.bench import Timing, bench, footprints
from onnxvitq.graph.writing import atomic_model, data_beside, save_model
from onnxvitq.report.build import environment

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
        np.savez(data, **{INPUT: noise})
        script = Path(__file__).parent.resolve() / "bench_tools.py"
        command = [python, script, tool, model.resolve(), data, made]
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
            bench([path], [feed], threads=setting.threads, runs=1)
        except OnnxVitqError as error:
            found[name] = str(error).replace(str(path), path.name)
    sound = [name for name in models if name not in found]
    timings = bench([models[name] for name in sound], [feed] * len(sound), threads=setting.threads, runs=runs)
    return {**dict(zip(sound, timings, strict=True)), **found}


def rows(setting: Setting, measured: dict[str, Timing | str], failed: dict[str, str]) -> list[str]:
    """A line of the table for each model."""
    title = GEOMETRIES[setting.geometry][0]
    lead = f"| {title} | {setting.exporter} | {setting.threads} | {setting.batch} |"
    lines = []
    for name, found in {**measured, **failed}.items():
        if isinstance(found, str):
            lines.append(f"{lead} {name} | fails: {found} | | |")
        else:
            spread = f"{found.lower_ms:.1f} to {found.upper_ms:.1f}"
            lines.append(f"{lead} {name} | {found.median_ms:.1f} | {spread} | {found.speedup:.2f} |")
    return lines


def in_two_files(model: Path) -> Path:
    """The same model as --external-data writes it."""
    path = model.with_name(f"{model.stem}_external.onnx")
    proto = onnx.load(model)
    data = data_beside(proto, path, asked=True)
    with atomic_model(path) as temporary:
        save_model(proto, temporary, data)
    return path


def loads(geometry: str, exporter: str, models: dict[str, Path]) -> list[str]:
    """A line of the second table for each model; a model that does not load is not in ``models``."""
    feed = {INPUT: np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    taken = footprints(list(models.values()), [feed] * len(models), threads=1)
    first, lead = taken[0], f"| {GEOMETRIES[geometry][0]} | {exporter} |"
    return [
        f"{lead} {name} | {one.load_ms:.0f} | {100 * one.load_ms / first.load_ms:.0f} % | {one.peak_mb:.0f} | "
        f"{100 * one.peak_mb / first.peak_mb:.0f} % | {one.largest_mb:.0f} |"
        for name, one in zip(models, taken, strict=True)
    ]


def main() -> None:
    """Make the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--exporters", nargs="+", default=["dynamo", "torchscript"])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=[*PEERS, *OURS])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("bench_peers"))
    parser.add_argument("--peer-python", nargs="*", default=[])
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    env = environment(1)
    lines = [
        f"onnxruntime {env['onnxruntime']}, onnx {env['onnx']}, {env['processor']}; medians and quartiles of {args.runs}"
        " interleaved runs",
        "",
        "| model | exporter | threads | batch | quantizer | ms | quartiles | times float |",
        "|---|---|---|---|---|---|---|---|",
    ]
    weighed = [
        "",
        "| model | exporter | quantizer | cold load ms | of float | peak MB | of float | largest MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
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
                    found = rows(setting, measured, failed)
                    print("\n".join(found), flush=True)
                    lines += found
            sound = {name: path for name, path in models.items() if not isinstance(measured[name], str)}
            ours = TOOLS[OURS[0]].title
            if ours in sound:
                sound[f"{ours} --external-data"] = in_two_files(sound[ours])
            found = loads(geometry, exporter, sound)
            print("\n".join(found), flush=True)
            weighed += found
            if args.write:
                args.write.write_text("\n".join([*lines, *weighed]) + "\n")


if __name__ == "__main__":
    main()
