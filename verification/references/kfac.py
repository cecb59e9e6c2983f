"""Kronecker-factored curvature as dense matrices in float64; reference for `bellman_tf/curvature/kfac.py`.

Matrix form of a layer: rows are input features (tap, channel), the bias's constant one last; columns are outputs. Its
entries are read row by row, so `A^{-1} G B^{-1}` is division by `kron(A, B)`.
"""

import itertools

import numpy as np


def input_factor(rows):
    """A = (1/B) sum_i sum_l x_il x_il', for rows `[B, L, n]` (Grosse and Martens 2016, Sec. 3: Omega)."""
    return np.einsum("bli,blj->ij", rows, rows) / len(rows)


def gradient_factor(c):
    """B = (1/(B L)) sum_i sum_l c_il c_il', for cotangents `[B, L, e]` (Grosse and Martens 2016, Sec. 3: Gamma)."""
    return np.einsum("bli,blj->ij", c, c) / (c.shape[0] * c.shape[1])


def uncorrelated_factor(pixels, positions):
    """One tap's factor when every output sees the mean pixel moment: positions E[x x'], for pixels `[B, *, c]`."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    return positions * flat.T @ flat / len(flat)


def autocorrelation_factor(pixels, kernel, dilation, positions):
    """Full factor from the autocovariance of the image, zero outside."""
    sizes, channels = pixels.shape[1:-1], pixels.shape[-1]
    taps = list(itertools.product(*map(range, kernel)))
    blocks = [[np.zeros((channels, channels)) for _ in taps] for _ in taps]
    for (m, a), (n, b) in itertools.product(enumerate(taps), enumerate(taps)):
        shift = [(p - q) * d for p, q, d in zip(a, b, dilation, strict=True)]
        for pixel in itertools.product(*map(range, sizes)):
            other = tuple(k + s for k, s in zip(pixel, shift, strict=True))
            if all(0 <= k < size for k, size in zip(other, sizes, strict=True)):
                blocks[m][n] += np.einsum("bi,bj->ij", pixels[(slice(None), *other)], pixels[(slice(None), *pixel)])
    return np.block(blocks) * positions / (len(pixels) * np.prod(sizes))


def damping_ratio(A, B):
    """pi, whose square is the ratio of the mean eigenvalues (Martens and Grosse 2015, Sec. 6.3)."""
    return np.sqrt((np.trace(A) / len(A)) / (np.trace(B) / len(B)))


def full_input_factor(factor, form, taps, bias_moment):
    """The factor over all rows of the matrix form; `bias_moment` is `None` without a bias that stands apart."""
    if form == "sua":
        factor = np.kron(np.eye(taps), factor)
    if bias_moment is None:
        return factor
    size = len(factor)
    full = np.zeros((size + 1, size + 1))
    full[:size, :size], full[size, size] = factor, bias_moment
    return full


def kfac(factor, B, form, taps, bias_moment, damping):
    """M = (A + pi sqrt(damping) I) (x) (B + sqrt(damping) / pi I), pi taken before the factor is repeated."""
    pi = damping_ratio(factor, B)
    A = full_input_factor(factor, form, taps, bias_moment)
    return np.kron(A + pi * np.sqrt(damping) * np.eye(len(A)), B + np.sqrt(damping) / pi * np.eye(len(B)))


def eigenbasis(factor, B, form, taps, bias_moment):
    """U = U_A (x) U_B, one eigenvector per column, and K-FAC's own eigenvalues in that basis."""
    values_A, vectors_A = np.linalg.eigh(factor)
    values_B, vectors_B = np.linalg.eigh(B)
    values_A = np.diag(full_input_factor(np.diag(values_A), form, taps, bias_moment))
    vectors_A = full_input_factor(vectors_A, form, taps, None if bias_moment is None else 1.0)
    return np.kron(vectors_A, vectors_B), np.kron(np.maximum(values_A, 0), np.maximum(values_B, 0))


def exact_scalings(U, q):
    """E[(U' q)^2] of per-sample gradients `[B, P]` (George et al. 2018, Sec. 3)."""
    return np.mean((q @ U) ** 2, axis=0)


def uncorrelated_scalings(U, rows, c):
    """The same with the positions of a sample taken as independent: sum over positions of squares."""
    q = np.einsum("bli,blj->blij", rows, c).reshape(*rows.shape[:2], -1)
    return np.sum((q @ U) ** 2, axis=(0, 1)) / len(rows)


def ekfac(U, scalings, damping):
    """M = U diag(s + damping) U'."""
    return U @ np.diag(scalings + damping) @ U.T
