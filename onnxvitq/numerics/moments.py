"""Second moments of a linear layer's rows, summed batch by batch: all that ridge and rounding need, so no row is kept.

Shapes: N rows, I inputs, O outputs. Everything here is float64: sums of products over 10^4 rows and more lose three or four
of float32's seven digits, and the error of a good quantizer is what remains after subtracting nearly equal sums.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from onnxvitq.spec import FloatArray

DoubleArray = NDArray[np.float64]

CHUNK = 2048  # rows made float64 at a time: bounds the copy, 50 MB at 3072 inputs
CONSTANT = 1e-12  # variance of an input over its mean square below which it is rounding noise of a constant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Weighted sums over rows a (I,), targets t (O,) and row weights w; float64, read-only. Memory: (I + O) I doubles.

    gram: (I, I), sum of w a a^T. cross: (I, O), sum of w a t^T. sum_a: (I,). sum_t: (O,). t2: (O,), sum of w t^2.
    mass: sum of w. rows: how many.
    """

    gram: DoubleArray
    cross: DoubleArray
    sum_a: DoubleArray
    sum_t: DoubleArray
    t2: DoubleArray
    mass: float
    rows: int

    def __post_init__(self) -> None:
        inputs, outputs = self.cross.shape
        found = (self.gram.shape, self.sum_a.shape, self.sum_t.shape, self.t2.shape)
        if found != ((inputs, inputs), (inputs,), (outputs,), (outputs,)):
            raise ValueError(
                f"moments of {inputs} inputs and {outputs} outputs: got gram, sums and t2 of shapes {found}"
            )
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Centred:
    """Moments about the means, as a free bias leaves them. gram: (I, I), cross: (I, O), mean_a: (I,), mean_t: (O,)."""

    gram: DoubleArray
    cross: DoubleArray
    mean_a: DoubleArray
    mean_t: DoubleArray


def empty(inputs: int, outputs: int) -> Moments:
    """Moments of no rows: where a sum starts."""
    return Moments(
        gram=np.zeros((inputs, inputs)),
        cross=np.zeros((inputs, outputs)),
        sum_a=np.zeros(inputs),
        sum_t=np.zeros(outputs),
        t2=np.zeros(outputs),
        mass=0.0,
        rows=0,
    )


def add(moments: Moments, a: FloatArray, t: FloatArray, w: FloatArray) -> Moments:
    """Moments with the rows of one more batch in them; the argument is left as it was.

    Args:
        moments: what came before; ``empty`` at first.
        a: (N, I) inputs, as the quantized layer sees them.
        t: (N, O) what the layer should put out. Layers that read one input are put side by side along O.
        w: (N,) weight of each row, not negative: how much its position matters to the model's output.

    Raises:
        ValueError: shapes disagree, a weight is negative, or a value is not finite.
    """
    shapes = (a.shape, t.shape, w.shape)
    if shapes != ((len(w), len(moments.sum_a)), (len(w), len(moments.sum_t)), (len(w),)):
        raise ValueError(f"expected rows of {moments.cross.shape} features and their weights, got {shapes}")
    if (w < 0).any():
        raise ValueError("row weights must not be negative")
    gram, cross = moments.gram, moments.cross
    sum_a, sum_t, t2 = moments.sum_a.copy(), moments.sum_t.copy(), moments.t2.copy()
    for start in range(0, len(w), CHUNK):
        root = np.sqrt(w[start : start + CHUNK].astype(np.float64))
        x, y = (np.multiply(root[:, None], rows[start : start + CHUNK], dtype=np.float64) for rows in (a, t))
        # (I, n) @ (n, I): BLAS does half of it, and the result is exactly symmetric. (I, n) @ (n, O).
        gram, cross = _onto(x.T @ x, gram), _onto(x.T @ y, cross)
        sum_a += root @ x
        sum_t += root @ y
        t2 += np.einsum("no,no->o", y, y)
    if not (np.isfinite(gram.diagonal()).all() and np.isfinite(t2).all()):
        raise ValueError("a row, a target or a weight is not finite")
    mass = moments.mass + float(w.sum(dtype=np.float64))
    return Moments(gram=gram, cross=cross, sum_a=sum_a, sum_t=sum_t, t2=t2, mass=mass, rows=moments.rows + len(w))


def _onto(product: DoubleArray, sums: DoubleArray) -> DoubleArray:
    """The product, the sums so far added to it: no third matrix of that size."""
    product += sums
    return product


def merge(left: Moments, right: Moments) -> Moments:
    """Moments of the rows of both.

    Raises:
        ValueError: they are of layers of different shapes.
    """
    if left.cross.shape != right.cross.shape:
        raise ValueError(f"moments of different layers: {left.cross.shape} and {right.cross.shape}")
    return Moments(
        gram=left.gram + right.gram,
        cross=left.cross + right.cross,
        sum_a=left.sum_a + right.sum_a,
        sum_t=left.sum_t + right.sum_t,
        t2=left.t2 + right.t2,
        mass=left.mass + right.mass,
        rows=left.rows + right.rows,
    )


def means(moments: Moments) -> tuple[DoubleArray, DoubleArray]:
    """E[a] (I,) and E[t] (O,).

    Raises:
        ValueError: no row has weight.
    """
    if not moments.mass > 0:
        raise ValueError("no row has weight: there is nothing to fit to")
    return moments.sum_a / moments.mass, moments.sum_t / moments.mass


def centred(moments: Moments) -> Centred:
    """Sums of products of the deviations from the means.

    An input that never varied keeps the rounding noise of the subtraction; its row and column are zero instead, so that
    nobody divides noise by noise.

    Raises:
        ValueError: no row has weight.
    """
    mean_a, mean_t = means(moments)
    gram, cross = np.outer(moments.sum_a, mean_a), np.outer(moments.sum_a, mean_t)
    np.subtract(moments.gram, gram, out=gram)  # one matrix of the size, not two: it is what the fit's memory is made of
    np.subtract(moments.cross, cross, out=cross)
    constant = gram.diagonal() <= CONSTANT * moments.gram.diagonal()
    gram[constant], gram[:, constant], cross[constant] = 0.0, 0.0, 0.0
    return Centred(gram=gram, cross=cross, mean_a=mean_a, mean_t=mean_t)


def output_error(moments: Moments, weight: FloatArray, bias: FloatArray) -> DoubleArray:
    """Sum over the rows of w (a W + b - t)^2, for each output: (O,) float64, or (B, O) of so many biases.

    The square is expanded about the means, the deviations' part and the mean's part apart: less cancels than in raw sums.

    Args:
        moments: of the rows to judge on, which need not be those of a fit.
        weight: (I, O).
        bias: (O,), or (B, O).

    Raises:
        ValueError: no row has weight, or shapes disagree.
    """
    if weight.shape != moments.cross.shape or bias.shape[-1:] != moments.sum_t.shape:
        raise ValueError(f"expected a layer of shape {moments.cross.shape}, got {weight.shape} and bias {bias.shape}")
    about = centred(moments)
    W = weight.astype(np.float64)
    spread = moments.t2 - moments.sum_t * about.mean_t
    spread += np.einsum("io,io->o", W, about.gram @ W - 2 * about.cross)  # (I, I) @ (I, O)
    offset = about.mean_a @ W + bias - about.mean_t
    return np.maximum(spread, 0.0) + moments.mass * offset**2
