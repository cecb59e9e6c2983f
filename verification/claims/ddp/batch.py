"""Batch DDP: the augmented expansion and recursion, Eqs. 29-33."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.linalg import block_diag

from bellman_tf import bellman
from verification.claim import Counterexample, same
from verification.claims.ddp.batch_pmp import stacked
from verification.derivations.expansion import blocks
from verification.derivations.layers import mixed_product
from verification.papers import DDP1
from verification.problems.control import Behind, arguments, as_value, behinds
from verification.problems.games import Game, games
from verification.problems.networks import ACTIVATIONS
from verification.references import batch, dense, jets

layers_behind = behinds(max_batch=3)
NAMES = dict(zip("abcde", ("Q_x", "Q_u", "Q_xx", "Q_uu", "Q_ux"), strict=True))


def ours(problem: Behind):
    """Our expansion of the augmented Bellman objective."""
    (F_X, F_u), samples = stacked(problem.chain, problem.stage)
    rest = {name: array for name, array in batch.augment(samples).items() if name not in {"f_x", "f_u"}}
    return bellman.expand(as_value(problem.v, problem.W), F_X, F_u, **arguments(rest))


def truth(problem: Behind):
    """The parts of Q by twice differentiating it, and the sizes of gradient and Hessian."""
    _, gradient, hessian = jets.expansion(problem.bellman_objective, problem.point())
    n = problem.states()[0].size
    return blocks(gradient, hessian, n), np.linalg.norm(gradient), np.linalg.norm(hessian)


def through_preactivations(problem: Behind):
    """The second form of Eqs. 29a-e: G, sigma_H, V_H, V_HH of the stacked layer."""
    X, f, L = problem.states()[0], problem.layer, batch.costs(problem.derivatives())
    B, out = len(X), f.rows
    H = np.concatenate([f.preactivation(x, problem.control) for x in X])
    sigma_H, sigma_HH = (derivative(H) for derivative in ACTIVATIONS[f.activation][1:])
    G_X = block_diag(*[f.split(problem.control)[0]] * B)
    G_u = np.vstack([np.hstack([np.kron(x, np.eye(out)), np.eye(out)]) for x in X])
    V_H, V_HH = sigma_H * problem.v, sigma_H[:, None] * problem.W * sigma_H
    inner = V_HH + np.diag(problem.v * sigma_HH)
    G_uX = np.hstack([mixed_product(V_H[batch.block(i, out)], f.cols) for i in range(B)])
    return {
        "Q_x": L["l_x"] + G_X.T @ V_H,
        "Q_u": L["l_u"] + G_u.T @ V_H,
        "Q_xx": L["l_xx"] + G_X.T @ inner @ G_X,
        "Q_uu": L["l_uu"] + G_u.T @ inner @ G_u,
        "Q_ux": L["l_ux"] + G_u.T @ inner @ G_X + G_uX,
    }


def augmented_part(name):
    """The check of one of Eqs. 29a-e, both its forms."""

    def check(problem: Behind):
        """Our stacked expansion and the form through H against forward differentiation."""
        parts, slope, curvature = truth(problem)
        scale = slope if len(name) == 3 else curvature
        yield same(getattr(ours(problem), name), parts[name], scale=scale, label=f"{name} through F")
        yield same(through_preactivations(problem)[name], parts[name], scale=scale, label=f"{name} through G")

    return check


for letter, formula in zip(
    "abcde",
    (
        "Q_X = L_X + F_X' V'_X = L_X + G_X' V_H",
        "Q_u = L_u + F_u' V'_X = L_u + G_u' V_H",
        "Q_XX = L_XX + F_X' V'_XX F_X + V'_X . F_XX = L_XX + G_X' (V_HH + V'_X . sigma_HH) G_X + V_H . G_XX",
        "Q_uu = L_uu + F_u' V'_XX F_u + V'_X . F_uu = L_uu + G_u' (V_HH + V'_X . sigma_HH) G_u + V_H . G_uu",
        "Q_uX = L_uX + F_u' V'_XX F_X + V'_X . F_uX = L_uX + G_u' (V_HH + V'_X . sigma_HH) G_X + V_H . G_uX",
    ),
    strict=True,
):
    DDP1.exact(f"E29{letter}", f"Eq. 29{letter}", formula, over=layers_behind)(augmented_part(NAMES[letter]))


@DDP1.definition("E30", "Eq. 30", "V_H = sigma_H' V'_X, V_HH = sigma_H' V'_XX sigma_H", over=layers_behind)
def at_preactivation(problem: Behind):
    """V_H is the gradient of V' o sigma in H, V_HH its Hessian without V'_X . sigma_HH; ours by expanding sigma."""
    X, f = problem.states()[0], problem.layer
    H = np.concatenate([f.preactivation(x, problem.control) for x in X])
    value, first, second = ACTIVATIONS[f.activation]

    def V(H):
        moved = value(H) - np.concatenate(list(problem.states()[1]))
        return problem.v @ moved + moved @ problem.W @ moved / 2

    _, gradient, hessian = jets.expansion(V, H)
    Q = bellman.expand(
        as_value(problem.v, problem.W), tf.constant(np.diag(first(H))), tf.zeros([len(H), 1], tf.float64)
    )
    yield same(Q.Q_x, gradient, label="V_H")
    curved = np.diag(problem.v * second(H))
    yield same(
        Q.Q_xx + curved, hessian, scale=np.linalg.norm(Q.Q_xx) + np.linalg.norm(curved), label="V_HH + V'_X . sigma_HH"
    )


class Rounding(NamedTuple):
    """First-order bounds of rounding errors, in units of eps: of k, K, V_X and V_XX before a stage."""

    k: float
    K: float
    v: float
    W: float


def rounding(stage, behind, Q, gains, after: Rounding) -> Rounding:
    """Carries the errors behind a stage to the value before it, and adds those of the stage itself.

    With the closed loop A = F_X + F_u K: dK = -Q_uu^{-1} F_u' dW' A, dV_XX = A' dW' A, dk = -Q_uu^{-1} F_u' (dv' +
    dW' F_u k), dV_X = A' (dv' + dW' F_u k).
    """
    F_X, F_u, k, K = (part.numpy() for part in (stage.jacobian_state, stage.jacobian_control, *gains[:2]))
    A, Q_uu = (np.linalg.norm(M, 2) for M in (F_X + F_u @ K, Q.Q_uu))
    inverse = 1 / np.linalg.eigvalsh(Q.Q_uu)[0]
    f_x, f_u, v, W = (np.linalg.norm(M) for M in (F_X, F_u, *behind))
    moved = after.v + after.W * np.linalg.norm(F_u @ k)
    gradient, mixed = f_u * v + np.linalg.norm(stage.cost_u), f_u * W * f_x  # what Q_u and Q_uX are rounded to
    e_k = inverse * (f_u * moved + gradient + Q_uu * np.linalg.norm(k))
    e_K = inverse * (f_u * after.W * A + mixed + Q_uu * np.linalg.norm(K))
    own = inverse * Q_uu
    return Rounding(
        e_k, e_K, A * moved + own * (f_x * v + mixed * np.linalg.norm(k)), A**2 * after.W + own * f_x**2 * W
    )


def recursion(problem: Game):
    """Our dense recursion on the stacked samples and the reference's, stage by stage, with bounds on their errors."""
    stages = []
    for f_x, f_u, M, l_u in problem.dense_stages():
        F_X, F_u = bellman.augment_batch(tf.constant(f_x), tf.constant(f_u))
        stages.append(bellman.StageDerivatives(F_X, F_u, cost_u=tf.constant(l_u), cost_uu=tf.constant(M)))
    end = bellman.augment_value(tf.constant(problem.gradient), tf.constant(problem.hessian))
    policy, values = bellman.backward_dense(end, stages)
    steps = dense.backward_batch(problem.gradient, problem.hessian, problem.dense_stages())
    bounds = Rounding(0.0, 0.0, np.linalg.norm(end.V_x), np.linalg.norm(end.V_xx))
    for stage, gains, value, step, behind in zip(
        reversed(stages), reversed(policy), reversed(values[:-1]), reversed(steps), reversed(values[1:]), strict=True
    ):
        Q = bellman.expand(behind, stage.jacobian_state, stage.jacobian_control, cost_uu=stage.cost_uu)
        bounds = rounding(stage, behind, Q, gains, bounds)
        yield gains, value, step, bounds


