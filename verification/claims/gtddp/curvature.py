"""Curvature approximations: Table 1, Kronecker factorisation (Eqs. 41-44, 48-51)."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from verification.claim import Counterexample, at_most, measured, same
from verification.papers import GTDDP
from verification.problems.moments import (
    KroneckerGame,
    Samples,
    kronecker_games,
    per_sample,
    residual_layer,
    seeds,
    tanh_layer,
)
from verification.problems.networks import ACTIVATIONS, Layer
from verification.references import complex_step, diagonal, kronecker


@st.composite
def layers(draw):
    """A layer, its input, its controls, and a value gradient behind it."""
    rng = np.random.default_rng(draw(seeds))
    n, m = draw(st.integers(1, 4), label="n"), draw(st.integers(1, 4), label="n'")
    layer = Layer(m, n, draw(st.sampled_from(sorted(ACTIVATIONS))))
    return layer, rng.normal(size=n), rng.normal(size=layer.size), rng.normal(size=m)


def sample_layers(max_batch=64):
    """Samples of one tanh layer; of one sample, too."""
    return st.builds(
        lambda seed, batch: tanh_layer(np.random.default_rng(seed), batch), seeds, st.sampled_from([1, 8, max_batch])
    )


def rmsprop_step():
    """One step of RMSprop without memory, J_u = 4, eta = 0.1, epsilon = 0."""
    J_u, eta = np.array([4.0]), 0.1
    truth = -J_u / diagonal.rmsprop([J_u], 0.0, 0.0, eta)
    return Counterexample(
        "step for J_u = 4, eta = 0.1, epsilon = 0, no running mean",
        -np.linalg.solve(np.diag(J_u * J_u) / eta, J_u),
        -np.linalg.solve(np.diag(np.sqrt(J_u * J_u)) / eta, J_u),
        truth,
    )


@GTDDP.misprint(
    "TAB1",
    "Table 1",
    "which matrices replace Q_uu in RMSprop, GT-DDP-RMSprop, EKFAC, GT-DDP-EKFAC, and that only the GT-DDP rows keep "
    "Q_ux",
    printed="RMSprop rows: (1 / eta) diag(J_u * J_u + epsilon), with Q_u in place of J_u for GT-DDP (* entrywise)",
    corrected="(1 / eta) diag(sqrt(E[J_u * J_u]) + epsilon); Keras: sqrt(E[J_u * J_u] + epsilon)",
    derivation="RMSprop divides by the root of the second moment, so that its step does not change when the loss is "
    "multiplied by c: J_u -> c J_u, sqrt(E[J_u * J_u]) -> c sqrt(E[J_u * J_u]). With the printed matrix the step "
    "would scale like 1 / c. The root is lost in the stored text at least. The Kronecker rows are right as "
    "definitions (of K-FAC's factors; EKFAC then rescales their eigenvalues).",
    origin="likely OCR",
    counterexample=rmsprop_step,
    over=st.tuples(sample_layers(8), st.floats(-4, 1).map(lambda x: 10.0**x)),
)
def table_1(problem: tuple[Samples, float]):
    """Diagonal rows through our gains; Kronecker rows through our solves; Q_u = alpha J_u in the GT-DDP rows."""
    samples, eta = problem
    (x,), (g,), (J,) = samples.x, samples.g, samples.q
    B = len(x)
    alpha = bellman.outer_product.init(B, 1.0, dtype=tf.float64)
    shrink = tf.constant(np.linspace(0.0, 0.5, B))
    value, _ = bellman.outer_product.backward(alpha, -shrink, shrink)
    for name, weight in (("J", np.ones(B)), ("Q", bellman.outer_product.weights(value).numpy())):
        q = weight[:, None] * J  # per-sample Q_u = alpha J_u: OURS-1
        mean = q.mean(axis=0)
        zero = tf.zeros([1, 1], tf.float64)
        Q = bellman.Expansion(zero[0], tf.constant(mean), zero, tf.zeros([len(mean), 1], tf.float64), zero)
        for c in (1.0, 100.0):
            metric = np.diag(np.sqrt(np.mean((c * q) ** 2, axis=0) + 1e-300)) / eta
            step = bellman.gains(Q._replace(Q_u=c * Q.Q_u), tf.constant(metric)).open_loop
            truth = -eta * mean / np.sqrt(np.mean(q**2, axis=0))
            yield same(step, truth, label=f"RMSprop row, {name}, loss times {c:g}")
        V_h = weight[:, None] * g
        A, G = x.T @ x / B + np.eye(x.shape[1]), V_h.T @ V_h / B + np.eye(g.shape[1])
        gradient = mean.reshape(x.shape[1], -1).T
        step = linalg.kron_solve(*map(tf.constant, (A, G, gradient)))
        truth = kronecker.kron_solve(A, G, gradient)
        condition = np.linalg.cond(A) * np.linalg.cond(G)
        yield same(step, truth, condition=condition, label=f"Kronecker row, {name}")


def parameter_gradient(problem):
    """f_u' V = [x (x) V_h; V_h], V_h = sigma'(h) * V, against the complex step through the layer."""
    layer, x, u, V = problem
    V_h = ACTIVATIONS[layer.activation][1](layer.preactivation(x, u)) * V
    truth = complex_step.jacobian(lambda u: V @ layer(x, u), u)
    weight = linalg.vec(tf.constant(np.outer(V_h, x))).numpy()
    size = np.linalg.norm(V) * (1 + np.linalg.norm(x))
    yield same(np.concatenate([weight, V_h]), truth, scale=size, label="vec(V_h x')")
    column = linalg.khatri_rao(tf.constant(x[:, None]), tf.constant(V_h[:, None])).numpy()[:, 0]
    yield same(column, weight, label="x (x) V_h")
    yield same(layer.derivatives(x, u).f_u.T @ V, truth, scale=size, label="f_u' V")


GTDDP.definition(
    "E41",
    "Eq. 41",
    "x' = sigma(h), h = W x + b; then J_u = x (x) J_h",
    remark="The bias is one more input that is always 1: its gradient is J_h.",
    over=layers(),
)(parameter_gradient)
GTDDP.exact("E43", "Eq. 43", "f_u' V_x = x (x) V_h with V_h = sigma_h' V_x", over=layers())(parameter_gradient)


def factorisation_errors(x, g):
    """Relative errors of K-FAC and EKFAC, by our eigenbases, and both as at-most-comparisons."""
    q, B = per_sample(x, g), len(x)
    F = diagonal.fisher(q)
    A, G = x.T @ x / B, g.T @ g / B
    K = linalg.kron(tf.constant(A), tf.constant(G)).numpy()
    U_A, U_G = (linalg.eigh(tf.constant(M))[1] for M in (A, G))
    coordinates = linalg.kron_multiply(
        tf.transpose(U_A), tf.transpose(U_G), tf.constant(np.einsum("ib,ia->iba", g, x))
    ).numpy()  # [B, b, a]
    U = np.kron(U_A, U_G)
    E = (U * np.mean(coordinates**2, axis=0).T.ravel()) @ U.T
    size = np.linalg.norm(F)
    return K, F, np.linalg.norm(K - F) / size, np.linalg.norm(E - F) / size


def factorisation_check(weigh):
    """The check of Eq. 42 (weight 1) or Eq. 44 (V_h = alpha J_h)."""

    def factorisation(samples: Samples):
        """Exact cases, the order of EKFAC and K-FAC, and the size of both errors for B = 64."""
        (x,), (g,) = samples.x, samples.g
        g = weigh(x, g)
        K, F, kfac_error, ekfac_error = factorisation_errors(x, g)
        if len(x) == 1:
            yield same(K, F, label="one sample")
        yield at_most(ekfac_error, kfac_error, label="EKFAC is not worse than K-FAC")
        few_x, few_g = x[:5], g[:4]
        product = per_sample(np.repeat(few_x, len(few_g), axis=0), np.tile(few_g, (len(few_x), 1)))
        moments = linalg.kron(tf.constant(few_x.T @ few_x / len(few_x)), tf.constant(few_g.T @ few_g / len(few_g)))
        yield same(moments, diagonal.fisher(product), label="independent x and g")
        rng = np.random.default_rng(int(abs(1e6 * x[0, 0])))
        (x,), (g,) = tanh_layer(rng, 64)
        _, _, kfac_error, ekfac_error = factorisation_errors(x, weigh(x, g))
        yield measured(kfac_error, "relative error of K-FAC")
        yield measured(ekfac_error, "relative error of EKFAC")

    return factorisation


def value_gradient(x, g):
    """V_h = alpha J_h of the papers' rank-one recursion after one stage with the identity metric: OURS-1."""
    quad = tf.constant(np.minimum(np.sum(per_sample(x, g) ** 2, axis=1), 0.9))
    value, _ = bellman.outer_product.backward(bellman.outer_product.init(len(x), 1.0, dtype=tf.float64), -quad, quad)
    return value.alpha.numpy()[:, None] * g


