"""Rotations of a residual stream: x Q in place of x spreads large channels over all of them, and the function is the same.

docs/methods.md, "Rotation of a residual stream".

A normalisation without gamma and beta commutes with an orthogonal Q that leaves the vector of ones where it is: it moves
neither the mean of a row (x Q 1 = x 1) nor its length, so norm(x Q) = norm(x) Q. The layers that write the stream take in Q,
those that read it take in Q^T (QuaRot, Ashkboos et al. 2024, who turn LayerNorm into RMSNorm first; with Q 1 = 1 that is not
needed). A single channel that is large becomes C channels that are a little larger, which one scale a tensor can serve.
Shapes: C channels.
"""

import numpy as np

from onnxvitq.core.tensors import DoubleArray, RealArray

STILL = 1e-12  # of the squared length of the vector of ones: below it nothing is left to reflect


def rotation(width: int, seed: int) -> DoubleArray:
    """Q (C, C) with Q^T Q = 1 and Q 1 = 1: signs and an order drawn at random, a Hadamard matrix, and one reflection.

    Where no Hadamard matrix of that order is known here, it is an orthogonal matrix drawn at random, reflected likewise.

    Args:
        width: C, at least 1.
        seed: the same seed gives the same matrix.
    """
    rng = np.random.default_rng(seed)
    base = hadamard(width)
    if base is None:
        turned, upper = np.linalg.qr(rng.normal(size=(width, width)))
        turned = turned * np.sign(np.diag(upper))  # uniform over all orthogonal matrices
    else:
        turned = base[rng.permutation(width)] * rng.choice([-1.0, 1.0], width) / np.sqrt(width)
    ones = np.ones(width)
    mirror = turned @ ones - ones  # the reflection that takes turned 1, which is as long as 1, to 1
    length = float(mirror @ mirror)
    if length <= STILL * width:
        return turned
    return turned - (2 / length) * np.outer(mirror, mirror @ turned)


def hadamard(order: int) -> DoubleArray | None:
    """(C, C) of +1 and -1 with orthogonal rows; None where neither doubling (Sylvester) nor a prime (Paley) makes one."""
    if order == 1:
        return np.ones((1, 1))
    if order % 2:
        return None
    half = hadamard(order // 2)
    if half is not None:
        return np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), half)
    return _paley(order - 1) if order % 4 == 0 and _is_prime(order - 1) else None


def turn(values: RealArray, axis: int, matrix: DoubleArray) -> RealArray:
    """``values`` with its vectors v along ``axis`` replaced by v Q, worked out in float64.

    A weight that writes a stream is turned along its output channels; one that reads it along its input channels, as
    Q^T W = (W^T Q)^T.

    Args:
        values: a weight or another constant.
        axis: its axis of channels.
        matrix: Q, (C, C).

    Raises:
        ValueError: the axis holds another number of channels.
    """
    if values.shape[axis] != len(matrix):
        raise ValueError(f"expected {len(matrix)} channels on axis {axis}, got shape {values.shape}")
    turned = np.moveaxis(np.moveaxis(values.astype(np.float64), axis, -1) @ matrix, -1, axis)
    return np.ascontiguousarray(turned.astype(values.dtype))


def _paley(prime: int) -> DoubleArray:
    """The Hadamard matrix of order prime + 1, for a prime that is 3 modulo 4."""
    residue = -np.ones(prime)
    residue[np.arange(1, prime) ** 2 % prime] = 1
    residue[0] = 0
    index = np.arange(prime)
    matrix = np.ones((prime + 1, prime + 1))
    matrix[1:, 0] = -1
    matrix[1:, 1:] = residue[(index[None, :] - index[:, None]) % prime] + np.eye(prime)
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