def augmented_gains(problem: Game):
    """Gains of our stacked recursion against the reference."""
    for gains, _, (k, K, *_), bounds in recursion(problem):
        yield same(gains.open_loop, k, scale=bounds.k, label="k")
        yield same(gains.feedback, K, scale=bounds.K, label="K")


def augmented_values(problem: Game):
    """Values of our stacked recursion against the policy inserted in the quadratic."""
    for _, value, (_, _, v, W, _), bounds in recursion(problem):
        yield same(value.V_x, v, scale=bounds.v, label="V_X")
        yield same(value.V_xx, W, scale=bounds.W, label="V_XX")


GAMES = games(max_batch=4, max_depth=3, max_log_condition=3)
DDP1.exact(
    "E31",
    "Eq. 31",
    "du = k + K dX = -Q_uu^{-1} (Q_u + Q_uX dX), one control for the stacked states of the batch",
    assumes="Q_uu positive definite",
    over=GAMES,
)(augmented_gains)
DDP1.exact(
    "E32",
    "Eq. 32",
    "V_X = Q_X - Q_uX' Q_uu^{-1} Q_u = Q_X + Q_uX' k, V_XX = Q_XX - Q_uX' Q_uu^{-1} Q_uX = Q_XX + Q_uX' K",
    assumes="Q_uu positive definite",
    over=GAMES,
)(augmented_values)