for key, place, statement, weigh in (
    ("E42", "Eq. 42", "E[J_u J_u'] = E[(x (x) J_h)(x (x) J_h)'] ~ E[x x'] (x) E[J_h J_h']", lambda _, g: g),
    ("E44", "Eq. 44", "E[Q_u Q_u'] = E[(x (x) V_h)(x (x) V_h)'] ~ E[x x'] (x) E[V_h V_h']", value_gradient),
):
    GTDDP.approximation(
        key,
        place,
        statement,
        assumes="exact for one sample, and where x and the gradient are statistically independent",
        remark="EKFAC, the best diagonal in the Kronecker eigenbasis, is never worse in the Frobenius norm. "
        "Catalogue: 0.30 and 0.28 for one layer; the median over our layers is about 0.4 and 0.36.",
        over=sample_layers(),
        ranges={"relative error of K-FAC": (0.15, 0.8), "relative error of EKFAC": (0.15, 0.7)},
    )(factorisation_check(weigh))


@GTDDP.definition(
    "E48",
    "Eq. 48",
    "h_u = u x_u with Q_uu ~ A_uu (x) B_uu, A_uu = E[x_u x_u'], B_uu = E[g_u g_u'], and the same for v; the update is "
    "-vec(B_uu^{-1} Q_u A_uu^{-T})",
    over=kronecker_games(players=(1, 1)),
)
def preconditioned_update(game: KroneckerGame):
    """Our solve for one player against the dense Kronecker product."""
    A, B, (G,) = game.A, game.B, game.gradients
    ((A_t,),), ((B_t,),), (G_t,) = game.tensors()
    truth = kronecker.kron_solve(A, B, G)
    condition = game.factor_condition
    yield same(linalg.kron_solve(A_t, B_t, G_t), truth, condition=condition, label="kron_solve")
    (alone,) = linalg.kronecker_cooperative_solve([[A_t]], [[B_t]], [G_t])
    yield same(alone, truth, condition=condition, label="one player")
    yield same(np.linalg.inv(B) @ G @ np.linalg.inv(A).T, truth, condition=condition, label="as printed")


