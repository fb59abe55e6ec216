"""Whether a change of the code changed what it writes: sha256 of twelve quantized models, metadata aside.

    python tools/same_bytes.py --record tools/results/same_bytes.json   # at the commit before the change
    python tools/same_bytes.py --against tools/results/same_bytes.json  # after it: exit code 1 where a digest differs

The bundled model in ten settings, its twin with outlier channels (see tools/fashion.py) and a small Swin by
torch.export with the defaults. The metadata names the version and the options, which may change; all else (graph, weights,
scales, a file of weights beside the model) is compared. The float models stay in --folder, so that both runs read the same
files; a digest depends on the processor and on the versions of the packages, which are recorded and compared, too. With
--source DIR the package in that folder runs, another checkout say. Needs torch and transformers.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from fashion import CALIBRATION, MODEL, PREPROCESSOR_CONFIG, export_twin
from tables import ROOT, provenance

from onnxvitq.report.build import environment
from onnxvitq.report.records import to_dict

IMAGE = 56  # pixels along a side of what the Swin reads
SWIN = {
    "architectures": ["SwinForImageClassification"],
    "model_type": "swin",
    "image_size": IMAGE,
    "patch_size": 2,
    "embed_dim": 48,
    "depths": [2, 2],
    "num_heads": [3, 6],
    "window_size": 7,
    "num_labels": 10,
}
SWIN_SAMPLES = 16
# Title -> (model, options).
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("bundled", ()),
    "fast": ("bundled", ("--effort", "fast")),
    "best": ("bundled", ("--effort", "best")),
    "preset accuracy": ("bundled", ("--preset", "accuracy")),
    "w4a8": ("bundled", ("--bits", "w4a8")),
    "w4a4": ("bundled", ("--bits", "w4a4")),
    "average bits 6": ("bundled", ("--average-bits", "6")),
    "activations dynamic": ("bundled", ("--activations", "dynamic")),
    "target x86-vnni": ("bundled", ("--target", "x86-vnni")),
    "external data": ("bundled", ("--external-data",)),
    "twin default": ("twin", ()),
    "swin default": ("swin", ()),
}


def make_models(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Model name -> (float model, calibration data), made where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    twin, swin, noise = folder / "twin.onnx", folder / "swin.onnx", folder / "swin.npz"
    if not twin.exists():
        export_twin(twin)
    if not swin.exists():
        config = folder / "swin.json"
        config.write_text(json.dumps(SWIN))
        subprocess.run(
            [sys.executable, "-m", "onnxvitq", "export", config, "-o", swin], check=True, capture_output=True
        )
    if not noise.exists():
        images = np.random.default_rng(0).normal(size=(SWIN_SAMPLES, 3, IMAGE, IMAGE))
        np.savez(noise, pixel_values=images.astype(np.float32))
    return {"bundled": (MODEL, CALIBRATION), "twin": (twin, CALIBRATION), "swin": (swin, noise)}


def digest(path: Path) -> str:
    """Sha256 of a written model without its metadata, and of the file of weights that it names."""
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    found = hashlib.sha256(model.SerializeToString(deterministic=True))
    names = {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}
    for name in sorted(names):
        found.update((path.parent / name).read_bytes())
    return found.hexdigest()


def run(source: Path, folder: Path, title: str, models: dict[str, tuple[Path, Path]]) -> str:
    """The digest of what the package in ``source`` writes."""
    name, options = RUNS[title]
    model, data = models[name]
    output = folder / f"{title.replace(' ', '_')}.int8.onnx"
    prepared = () if name == "swin" else ("--preprocessor-config", PREPROCESSOR_CONFIG)
    command = [sys.executable, "-m", "onnxvitq", model.resolve(), "--calib", data.resolve(), "-o", output.resolve()]
    command += [*prepared, *options, "--quiet"]
    environment_of_run = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([str(part) for part in command], check=True, cwd=source, env=environment_of_run)
    return digest(output)


def main() -> None:
    """Write what is there, or compare with what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path)
    what.add_argument("--against", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("same_bytes"))
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    args = parser.parse_args()
    models = make_models(args.folder.resolve())
    inputs = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, (path, _) in models.items()}
    machine = to_dict(environment(0))
    known = None if args.against is None else json.loads(args.against.read_text())
    if known is not None:
        differing = [
            f"{key}: {known['environment'].get(key)} -> {machine[key]}"
            for key in machine
            if known["environment"].get(key) != machine[key]
        ]
        differing += [f"float model {name} is another one" for name in inputs if known["inputs"][name] != inputs[name]]
        for line in differing:
            print(f"not comparable: {line}", file=sys.stderr)
    found = {}
    for title in args.runs:
        found[title] = run(args.source.resolve(), args.folder.resolve(), title, models)
        verdict = "" if known is None else ("same" if known["digests"][title] == found[title] else "DIFFERS")
        print(f"{title:20} {found[title]} {verdict}", flush=True)
    if args.record is not None:
        args.record.write_text(
            json.dumps({**provenance().to_dict(), "environment": machine, "inputs": inputs, "digests": found}, indent=2)
            + "\n"
        )
    elif known is not None and any(known["digests"][title] != found[title] for title in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