def blockwise(problem: Behind):
    """Eqs. 33a-e letter by letter, with f_x^(i) in (33c), the blocks put together."""
    samples, (B, n), out = problem.derivatives(), problem.states()[0].shape, problem.layer.rows
    V = [problem.v[batch.block(i, out)] for i in range(B)]
    W = [[problem.W[batch.block(i, out), batch.block(j, out)] for j in range(B)] for i in range(B)]
    dot = [
        {name: np.einsum("i,ijk->jk", V[i], s[f"f_{name}"]) for name in ("xx", "ux", "uu")}
        for i, s in enumerate(samples)
    ]
    pairs = [(i, j) for i in range(B) for j in range(B)]
    Q_XX = np.zeros((B * n, B * n))
    for i, j in pairs:
        own = samples[i]["l_xx"] / B + dot[i]["xx"] if i == j else 0
        Q_XX[batch.block(i, n), batch.block(j, n)] = own + samples[i]["f_x"].T @ W[i][j] @ samples[j]["f_x"]
    return {
        "Q_u": sum(s["l_u"] / B + s["f_u"].T @ V[i] for i, s in enumerate(samples)),
        "Q_x": np.concatenate([s["l_x"] / B + s["f_x"].T @ V[i] for i, s in enumerate(samples)]),
        "Q_ux": np.hstack([
            s["l_ux"] / B + sum(samples[j]["f_u"].T @ W[j][i] @ s["f_x"] for j in range(B)) + dot[i]["ux"]
            for i, s in enumerate(samples)
        ]),
        "Q_xx": Q_XX,
        "Q_uu": sum(s["l_uu"] / B + dot[i]["uu"] for i, s in enumerate(samples))
        + sum(samples[i]["f_u"].T @ W[i][j] @ samples[j]["f_u"] for i, j in pairs),
    }  # fmt: skip


def block_form(name):
    """The check of one of Eqs. 33a-e."""

    def check(problem: Behind):
        """The block form and our stacked expansion against forward differentiation."""
        parts, slope, curvature = truth(problem)
        scale = slope if len(name) == 3 else curvature
        yield same(blockwise(problem)[name], parts[name], scale=scale, label=f"{name} by blocks")
        yield same(getattr(ours(problem), name), parts[name], scale=scale, label=name)

    return check


SIZES = "The blocks of V' have size n_{t+1}, printed n_t."
for letter, name, formula in (
    ("a", "Q_u", "Q_u = (1/B) sum_i l_u^(i) + sum_i f_u^(i)' [V'_X]_i"),
    ("b", "Q_x", "[Q_X]_i = (1/B) l_x^(i) + f_x^(i)' [V'_X]_i"),
    ("d", "Q_xx", "[Q_XX]_ij = (1/B) d_ij l_xx^(i) + f_x^(i)' [V'_XX]_ij f_x^(j) + d_ij [V'_X]_i . f_xx^(i)"),
    ("e", "Q_uu", "Q_uu = (1/B) sum_i l_uu^(i) + sum_ij f_u^(i)' [V'_XX]_ij f_u^(j) + sum_i [V'_X]_i . f_uu^(i)"),
):
    DDP1.exact(f"E33{letter}", f"Eq. 33{letter}", formula, remark=SIZES, over=layers_behind)(block_form(name))


def cross_block_counterexample() -> Counterexample:
    """Two scalar samples that the value behind couples."""
    f_x, f_u, W = np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.ones((2, 2))

    def Q(z):
        moved = f_x * z[:2] + f_u * z[2]
        return moved @ W @ moved / 2

    return Counterexample(
        "B = 2, scalars, l = 0, f_x = (1, 2), f_u = (1, 1), V'_X = 0, V'_XX all ones",
        printed=[sum(f_u[j] * W[j, i] * f_x[j] for j in range(2)) for i in range(2)],
        corrected=[sum(f_u[j] * W[j, i] * f_x[i] for j in range(2)) for i in range(2)],
        truth=jets.expansion(Q, np.zeros(3))[2][2, :2],
    )


DDP1.misprint(
    "E33c",
    "Eq. 33c",
    "the block of Q_uX that belongs to sample i",
    printed="[Q_uX]_i = (1/B) l_ux^(i) + sum_j f_u^(j)' [V'_XX]_ji f_x^(j) + [V'_X]_i . f_ux^(i)",
    corrected="[Q_uX]_i = (1/B) l_ux^(i) + sum_j f_u^(j)' [V'_XX]_ji f_x^(i) + [V'_X]_i . f_ux^(i)",
    derivation=(
        "Q_uX = L_uX + F_u' V'_XX F_X + V'_X . F_uX (Eq. 29e). F_X is block-diagonal, so column block i of V'_XX F_X "
        "is ([V'_XX]_ji f_x^(i))_j, and F_u' sums over j. The two forms agree when V'_XX is block-diagonal, hence at "
        "the last stage, and for B = 1."
    ),
    origin="undecidable",
    remark=SIZES,
    over=layers_behind,
    counterexample=cross_block_counterexample,
)(block_form("Q_ux"))
