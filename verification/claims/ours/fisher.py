"""Metrics of the loss's Gauss-Newton matrix from one random cotangent of the outputs (OURS-24)."""

import itertools

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import losses
from verification.claim import same
from verification.papers import OURS
from verification.references import losses as reference

MOST = 6  # outputs: 64 patterns of signs


class Pattern(losses.Signs):
    """Signs that are given, row by row of what they are asked for."""

    def __init__(self, rows):
        super().__init__(tf.constant([0, 0]))
        self.rows = rows

    def __call__(self, like):
        """All of them at once."""
        return tf.constant(self.rows, like.dtype)


@st.composite
def ends(draw):
    """Kind of loss, one sample's logits, f and the Jacobian J of its outputs in some parameters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    kind = draw(st.sampled_from(["softmax", "sigmoid", "square"]), label="loss")
    outputs, parameters = draw(st.integers(2 if kind == "softmax" else 1, MOST)), draw(st.integers(1, 5))
    z = rng.standard_normal(outputs) * draw(st.sampled_from([0.0, 1.0, 10.0]), label="size of the logits")
    if draw(st.booleans(), label="nearly certain"):
        z[rng.integers(outputs)] += 25.0
    rank = draw(st.integers(1, min(outputs, parameters)), label="rank of J")
    J = rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, parameters))
    return kind, z, draw(st.sampled_from([0.0, 0.5, 3.0]), label="f"), J


def head_of(kind: str, z: np.ndarray, f: float):
    """Our head for all patterns of signs at once, and the Hessian from the formulas."""
    count = 2 ** len(z)
    rows = tf.constant(np.tile(z, (count, 1)))
    if kind == "softmax":
        _, _, H = reference.categorical(z, np.eye(len(z))[0])
        weights = tf.fill([count], tf.constant(f, tf.float64))
        return losses.SoftmaxHead(
            rows, tf.one_hot([0] * count, len(z), dtype=tf.float64), weights, tf.nn.softmax(rows)
        ), f * H
    _, slope, H = (reference.binary if kind == "sigmoid" else reference.square)(z, np.zeros(len(z)))
    spread = tf.constant(np.tile(f * np.diag(H), (count, 1)))
    return losses.DiagonalHead(kind, tf.constant(np.tile(f * slope, (count, 1))), spread), f * H


@OURS.exact(
    "24",
    "in place of the empirical Fisher matrix of DDP1 Sec. 4.3, DDPN Sec. 3.2, GTDDP Tab. 1",
    "with Z Z' = H the Hessian of a sample's cost in the outputs, J their Jacobian in the parameters and e of"
    " independent signs, the mean over all e of q q', q = J' Z e, is the sample's Gauss-Newton matrix J' H J; of one"
    " output every q q' is. For softmax Z = (I - p 1') diag(sqrt p), whose columns are the scores of the labels times"
    " the roots of their chances, so that J' H J is the Fisher matrix of the label drawn from the model",
    remark="One backward pass more, of Z e, gives K-FAC's factors, EKFAC's moments and the whole matrix of it:"
    ' `fisher="model"`. The papers use the gradients of the loss itself.',
    over=ends(),
)
def drawn_cotangents(problem):
    """Our draws under every pattern of signs against the dense Hessian."""
    kind, z, f, J = problem
    head, H = head_of(kind, z, f)
    patterns = np.array(list(itertools.product([-1.0, 1.0], repeat=len(z))))
    q = head.draw(Pattern(patterns)).numpy() @ J
    scale = np.linalg.norm(J) ** 2 * np.trace(H)
    yield same(q.T @ q / len(patterns), J.T @ H @ J, condition=len(z), scale=scale, label="mean of q q'")
    if kind == "softmax":
        half = np.sqrt(f) * reference.categorical_half(np.exp(z - z.max()) / np.exp(z - z.max()).sum())
        yield same(half @ half.T, H, condition=len(z), scale=np.trace(H), label="Z Z'")
        exact = patterns @ half.T
        scale = np.linalg.norm(half)
        yield same(head.draw(Pattern(patterns)), exact, condition=len(z), scale=scale, label="Z e")
    if len(z) == 1:
        every = q[:, :, None] * q[:, None, :]
        yield same(every, np.broadcast_to(J.T @ H @ J, every.shape), condition=1, scale=scale, label="q q'")
