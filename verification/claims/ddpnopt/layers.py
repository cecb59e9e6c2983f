"""Products with the Jacobians of dense and convolution layers: Eqs. 9-11."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from bellman_tf.layers.convolution import capture_convolution
from bellman_tf.layers.dense import LinearMap
from verification.claim import same
from verification.derivations.layers import layer_expansion, slopes_of_activations
from verification.papers import DDPN
from verification.problems.control import Behind, as_value, behinds, seeds
from verification.references import capture, jets


def expansion_through_h(problem: Behind):
    """The four parts and the derivatives of sigma."""
    yield from slopes_of_activations(problem)
    yield from layer_expansion("Q_x", "Q_u", "Q_xx", "Q_ux")(problem)


DDPN.exact(
    "E9",
    "Eq. 9",
    "Q_x = g_x' V_h, Q_u = l_u + g_u' V_h, Q_xx = g_x' V_hh g_x + V_h . g_xx, Q_ux = g_u' V_hh g_x + V_h . g_ux, with "
    "V_hh = sigma_h' V'_xx sigma_h + V'_x . sigma_hh",
    assumes="l = l(u); sigma acts coordinate-wise (relu off its kink)",
    remark="V_hh holds V'_x . sigma_hh here, and does not in DDP1-E13.",
    over=behinds(running=("none", "control")),
)(expansion_through_h)


@DDPN.exact(
    "E10",
    "Eq. 10",
    "dense layer: g_x' V_h = W' V_h, g_u' V_h = x (x) V_h",
    remark="For u = [vec(W); b] the bias adds V_h below; the outer product V_h x' in the order of vec.",
    over=behinds(),
)
def dense_products(problem: Behind):
    """Our expansion of the affine map, and our per-sample gradient of a dense layer, against differentiation."""
    f, (x,), V_h = problem.layer, problem.states()[0], problem.v
    n, out = f.cols, f.rows
    W = f.split(problem.control)[0]
    _, J, _ = jets.expansion(lambda z: f.preactivation(z[:n], z[n:]), problem.point())
    value = as_value(V_h, np.zeros((out, out)))
    Q = bellman.expand(value, tf.constant(J[:, :n]), tf.constant(J[:, n:]))
    by_u = np.concatenate([np.kron(x, V_h), V_h])
    yield same(W.T @ V_h, J[:, :n].T @ V_h, label="W' V_h")
    yield same(by_u, J[:, n:].T @ V_h, label="x (x) V_h")
    yield same(Q.Q_x, W.T @ V_h, label="our Q_x")
    yield same(Q.Q_u, by_u, label="our Q_u")
    layer = LinearMap(tf.constant(x[None]), [tf.constant(V_h[None])], (n, out), (out,))
    kernel, bias = layer.per_sample()
    yield same(np.concatenate([np.ravel(kernel), np.ravel(bias)]), by_u, label="our per-sample gradient")


class Image(NamedTuple):
    """A convolution of images x [B, h, w, c] with a kernel, and the derivative V_h of the value at its output."""

    x: np.ndarray
    kernel: np.ndarray
    strides: int
    padding: str
    rng: np.random.Generator


@st.composite
def images(draw):
    """Up to 5 x 5 pixels, 3 x 3 taps, two channels, strides 1 and 2, both paddings."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    h, w = draw(st.integers(3, 5), label="h"), draw(st.integers(3, 5), label="w")
    taps = draw(st.integers(1, 3), label="rows"), draw(st.integers(1, 3), label="columns")
    channels = draw(st.integers(1, 2), label="c"), draw(st.integers(1, 2), label="c'")
    strides, padding = (
        draw(st.integers(1, 2), label="strides"),
        draw(st.sampled_from(["valid", "same"]), label="padding"),
    )
    x = rng.standard_normal((draw(st.integers(1, 3), label="B"), h, w, channels[0]))
    return Image(x, rng.standard_normal((*taps, *channels)), strides, padding, rng)


def convolve(x, kernel, strides, padding):
    """H = omega * x [B, positions, c'], by the patches of the definition, and the output's sizes."""
    sizes = [
        -(-n // strides) if padding == "same" else (n - k) // strides + 1
        for n, k in zip(x.shape[1:3], kernel.shape, strict=False)
    ]
    seen = capture.patches(x, sizes, kernel.shape[:2], (strides, strides), (1, 1), padding)
    return np.einsum("bltc,tce->ble", seen, kernel.reshape(-1, *kernel.shape[2:])), sizes


@DDPN.exact(
    "E11",
    "Eq. 11",
    "convolution: g_x' V_h is the transposed convolution of V_h with omega, g_u' V_h the correlation of x with V_h",
    remark="The starred products are three different ones: convolution, its transpose (strides included), and a "
    "correlation whose output has the size of the kernel.",
    over=images(),
    examples=20,
)
def convolution_products(problem: Image):
    """The transposed convolution and our per-sample gradient, against the matrices of x -> h and omega -> h."""
    x, kernel, strides, padding, rng = problem
    B, (*_, width) = len(x), kernel.shape
    h, sizes = convolve(x, kernel, strides, padding)
    V_h = rng.standard_normal((B, *sizes, width))
    flat, scale = V_h.reshape(B, -1), np.linalg.norm(V_h)
    basis = np.eye(x[0].size).reshape(-1, *x.shape[1:])
    matrix = convolve(basis, kernel, strides, padding)[0].reshape(len(basis), -1)  # row: image of a basis vector
    transposed = tf.nn.conv2d_transpose(V_h, kernel, x.shape, strides, padding.upper())
    yield same(tf.nn.conv2d(x, kernel, strides, padding.upper()), h.reshape(V_h.shape), label="h = omega * x")
    yield same(np.reshape(transposed, (B, -1)), flat @ matrix.T, scale=scale, label="transposed convolution")
    layer = keras.layers.Conv2D(width, kernel.shape[:2], strides, padding, use_bias=False, dtype="float64")
    layer.build(x.shape)
    (ours,) = capture_convolution(layer, tf.constant(x), [tf.constant(V_h)]).per_sample()
    basis = np.eye(kernel.size).reshape(-1, *kernel.shape)
    moved = np.stack([convolve(x, omega, strides, padding)[0].reshape(B, -1) for omega in basis])
    yield same(np.reshape(ours, (B, -1)), np.einsum("kbh,bh->bk", moved, flat), scale=scale, label="correlation")
