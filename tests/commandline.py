"""The command line called in this process, and what it must leave as it was."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.cli.main import main

ATTENTION = (
    "(float[N,5,8] x) => (float[N,5,8] y) <float[8,8] Wq, float[8,8] Wk, float[8,8] Wv, float[8,8] Wo>"
    "{ q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
    " scores = MatMul(q, kt) probs = Softmax<axis = -1>(scores) context = MatMul(probs, v) y = MatMul(context, Wo) }"
)


def image_attention(side: int) -> str:
    """A patch embedding of images of that side, 4 pixels a patch, one attention over the patches, and 32 scores."""
    return (
        f"(float[N,3,{side},{side}] image) => (float[N,32] y)"
        "<float[32,3,4,4] P, float[32,32] Wq, float[32,32] Wk, float[32,32] Wv, float[32,32] Wo>"
        "{ patches = Conv<strides = [4, 4]>(image, P)"
        f" shape = Constant<value = int64[3] {{0, 32, {side * side // 16}}}>()"
        " flat = Reshape(patches, shape) x = Transpose<perm = [0, 2, 1]>(flat)"
        " q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
        " scores = MatMul(q, kt) probs = Softmax<axis = -1>(scores) context = MatMul(probs, v) o = MatMul(context, Wo)"
        " y = ReduceMean<axes = [1], keepdims = 0>(o) }"
    )


@dataclass(frozen=True)
class Ran:
    """One command: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """``python -m onnxvitq ARGUMENTS``, without another process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Ran(code=code, out=captured.out, err=captured.err)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder, hidden files too: a file's bytes, where a link leads, or what else it is."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else "folder"
        if path.is_dir()
        else path.read_bytes()
        if path.is_file()
        else "device"
        for path in sorted(folder.rglob("*"))
    }


def save_attention(path: Path, text: str = ATTENTION, **weights: np.ndarray) -> Path:
    """One attention over 5 tokens of width 8, as text; ``weights`` replaces random ones."""
    onnx.save(model_of(text, weights=weights), path)
    return path
