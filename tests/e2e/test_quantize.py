"""From a float model and images to an integer model, whole: kernels, accuracy, every kind of data, the same bytes again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commandline import image_attention, save_attention
from PIL import Image
from textgraph import model_of, run

import onnxvitq
from onnxvitq.api import PreprocessOptions, Result, evaluate, quantize
from onnxvitq.calibration.dataset import KEPT_FEEDS
from onnxvitq.calibration.sweep import sweep
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import DataError, OnnxVitqError
from onnxvitq.core.recipe import RECIPE_KEY
from onnxvitq.data.preprocess import PREPROCESSING_KEY

FORMS = [("dynamo", True), ("dynamo", False), ("torchscript", True), ("torchscript", False)]
NAMES = ["dynamo-dynamic", "dynamo-static", "torchscript-dynamic", "torchscript-static"]
QUICK = QuantConfig(objective="minmax", skip=("bias",))
ROOT = str(Path(onnxvitq.__file__).parent.parent)
ExportVit = Callable[[str, bool], onnx.ModelProto]


def batch_of(count: int, seed: int = 1) -> np.ndarray:
    """Model-ready images."""
    return np.random.default_rng(seed).normal(0, 1.5, (count, 3, 16, 16)).astype(np.float32)


def sqnr(reference: np.ndarray, output: np.ndarray) -> float:
    error = float(((reference.astype(np.float64) - output) ** 2).sum())
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / error)) if error else float("inf")


def metadata_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


# ------------------------------------------------------------------------------------------------- kernels and batches


@pytest.fixture(scope="module", params=FORMS, ids=NAMES)
def form(
    request: pytest.FixtureRequest, export_vit: ExportVit, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, onnx.ModelProto, bool]:
    """One exporter's graph quantized: the result, the float model, whether its batch is dynamic."""
    exporter, dynamic = request.param
    folder = tmp_path_factory.mktemp("form")
    proto = export_vit(exporter, dynamic)
    onnx.save(proto, folder / "float.onnx")
    # Whether a product of this random model gains a decibel in float, on four samples, is decided by rounding.
    return quantize(folder / "float.onnx", images, folder / "int8.onnx", QuantConfig(attention="int8")), proto, dynamic


