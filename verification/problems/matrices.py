"""Matrices with a spectrum that we chose, in a rotated basis. A draw is a seed and sizes; NumPy does the rest."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])
any_size, small_size, player_size, player_count = (st.integers(1, n) for n in (12, 8, 4, 4))
gram_size = st.integers(1, 16)
log_scale = st.integers(-8, 8)
KINDS = ("random", "repeated", "clustered", "graded", "rank_one", "zero")
any_kind = st.sampled_from(KINDS)


def rotation(rng, n):
    """An orthogonal matrix without preferred directions."""
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def with_spectrum(rng, eigenvalues):
    """A full symmetric matrix with these eigenvalues."""
    V = rotation(rng, len(eigenvalues))
    A = (V * eigenvalues) @ V.T
    return (A + A.T) / 2


def spectrum(rng, kind, n):
    """Eigenvalues of one of the `KINDS`, in no order."""
    if kind == "repeated":
        return rng.choice([-1.0, 2.0, 3.0], size=n)
    if kind == "clustered":
        return rng.choice([1.0, 2.0], size=n) + 1e-10 * rng.normal(size=n)
    if kind == "graded":
        return 10.0 ** -np.linspace(0.0, 14.0, n)
    if kind == "rank_one":
        return np.eye(n)[0]
    return np.zeros(n) if kind == "zero" else rng.normal(size=n)


@st.composite
def symmetric_matrices(draw, sizes=any_size, kinds=any_kind, log_scales=log_scale):
    """Indefinite or degenerate symmetric matrices, float32 or float64, of norm about 10 ** log_scale."""
    rng = np.random.default_rng(draw(seeds))
    A = with_spectrum(rng, spectrum(rng, draw(kinds), draw(sizes)))
    return (A * 10.0 ** draw(log_scales)).astype(draw(dtypes))


@st.composite
def spd_matrices(draw, sizes=small_size, max_condition=1e12, dtype=dtypes):
    """Full positive definite matrices: the condition number is log-uniform up to `max_condition`.

    In float32 it stays below 1e4, so that rounding the entries leaves the smallest eigenvalue positive.
    """
    rng, n, dtype = np.random.default_rng(draw(seeds)), draw(sizes), draw(dtype)
    limit = np.log10(min(max_condition, 1e4 if dtype == np.float32 else np.inf))
    exponents = draw(st.floats(0.0, limit)) * np.concatenate([[0.0, 1.0], rng.uniform(size=n)])[:n]
    return (10.0 ** draw(st.integers(-4, 4)) * with_spectrum(rng, 10.0**-exponents)).astype(dtype)


@st.composite
def gram_matrices(draw, sizes=gram_size, max_log_norm=12, dtype=dtypes):
    """`X^T X` computed in the dtype it is returned in, with duplicated columns and rank down to one."""
    rng, n, dtype = np.random.default_rng(draw(seeds)), draw(sizes), draw(dtype)
    X = rng.normal(size=(draw(st.integers(1, n)), n)) * 10.0 ** draw(st.floats(-3.0, max_log_norm / 2))
    if draw(st.booleans()):
        X = X[:, rng.integers(0, n, size=n)]
    X = X.astype(dtype)
    return X.T @ X


class Partitioned(NamedTuple):
    """A symmetric positive definite game: `blocks[n][m]` and one right-hand side per player."""

    blocks: list
    rhs: list

    @property
    def joint(self):
        return np.block(self.blocks)


def partition(A, sizes):
    """Cuts a matrix into blocks of these sizes."""
    cuts = np.cumsum(sizes)[:-1]
    return [np.split(rows, cuts, axis=-1) for rows in np.split(A, cuts, axis=-2)]


@st.composite
def partitioned_spd(draw, players=player_count, sizes=player_size, max_condition=1e12, dtype=dtypes):
    """A joint matrix as `spd_matrices` makes it, cut into players' blocks, with right-hand sides, zero among them."""
    lengths = [draw(sizes) for _ in range(draw(players))]
    joint = draw(spd_matrices(sizes=st.just(sum(lengths)), max_condition=max_condition, dtype=dtype))
    rng, columns = np.random.default_rng(draw(seeds)), draw(st.integers(1, 3))
    loudness = draw(st.sampled_from([1.0, 1.0, 1e6, 0.0]))
    rhs = [(loudness * rng.normal(size=(n, columns))).astype(joint.dtype) for n in lengths]
    return Partitioned(partition(joint, lengths), rhs)