def residual_samples():
    """Samples of the two players that end a residual block."""
    return st.builds(
        lambda seed, batch: residual_layer(np.random.default_rng(seed), batch), seeds, st.sampled_from([1, 2, 64])
    )


@GTDDP.exact("E49", "Eq. 49", "[h_u; h_v] = blkdiag(W_u, W_v) [x_u; x_v]", over=residual_samples())
def joint_preactivation(samples: Samples):
    """Players side by side against one layer, and the gradient of its existing blocks."""
    (x_u, x_v), (g_u, g_v), q = samples.x, samples.g, samples.q
    (a, b), (c, d) = (x_u.shape[1], x_v.shape[1]), (g_u.shape[1], g_v.shape[1])
    rng = np.random.default_rng(a)
    W_u, W_v = rng.normal(size=(c, a)), rng.normal(size=(d, b))
    W = np.block([[W_u, np.zeros((c, b))], [np.zeros((d, a)), W_v]])
    x, g = np.hstack([x_u, x_v]), np.hstack([g_u, g_v])
    yield same(x @ W.T, np.hstack([x_u @ W_u.T, x_v @ W_v.T]), label="h")
    gradient = linalg.khatri_rao(tf.constant(x.T), tf.constant(g.T)).numpy().T.reshape(len(x), a + b, c + d)
    yield same(gradient[:, :a, :c].reshape(len(x), -1), q[0], label="gradient of u")
    yield same(gradient[:, a:, c:].reshape(len(x), -1), q[1], label="gradient of v")