def test_every_product_runs_on_an_integer_kernel(form: tuple[Result, onnx.ModelProto, bool]) -> None:
    report = form[0].report.to_dict()
    assert report["linears"] == {
        "found": 13,
        "quantized": 13,
        "integer_kernels": 13,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert report["patch_embedding"] == {
        "found": 1,
        "quantized": 1,
        "integer_kernels": 1,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert report["attention_products"] == {
        "found": 4,
        "quantized": 4,
        "integer_kernels": 4,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert report["unmatched"] == []
    assert report["audit_passed"]


def test_output_is_near_the_float_models(form: tuple[Result, onnx.ModelProto, bool]) -> None:
    compare = form[0].report.to_dict()["compare"]
    assert compare["samples"] == 16
    # 8 bits give each layer some 42 dB here (the report's steps say so); a layer with a wrong scale is below 20.
    assert compare["sqnr_db"] > 35
    assert compare["cosine"] > 0.999
    # The same codes, but for values that float rounding moves across a border: far less than the quantization error.
    assert compare["optimised_vs_plain"] < 10 ** (-compare["sqnr_db"] / 20)


def test_the_written_model_is_plain_onnx(form: tuple[Result, onnx.ModelProto, bool]) -> None:
    result, proto, _ = form
    written = onnx.load(result.output)
    onnx.checker.check_model(written, full_check=True)
    assert {node.domain for node in written.graph.node} <= {"", "ai.onnx"}
    assert [entry.domain for entry in written.opset_import] == [""]
    assert [value.name for value in written.graph.input] == [value.name for value in proto.graph.input]
    assert [value.name for value in written.graph.output] == [value.name for value in proto.graph.output]
    integers = {tensor.name for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert len([name for name in integers if name.endswith("_weight_codes")]) == 14


def test_it_runs_at_the_float_models_batch_sizes(form: tuple[Result, onnx.ModelProto, bool]) -> None:
    result, proto, dynamic = form
    written = onnx.load(result.output)
    for size in (1, 2, 5) if dynamic else (1,):
        feed = {"image": batch_of(size, seed=size)}
        (output,), (reference,) = run(written, feed, "all"), run(proto, feed)
        assert output.shape == reference.shape == (size, 5)
        assert sqnr(reference, output) > 25  # noise is not what it was calibrated for
    if not dynamic:
        with pytest.raises(Exception, match=r"[Ii]nvalid dimensions"):
            run(written, {"image": batch_of(2)})


def test_rows_of_a_batch_do_not_depend_on_each_other(form: tuple[Result, onnx.ModelProto, bool]) -> None:
    result, _, dynamic = form
    written = onnx.load(result.output)
    if dynamic:
        batch = batch_of(4)
        (together,) = run(written, {"image": batch}, "all")
        apart = np.concatenate([run(written, {"image": row[None]}, "all")[0] for row in batch])
        # Products of another size may add float32 numbers in another order, and move a code by one.
        assert sqnr(apart, together) > 45
    else:
        assert run(written, {"image": batch_of(1)}, "all")[0].shape == (1, 5)


# ----------------------------------------------------------------------------------------------------- order of errors


@pytest.fixture(scope="module")
def sqnr_of(vit_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[QuantConfig], float]:
    """SQNR of the output in dB on fresh images (not the calibration's), by configuration."""
    folder = tmp_path_factory.mktemp("orders")
    rng = np.random.default_rng(5)
    mean, std = (
        np.array(values, np.float32)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = rng.normal(0.24 + np.linspace(0, 0.35, 48)[:, None, None, None], 0.12, (48, 3, 16, 16)).clip(0, 1)
    feed = {"image": ((pixels - mean) / std).astype(np.float32)}
    (reference,) = run(onnx.load(vit_file), feed)

    @cache
    def measure(config: QuantConfig) -> float:
        result = quantize(vit_file, images, folder / "out.onnx", config)
        return sqnr(reference, run(onnx.load(result.output), feed, "all")[0])

    return measure


def test_searched_scales_do_not_lose_to_min_max(sqnr_of: Callable[[QuantConfig], float]) -> None:
    # Three held-out images judge what the other nine fitted, in a model without outliers where there is nothing to win:
    # which way the sum of small errors falls is chance. 2 dB is what chance was seen to do (1.3); a wrong scale costs 10.
    assert sqnr_of(QuantConfig()) >= sqnr_of(QuantConfig(objective="minmax")) - 2
    assert sqnr_of(QuantConfig()) >= sqnr_of(QUICK) - 2


@pytest.mark.parametrize("objective", ["pearson", "ranking"])
def test_every_objective_gives_a_working_model(sqnr_of: Callable[[QuantConfig], float], objective: str) -> None:
    assert sqnr_of(QuantConfig(objective=objective, candidates=5)) > 30  # type: ignore[arg-type]


def test_fewer_bits_are_worse(sqnr_of: Callable[[QuantConfig], float]) -> None:
    # Without the limit on neighbouring weights, which costs random ones about as much as a bit.
    widths = [QuantConfig(objective="minmax", bits=bits, target="x86-vnni") for bits in ("w8a8", "w7a8")]
    eight, seven = map(sqnr_of, widths)
    assert eight > seven > 20


def test_float_attention_is_no_worse(sqnr_of: Callable[[QuantConfig], float]) -> None:
    eight = QuantConfig(objective="minmax")
    assert sqnr_of(QuantConfig(objective="minmax", attention="float")) >= sqnr_of(eight) - 0.5  # errors may cancel out


def test_an_empty_plan_gives_the_float_model(sqnr_of: Callable[[QuantConfig], float]) -> None:
    # The canonical form adds up float32 products in another order: 2 ** -24 of rounding here and there, 140 dB or so.
    assert sqnr_of(QuantConfig(attention="float", nodes_to_exclude=("*",))) > 110


# ---------------------------------------------------------------------------------------------------- same bytes again

AGAIN = """
import hashlib, json, sys
from pathlib import Path
from onnxvitq.core.config import QuantConfig
from onnxvitq.api import quantize
folder = Path(sys.argv[1])
result = quantize(folder / "float.onnx", folder / "images", folder / "int8.onnx", QuantConfig(seed=7, candidates=5))
print(json.dumps(hashlib.sha256(result.output.read_bytes()).hexdigest()))
"""


def in_another_process(script: str, *arguments: object, hash_seed: str = "0") -> Any:
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    return json.loads(ran.stdout)


def test_same_input_and_seed_give_the_same_bytes(export_vit: ExportVit, images: Path, tmp_path: Path) -> None:
    digests = set()
    # Another process, another order of sets, another folder.
    for name, hash_seed in (("one", "1"), ("another", "4242")):
        folder = tmp_path / name
        shutil.copytree(images, folder / "images")
        onnx.save(export_vit("dynamo", True), folder / "float.onnx")
        digests.add(in_another_process(AGAIN, folder, hash_seed=hash_seed))
    assert len(digests) == 1


def test_another_seed_gives_other_bytes(small: Path, tmp_path: Path) -> None:
    def graph(seed: int) -> bytes:
        # Operands of a few samples are kept: of 40, other seeds keep others.
        written = quantize(small, tokens(40), tmp_path / "out.onnx", QuantConfig(seed=seed, acceptance="always")).output
        return onnx.load(written).graph.SerializeToString(deterministic=True)  # the recipe names the seed

    assert graph(0) != graph(1)


def test_metadata_holds_the_recipe_and_no_path_and_no_time(
    vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "with_metadata.onnx"
    proto = onnx.load(vit_file)
    onnx.helper.set_model_props(proto, {"author": "somebody"})
    onnx.save(proto, path)
    first = quantize(path, images, tmp_path / "a.onnx", QUICK)
    metadata = metadata_of(first.output)
    assert metadata["author"] == "somebody"
    recipe = json.loads(metadata[RECIPE_KEY])
    assert set(recipe) == {"onnxvitq", "target", "config", "model_sha256", "data_sha256", "samples"}
    assert recipe["config"] == QUICK.to_dict()
    assert recipe["samples"] == 16
    assert len(recipe["model_sha256"]) == len(recipe["data_sha256"]) == 64
    for trace in (tmp_path, images, path.name, Path.cwd(), ROOT):
        assert str(trace) not in "".join(metadata.values())
    # The clock moves on and nothing else does.
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert quantize(path, images, tmp_path / "b.onnx", QUICK).output.read_bytes() == first.output.read_bytes()


def test_recipe_tells_other_data_and_other_models_apart(vit_file: Path, images: Path, tmp_path: Path) -> None:
    def recipe(data: object) -> dict[str, Any]:
        written = quantize(vit_file, data, tmp_path / "out.onnx", QUICK).output  # type: ignore[arg-type]
        return dict(json.loads(metadata_of(written)[RECIPE_KEY]))

    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "00.png").rename(fewer / "99.png")
    first, renamed = recipe(images), recipe(fewer)
    assert first["data_sha256"] != renamed["data_sha256"]
    assert first["model_sha256"] == renamed["model_sha256"]
    assert recipe(list(batch_of(3)[:, None]))["data_sha256"] == ""


# ---------------------------------------------------------------------------------------------------- kinds of data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One attention over 5 tokens of width 8: these tests are about its input ``x``."""
    return save_attention(tmp_path_factory.mktemp("small") / "small.onnx")


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 5, 8)).astype(np.float32)


def test_a_generator_is_read_once(small: Path, tmp_path: Path) -> None:
    feeds = tokens(20)
    read: list[int] = []

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for index, row in enumerate(feeds):
            read.append(index)
            yield {"x": row[None]}

    stages: list[tuple[str, int, int | None]] = []
    result = quantize(small, generate(), tmp_path / "out.onnx", progress=lambda *stage: stages.append(stage))
    assert read == list(range(20))
    assert result.report.to_dict()["calibration"]["samples"] == 20
    assert result.report.to_dict()["compare"]["samples"] == KEPT_FEEDS == 16  # what was kept of it
    assert ("calibrate", 20, None) in stages  # its length is not known beforehand
    assert [stage for stage in stages if stage[0] == "compare"][-1] == ("compare", 16, 16)
    assert result.report.to_dict()["compare"]["sqnr_db"] > 25


@pytest.fixture(scope="module")
def one_by_one(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Quantized with six feeds from a generator."""
    feeds = ({"x": row[None]} for row in tokens(6))
    return quantize(small, feeds, tmp_path_factory.mktemp("feeds") / "out.onnx", QUICK)


@pytest.mark.parametrize("kind", ["npz", "npy", "list", "arrays", "dictionary", "tuple of batches"])
def test_the_same_feeds_in_any_form_give_the_same_layers(
    small: Path, one_by_one: Result, tmp_path: Path, kind: str
) -> None:
    values = tokens(6)
    np.savez(tmp_path / "data.npz", x=values)
    np.save(tmp_path / "data.npy", values)
    data = {
        "npz": tmp_path / "data.npz",
        "npy": str(tmp_path / "data.npy"),
        "list": [{"x": row[None], "label": np.zeros(1)} for row in values],
        "arrays": values,
        "dictionary": {"x": values},
        "tuple of batches": (values[:4], values[4:]),
    }[kind]
    result = quantize(small, data, tmp_path / "out.onnx", QUICK)  # type: ignore[arg-type]
    assert result.report.to_dict()["calibration"]["samples"] == 6
    assert result.report.to_dict()["compare"] == one_by_one.report.to_dict()["compare"]
    # The metadata tells the data apart, the graph does not.
    assert onnx.load(result.output).graph == onnx.load(one_by_one.output).graph


def test_a_loader_that_shuffles_is_compared_on_what_it_gave_first(small: Path, tmp_path: Path) -> None:
    class Shuffled:
        """Like a training loader: another order in every pass."""

        def __init__(self) -> None:
            self.rng, self.passes = np.random.default_rng(0), 0

        def __iter__(self) -> Iterator[np.ndarray]:
            self.passes += 1
            return (tokens(10)[index][None] for index in self.rng.permutation(10))

    loader = Shuffled()
    result = quantize(small, loader, tmp_path / "out.onnx", QUICK)
    assert loader.passes == 1
    assert result.report.to_dict()["compare"]["samples"] == 10
    assert result.report.to_dict()["compare"]["sqnr_db"] > 25


def test_a_reader_of_onnxruntime(small: Path, tmp_path: Path) -> None:
    class Reader:
        def __init__(self) -> None:
            self.left = [{"x": row[None]} for row in tokens(5)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    result = quantize(small, Reader(), tmp_path / "out.onnx", QUICK)  # type: ignore[arg-type]
    assert result.report.to_dict()["calibration"]["samples"] == result.report.to_dict()["compare"]["samples"] == 5


@pytest.mark.parametrize("data", [[], iter(()), np.zeros((0, 5, 8), np.float32), 7, None])
def test_data_that_is_none(small: Path, tmp_path: Path, data: Any) -> None:
    with pytest.raises(OnnxVitqError):
        quantize(small, data, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_users_generator_is_not_hidden(small: Path, tmp_path: Path) -> None:
    def generate() -> Iterator[np.ndarray]:
        yield tokens(1)
        raise LookupError("the third image is lost")

    with pytest.raises(LookupError, match="the third image is lost"):
        quantize(small, generate(), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_static_batch_is_filled_up(tmp_path: Path) -> None:
    model = save_attention(tmp_path / "two.onnx", text=STATIC)
    values = np.random.default_rng(0).normal(size=(5, 5, 8)).astype(np.float32)
    stages: list[tuple[str, int, int | None]] = []
    result = quantize(model, values, tmp_path / "out.onnx", progress=lambda *stage: stages.append(stage))
    assert result.report.to_dict()["calibration"]["samples"] == 5
    assert result.report.to_dict()["compare"]["samples"] == 6
    assert [stage for stage in stages if stage[0] == "calibrate"] == [("calibrate", n, 3) for n in (1, 2, 3)]
    assert [stage for stage in stages if stage[0] == "compare"] == [("compare", n, 3) for n in (1, 2, 3)]


STATIC = (
    "(float[2,5,8] x) => (float[2,5,8] y) <float[8,8] Wq, float[8,8] Wk, float[8,8] Wv>"
    "{ q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
    " scores = MatMul(q, kt) probs = Softmax<axis = -1>(scores) y = MatMul(probs, v) }"
)


# ------------------------------------------------------------------------------------------------------- preprocessing

OTHERS = PreprocessOptions(flags={"mean": [0.1, 0.2, 0.3], "std": [0.6, 0.5, 0.4], "interpolation": "nearest"})


@pytest.fixture(scope="module")
def labelled(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of eight images."""
    folder = tmp_path_factory.mktemp("labelled")
    for index, image in enumerate(sorted(images.iterdir())):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        shutil.copy(image, folder / str(index % 2))
    return folder


def test_preprocessing_is_stored_and_used_by_evaluate(
    vit_file: Path, images: Path, labelled: Path, tmp_path: Path
) -> None:
    model = tmp_path / "vit.onnx"
    shutil.copy(vit_file, model)
    result = quantize(model, images, tmp_path / "out.onnx", QUICK, preprocess=OTHERS)
    stored = json.loads(metadata_of(result.output)[PREPROCESSING_KEY])
    assert (stored["mean"], stored["std"], stored["interpolation"]) == ([0.1, 0.2, 0.3], [0.6, 0.5, 0.4], "nearest")
    assert stored == result.report.to_dict()["calibration"]["preprocessing"]
    plain = PreprocessOptions()

    def figures(options: PreprocessOptions, second: Path = result.output) -> object:
        return evaluate((model, second), labelled, preprocess=options, batch=4, threads=1)

    assert figures(plain) == figures(OTHERS)
    assert figures(plain) != figures(PreprocessOptions(flags={"mean": 0.9}))
    # A file beside the float model is not what the quantized model was made with.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"mean": [0.9, 0.9, 0.9], "mode": "RGB"}))
    assert figures(plain) == figures(OTHERS)
    # Models that say nothing get the file.
    assert figures(plain, model) == figures(PreprocessOptions(flags={"mean": 0.9}), model)


def test_a_quantized_models_preprocessing_is_what_it_was_calibrated_with(
    vit_file: Path, images: Path, tmp_path: Path
) -> None:
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(images.iterdir())])
    sources: tuple[Any, ...] = (images, {"image": pixels.transpose(0, 3, 1, 2)})
    results = [
        quantize(vit_file, data, tmp_path / f"{index}.onnx", QUICK, preprocess=OTHERS)
        for index, data in enumerate(sources)
    ]
    graphs = [onnx.load(result.output).graph for result in results]
    assert graphs[0] == graphs[1]


def test_a_model_without_a_size_says_what_is_missing(images: Path, tmp_path: Path) -> None:
    text = (
        "(float[N,1,H,W] x) => (float[N,1,H,H] y) { t = Transpose<perm = [0, 1, 3, 2]>(x)"
        " scores = MatMul(x, t) probs = Softmax<axis = -1>(scores) h = MatMul(probs, x) y = MatMul(h, t) }"
    )
    model = tmp_path / "dynamic.onnx"
    onnx.save(model_of(text), model)
    with pytest.raises(DataError, match="no size given"):
        quantize(model, images, tmp_path / "out.onnx")
    result = quantize(model, images, tmp_path / "out.onnx", preprocess=PreprocessOptions(flags={"resize": "8x8"}))
    assert result.report.to_dict()["calibration"]["preprocessing"]["resize"] == [8, 8]
    values = np.random.default_rng(0).normal(size=(4, 1, 6, 6)).astype(np.float32)
    arrays = quantize(model, values, tmp_path / "out.onnx")  # ready for the model: nothing is missing
    assert arrays.report.to_dict()["calibration"]["preprocessing"] is None
    assert PREPROCESSING_KEY not in metadata_of(arrays.output)


# -------------------------------------------------------------------------------------------------------------- memory

PEAK = """
import json, sys
from functools import partial
from pathlib import Path
from onnxvitq.core.config import QuantConfig
from onnxvitq.api import quantize
from onnxvitq.calibration import subgraphs
# Far below what 64 images need: the rest has to go to files.
subgraphs.TensorStore = partial(subgraphs.TensorStore, limit=2**20)
folder, samples = Path(sys.argv[1]), int(sys.argv[2])
config = QuantConfig(num_samples=samples, threads=1)
result = quantize(folder / "wide.onnx", folder / "images", folder / "out.onnx", config)
assert result.report.to_dict()["calibration"]["samples"] == samples
# Not getrusage: a child inherits its parent's peak there.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps(int(peak)))
"""


def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    onnx.save(model_of(image_attention(64)), tmp_path / "wide.onnx")  # 256 tokens
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / f"images/{index:02}.png")
    few, many = (in_another_process(PEAK, tmp_path, samples) / 1024 for samples in (8, 64))  # MiB
    # Eight images fill every sample that is kept of a tensor, so 64 keep the same. One image's activations are 0.9 MB:
    # keeping those of 56 more would add 50, keeping their scores alone (256 x 256) would add 14. What two equal runs
    # differ by, pages of the allocator and of libraries, is 1 to 3.
    assert many - few < 10


# ------------------------------------------------------------------------------------------------------ calibration cache


def test_what_was_measured_once_is_not_measured_again_and_changes_nothing(
    vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = []

    def counted(*args: Any, **options: Any) -> Any:
        sweeps.append(args[0])
        return sweep(*args, **options)

    monkeypatch.setattr("onnxvitq.calibration.measure.sweep", counted)
    written = {}
    for name, bits, folder in (
        ("first", "w8a8", str(tmp_path / "cache")),
        ("second", "w4a8", str(tmp_path / "cache")),
        ("without", "w4a8", None),
    ):
        sweeps.clear()
        config = QuantConfig(bits=bits, cache=folder, objective="minmax")
        quantize(vit_file, images, tmp_path / "out.onnx", config)
        written[name] = (len(sweeps), (tmp_path / "out.onnx").read_bytes())
    assert [count for count, _ in written.values()] == [1, 0, 1]
    assert written["second"][1] == written["without"][1]


def test_data_that_cannot_be_told_apart_is_not_kept(
    vit_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = QuantConfig(objective="minmax", skip=("bias",), cache=str(tmp_path / "cache"))
    quantize(vit_file, [batch_of(4)], tmp_path / "out.onnx", config)
    assert not (tmp_path / "cache").exists()
    assert [record.message.startswith("calibration cache: not used") for record in caplog.records] == [True]
