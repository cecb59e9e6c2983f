"""The expansion through a layer sigma(W x + b): Eqs. 13, 14 and 24-28."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman, linalg
from verification.claim import same
from verification.derivations.expansion import PARTS
from verification.derivations.layers import layer_expansion, mixed_product, slopes_of_activations
from verification.papers import DDP1
from verification.problems.control import Behind, as_value, behinds
from verification.references import jets


def expansion_through_layer(problem: Behind):
    """All parts, and the derivatives of sigma."""
    yield from slopes_of_activations(problem)
    yield from layer_expansion(*PARTS)(problem)


SMOOTH = "sigma acts coordinate-wise; relu off its kink, with sigma'' = 0"
DDP1.exact(
    "E13",
    "Eq. 13",
    "Q_x = l_x + g_x' V_h, Q_u = l_u + g_u' V_h, Q_ab = l_ab + g_a' (V_hh + V'_x . sigma_hh) g_b + V_h . g_ab, with "
    "V_h = sigma_h' V'_x, V_hh = sigma_h' V'_xx sigma_h",
    assumes=SMOOTH,
    over=behinds(),
)(expansion_through_layer)
DDP1.exact("E24", "Eq. 24", "Q_u = l_u + g_u' sigma_h' V'_x", assumes=SMOOTH, over=behinds())(layer_expansion("Q_u"))
DDP1.exact(
    "E25", "Eq. 25", "Q_uu = l_uu + g_u' (V_hh + V'_x . sigma_hh) g_u + V_h . g_uu", assumes=SMOOTH, over=behinds()
)(layer_expansion("Q_uu"))


def affine_tensors(problem: Behind):
    """g_ux [n', m, n] and the largest entries of g_xx and g_uu, by twice differentiating W x + b."""
    n, f = problem.layer.cols, problem.layer
    _, _, H = jets.expansion(lambda z: f.preactivation(z[:n], z[n:]), problem.point())
    return H[:, n:, :n], H[:, :n, :n], H[:, n:, n:]


def index_formula(problem: Behind):
    """Eq. 27 entry by entry, i, j, k counted from 1."""
    out, n = problem.layer.rows, problem.layer.cols
    g_ux = np.zeros((out, out * (n + 1), n))
    for i in range(1, out + 1):
        for k in range(1, n + 1):
            g_ux[i - 1, (k - 1) * out + i - 1, k - 1] = 1
    truth, g_xx, g_uu = affine_tensors(problem)
    yield same(g_ux, truth, label="g_ux")
    yield same(g_xx, np.zeros_like(g_xx), label="g_xx")
    yield same(g_uu, np.zeros_like(g_uu), label="g_uu")


def product_formula(problem: Behind):
    """V_h . g_ux by Eq. 14 against the contraction of the tensor, and through our expansion of the affine map alone."""
    V_h, n = problem.v, problem.layer.cols
    truth = np.einsum("i,ijk->jk", V_h, affine_tensors(problem)[0])
    yield same(mixed_product(V_h, n), truth, label="V_h . g_ux")
    x, W = problem.states()[0][0], problem.layer.split(problem.control)[0]
    g_u = np.hstack([np.kron(x, np.eye(len(V_h))), np.eye(len(V_h))])
    value = as_value(V_h, np.zeros((len(V_h),) * 2))
    Q = bellman.expand(value, tf.constant(W), tf.constant(g_u), dynamics_ux=tf.constant(affine_tensors(problem)[0]))
    yield same(Q.Q_ux, truth, label="our Q_ux of the affine map")
    dx = np.random.default_rng(0).standard_normal(n)
    bias = np.zeros(len(V_h))
    weights = linalg.vec(tf.constant(np.outer(V_h, dx)))
    yield same(np.concatenate([weights, bias]), truth @ dx, label="(V_h . g_ux) dx = vec(V_h dx')")


def sparse_tensor(problem: Behind):
    """Both halves of Eq. 14."""
    yield from index_formula(problem)
    yield from product_formula(problem)


DDP1.exact(
    "E14",
    "Eq. 14",
    "[g_ux]_(i,j,k) = 1 iff j = (k-1) n' + i, else 0; V_h . g_ux holds V_h in rows (k-1) n' + 1 ... k n' of column k; "
    "g_xx = g_uu = 0",
    remark="Hence (V_h . g_ux) dx = vec(V_h dx'), with zeros for the bias: OURS-7. Read inclusively the range ((k-1) "
    "n' : k n') has one entry too many.",
    over=behinds(),
)(sparse_tensor)
DDP1.exact("E27", "Eq. 27", "[g_ux]_(i,j,k) = 1 iff j = (k-1) n' + i", over=behinds())(index_formula)
DDP1.exact(
    "E28",
    "Eq. 28",
    "[V_h . g_ux]_(j,k) = [V_h]_{j-(k-1)n'} for j in block k, else 0",
    remark='The stored text leaves out "for j in block k"; outside it the index runs out of range.',
    over=behinds(),
)(product_formula)


@DDP1.exact("E26", "Eq. 26", "[g]_i = sum_k [u]_{(k-1) n' + i} [x]_k + [u]_{n n' + i}", over=behinds())
def affine_map(problem: Behind):
    """The sum, i and k counted from 1, against the layer and against our `unvec`."""
    f, u, x = problem.layer, problem.control, problem.states()[0][0]
    n, out = f.cols, f.rows
    g = [
        sum(u[(k - 1) * out + i - 1] * x[k - 1] for k in range(1, n + 1)) + u[n * out + i - 1]
        for i in range(1, out + 1)
    ]
    scale = np.linalg.norm(u) * np.linalg.norm(x) + np.linalg.norm(u)
    yield same(g, f.preactivation(x, u), scale=scale, label="W x + b")
    W = linalg.unvec(tf.constant(u[: n * out]), out, n)
    yield same(tf.linalg.matvec(W, tf.constant(x)) + u[n * out :], g, scale=scale, label="our unvec")
