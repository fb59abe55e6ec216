"""Second moments of a linear layer's rows, summed batch by batch. Ridge regression and rounding need only these, not the rows.

Shapes: N rows, I inputs, O outputs. Everything here is float64: sums of products over 10^4 rows and more lose three or four
of float32's seven digits, and the error of a good quantizer is what remains after subtracting nearly equal sums. These
matrices are most of what a fit holds (75 MB for 3072 inputs), so sums are added to and centred in place.
"""

from dataclasses import dataclass, fields

import numpy as np

from onnxvitq.core.tensors import DoubleArray, FloatArray

CHUNK = 1024  # rows made float64 at a time: bounds the copy, 25 MB at 3072 inputs
BLOCK = 1024  # inputs whose products are made at a time: bounds what is added to the sums, 8 MB
CONSTANT = 1e-12  # variance of an input over its mean square below which it is rounding noise of a constant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Weighted second moments about the means, of rows a (I,) with targets t (O,) and weights w; float64, read-only.

    About the means, because a layer's bias is free. An input that never varied has zeros.

    Attributes:
        gram: (I, I), sum of w (a - mean_a)(a - mean_a)^T.
        cross: (I, O), sum of w (a - mean_a)(t - mean_t)^T.
        mean_a: (I,), weighted mean of a.
        mean_t: (O,), weighted mean of t.
        t2: (O,), sum of w (t - mean_t)^2.
        mass: sum of w.
        rows: number of rows.
    """

    gram: DoubleArray
    cross: DoubleArray
    mean_a: DoubleArray
    mean_t: DoubleArray
    t2: DoubleArray
    mass: float
    rows: int

    def __post_init__(self) -> None:
        inputs, outputs = self.cross.shape
        found = (self.gram.shape, self.mean_a.shape, self.mean_t.shape, self.t2.shape)
        if found != ((inputs, inputs), (inputs,), (outputs,), (outputs,)):
            raise ValueError(
                f"moments of {inputs} inputs and {outputs} outputs: got gram, means and t2 of shapes {found}"
            )
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)


class Sums:
    """Sums from which moments are computed. Memory: (I + O) I doubles.

    Args:
        inputs: I.
        outputs: O.

    Attributes:
        mass: sum of the weights so far.
        rows: number of rows so far.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self._gram = np.zeros((inputs, inputs))  # its blocks on and above the diagonal
        self._cross = np.zeros((inputs, outputs))
        self._a, self._t, self._t2 = np.zeros(inputs), np.zeros(outputs), np.zeros(outputs)
        self._blocks = [slice(start, min(start + BLOCK, inputs)) for start in range(0, inputs, BLOCK)]
        self.mass, self.rows = 0.0, 0

    def add(self, a: FloatArray, t: FloatArray, w: FloatArray) -> None:
        """Add the rows of a batch.

        Args:
            a: (N, I) inputs, as the quantized layer sees them.
            t: (N, O) outputs that the layer should have. Layers that read one input are put side by side along O.
            w: (N,) weight of each row, not negative: how much its position matters to the model's output.

        Raises:
            ValueError: shapes disagree, a weight is negative, or a value is not finite.
        """
        shapes = (a.shape, t.shape, w.shape)
        if shapes != ((len(w), len(self._a)), (len(w), len(self._t)), (len(w),)):
            raise ValueError(f"expected rows of {self._cross.shape} features and their weights, got {shapes}")
        if (w < 0).any():
            raise ValueError("row weights must not be negative")
        for start in range(0, len(w), CHUNK):
            root = np.sqrt(w[start : start + CHUNK].astype(np.float64))
            x, y = (np.multiply(root[:, None], rows[start : start + CHUNK], dtype=np.float64) for rows in (a, t))
            for number, block in enumerate(self._blocks):
                self._cross[block] += x[:, block].T @ y  # (B, n) @ (n, O)
                for other in self._blocks[number:]:
                    # (B, n) @ (n, B): of a block with itself BLAS does half, and the result is exactly symmetric.
                    self._gram[block, other] += x[:, block].T @ x[:, other]
            self._a += root @ x
            self._t += root @ y
            self._t2 += np.einsum("no,no->o", y, y)
        if not (np.isfinite(self._gram.diagonal()).all() and np.isfinite(self._t2).all()):
            raise ValueError("a row, a target or a weight is not finite")
        self.mass += float(w.sum(dtype=np.float64))
        self.rows += len(w)

    def merge(self, other: "Sums") -> None:
        """Add the rows of other sums.

        Raises:
            ValueError: they are of a layer of another shape.
        """
        if self._cross.shape != other._cross.shape:
            raise ValueError(f"moments of different layers: {self._cross.shape} and {other._cross.shape}")
        self._gram += other._gram
        self._cross += other._cross
        self._a += other._a
        self._t += other._t
        self._t2 += other._t2
        self.mass += other.mass
        self.rows += other.rows

    def about_means(self) -> Moments:
        """The moments. They are computed in place of the sums, to which nothing can be added afterwards.

        For an input that never varied, the subtraction leaves rounding noise; its row and column are set to zero, so that
        nobody divides noise by noise.

        Raises:
            ValueError: no row has weight: there is nothing to fit to.
        """
        if not self.mass > 0:
            raise ValueError("no row has weight: there is nothing to fit to")
        mean_a, mean_t, square = self._a / self.mass, self._t / self.mass, self._gram.diagonal().copy()
        for number, block in enumerate(self._blocks):
            self._cross[block] -= np.outer(self._a[block], mean_t)
            for other in self._blocks[number:]:
                self._gram[block, other] -= np.outer(self._a[block], self._a[other]) / self.mass
                if other is not block:
                    self._gram[other, block] = self._gram[block, other].T
        constant = self._gram.diagonal() <= CONSTANT * square
        self._gram[constant], self._gram[:, constant], self._cross[constant] = 0.0, 0.0, 0.0
        spread = self._t2 - self._t * mean_t
        return Moments(
            gram=self._gram,
            cross=self._cross,
            mean_a=mean_a,
            mean_t=mean_t,
            t2=spread,
            mass=self.mass,
            rows=self.rows,
        )


def output_error(moments: Moments, weight: FloatArray, bias: FloatArray) -> DoubleArray:
    """Sum over the rows of w (a W + b - t)^2, for each output: (O,) float64, or (B, O) for B biases.

    The square is expanded about the means, the deviations' part and the mean's part apart: less cancels than in raw sums.

    Args:
        moments: of the rows to evaluate on, which may be others than those of a fit.
        weight: (I, O).
        bias: (O,), or (B, O).

    Raises:
        ValueError: shapes disagree.
    """
    if weight.shape != moments.cross.shape or bias.shape[-1:] != moments.mean_t.shape:
        raise ValueError(f"expected a layer of shape {moments.cross.shape}, got {weight.shape} and bias {bias.shape}")
    W = weight.astype(np.float64)
    spread = moments.t2 + np.einsum("io,io->o", W, moments.gram @ W - 2 * moments.cross)  # (I, I) @ (I, O)
    offset = moments.mean_a @ W + bias - moments.mean_t
    return np.maximum(spread, 0.0) + moments.mass * offset**2