@GTDDP.approximation(
    "E50",
    "Eq. 50",
    "the joint curvature is A_ww (x) B_ww with A_ww = E[x^ x^'], B_ww = E[g^ g^'], x^ = (x_u, x_v), g^ = (g_u, g_v)",
    assumes="exact for one sample",
    remark="A_ww (x) B_ww acts on a full matrix, cross weights w_uv and w_vu included, that the network does not have. "
    "The model of the parameters that exist is its principal part H = [A_nm (x) B_nm], not itself a Kronecker product.",
    over=residual_samples(),
    ranges={"relative error of H, 64 samples": (0.1, 0.6)},
)
def joint_curvature(samples: Samples):
    """Our H against the principal part of the Kronecker product, and against the joint second moment."""
    inputs, outputs = ([z.shape[1] for z in side] for side in (samples.x, samples.g))
    x, g = np.concatenate(samples.x, axis=1), np.concatenate(samples.g, axis=1)
    game = KroneckerGame(x.T @ x / len(x), g.T @ g / len(g), inputs, outputs, [])
    H = linalg.block_khatri_rao(*game.tensors()[:2]).numpy()
    full = np.kron(game.A, game.B)
    yield same(H, full[np.ix_(game.selected, game.selected)], label="principal part")
    yield measured(H.shape[0] / full.shape[0], "parameters that exist / rows of A_ww (x) B_ww")
    moment = diagonal.fisher(np.concatenate(samples.q, axis=1))
    if len(x) == 1:
        yield same(H, moment, label="one sample")
    again = residual_layer(np.random.default_rng(int(1e6 * abs(x[0, 0]))), 64)
    x, g = np.concatenate(again.x, axis=1), np.concatenate(again.g, axis=1)
    game = KroneckerGame(x.T @ x / 64, g.T @ g / 64, inputs, outputs, [])
    H = kronecker.block_khatri_rao(game.A_blocks, game.B_blocks)
    moment = diagonal.fisher(np.concatenate(again.q, axis=1))
    yield measured(np.linalg.norm(H - moment) / np.linalg.norm(moment), "relative error of H, 64 samples")


@GTDDP.exact(
    "E51",
    "Eq. 51",
    "A_ww^{-1} = [[A~_uu^{-1}, -A~_uu^{-1} A_uv A_vv^{-1}], [-A~_vv^{-1} A_vu A_uu^{-1}, A~_vv^{-1}]], "
    "A~_uu = A_uu - A_uv A_vv^{-1} A_vu; the same for B_ww",
    assumes="A_ww, A_uu, A_vv nonsingular",
    over=kronecker_games(),
)
def inverse_of_the_moments(game: KroneckerGame):
    """Our blocks and the printed ones against the whole inverse."""
    for name, M, (blocks, size) in (
        ("A", game.A, (game.A_blocks, game.inputs[0])),
        ("B", game.B, (game.B_blocks, game.outputs[0])),
    ):
        (uu, uv), (vu, vv) = blocks
        inverse, condition = np.linalg.inv(M), np.linalg.cond(M) ** 1.5  # see `players.gain_check`
        rest = {"condition": condition, "scale": np.linalg.norm(inverse)}
        ours = linalg.block_inverse(*map(tf.constant, (uu, uv, vv)))
        yield same(ours[0], inverse[:size, :size], label=f"{name}, (u, u)", **rest)
        yield same(ours[1], inverse[:size, size:], label=f"{name}, (u, v)", **rest)
        yield same(ours[2], inverse[size:, size:], label=f"{name}, (v, v)", **rest)
        coop = vv - vu @ np.linalg.solve(uu, uv)
        printed = -np.linalg.solve(coop, vu @ np.linalg.inv(uu))
        yield same(printed, inverse[size:, :size], label=f"{name}, (v, u) as printed", **rest)
