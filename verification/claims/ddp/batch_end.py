"""Batch DDP next to the end of the network: Eqs. 34-37."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import Counterexample, same
from verification.claims.ddp.batch_pmp import stacked
from verification.derivations.batch_end import block_formula, coupled_gradient, coupled_hessian
from verification.papers import DDP1
from verification.problems.control import NAMES, arguments
from verification.problems.games import games
from verification.problems.networks import Chain, chains
from verification.references import batch, dense, jets


@DDP1.exact(
    "E34", "Eq. 34", "[V_X^T]_i = (1/B) phi_x^(i), [V_XX^T]_ij = (1/B) d_ij phi_xx^(i)", over=chains(max_batch=4)
)
def terminal_value(chain: Chain):
    """Our terminal value against twice differentiating the mean terminal cost."""
    B, n = len(chain.inputs), chain.layers[-1].rows
    X = np.array([chain.states(i)[-1] for i in range(B)])
    ends = [chain.terminal_derivatives(x, i) for i, x in enumerate(X)]
    ours = bellman.augment_value(*[tf.constant(np.array(parts)) for parts in zip(*ends, strict=True)])

    def Phi(z):
        return sum(chain.terminal_cost(z[batch.block(i, n)], i) for i in range(B)) / B

    _, gradient, hessian = jets.expansion(Phi, X.ravel())
    yield same(ours.V_x, gradient, scale=np.linalg.norm(X) / B, label="V_X")
    yield same(ours.V_xx, hessian, scale=1 / B, label="V_XX")


@DDP1.exact(
    "E35",
    "Eq. 35",
    "at T-1: Q_u and Q_uu are means of the samples', [Q_X]_i, [Q_uX]_i and [Q_XX]_ii the samples' over B, [Q_XX]_ij "
    "= 0",
    over=chains(max_batch=4),
)
def composition(chain: Chain):
    """Our stacked expansion at the last stage against our expansions of the samples."""
    B, t, n = len(chain.inputs), len(chain.layers) - 1, chain.layers[-1].cols
    (F_X, F_u), samples = stacked(chain, t)
    ends = [chain.terminal_derivatives(chain.states(i)[-1], i) for i in range(B)]
    ends = [tf.constant(np.array(parts)) for parts in zip(*ends, strict=True)]
    augmented = {name: array for name, array in batch.augment(samples).items() if name not in {"f_x", "f_u"}}
    Q = bellman.expand(bellman.augment_value(*ends), F_X, F_u, **arguments(augmented))
    single = {NAMES[name]: tf.constant(np.array([s[name] for s in samples])) for name in samples[0]}
    P = bellman.expand(bellman.Value(*ends), **single)
    slope, curvature = np.linalg.norm(P.Q_u) + np.linalg.norm(P.Q_x), sum(map(np.linalg.norm, (P.Q_uu, P.Q_ux, P.Q_xx)))
    yield same(Q.Q_u, np.mean(P.Q_u, axis=0), scale=slope, label="Q_u")
    yield same(Q.Q_uu, np.mean(P.Q_uu, axis=0), scale=curvature, label="Q_uu")
    yield same(Q.Q_x, np.concatenate(list(P.Q_x)) / B, scale=slope, label="Q_X")
    yield same(Q.Q_ux, np.hstack(list(P.Q_ux)) / B, scale=curvature, label="Q_uX")
    for i in range(B):
        for j in range(B):
            block = Q.Q_xx[i * n : (i + 1) * n, j * n : (j + 1) * n]
            yield same(block, (i == j) * P.Q_xx[i].numpy() / B, scale=curvature, label="Q_XX")


ONE_STAGE = games(max_depth=1, max_batch=6)


DDP1.exact(
    "E36",
    "Eq. 36, Sec. 4.1",
    "[V_X]_i = (1/B) (Q_x^(i) - Q_ux^(i)' Q_uu^{-1} Q_u) before the last stage, Q_uu and Q_u batch means",
    assumes="Q_uu positive definite",
    over=ONE_STAGE,
)(coupled_gradient)


def missing_mean_counterexample() -> Counterexample:
    """Two equal scalar samples."""
    one, ones = np.ones(2), np.ones((2, 1, 1))
    gradient, hessian = dense.expand(0 * one, np.eye(2) / 2, np.eye(2), np.ones((2, 1)))
    W = dense.follow(gradient, hessian, *dense.minimise(gradient, hessian, 2))[1]
    return Counterexample(
        "B = 2, scalars, l = 0, f_x = f_u = 1, phi_xx = 1, so Q_xx = Q_ux = Q_uu = 1 for both samples",
        printed=block_formula(ones, ones, np.eye(1), 1.0),
        corrected=block_formula(ones, ones, np.eye(1), 1 / 2),
        truth=W,
    )


DDP1.misprint(
    "E37",
    "Eq. 37",
    "the value Hessian of the batch before the last stage",
    assumes="Q_uu (a batch mean) positive definite",
    printed="[V_XX]_ij = (1/B) (d_ij Q_xx^(i) - Q_ux^(i)' Q_uu^{-1} Q_ux^(j))",
    corrected="[V_XX]_ij = (1/B) (d_ij Q_xx^(i) - (1/B) Q_ux^(i)' Q_uu^{-1} Q_ux^(j))",
    derivation=(
        "V_XX = Q_XX - Q_uX' Q_uu^{-1} Q_uX (Eq. 32) with [Q_XX]_ij = (1/B) d_ij Q_xx^(i) and [Q_uX]_i = (1/B) "
        "Q_ux^(i) (Eq. 35). Q_uX enters twice, so the second term has 1/B^2. In Eq. 36 one factor is the batch mean "
        "Q_u, and 1/B is right. The printed matrix can be indefinite; the corrected one is a Schur complement and "
        "never is."
    ),
    origin="paper",
    remark=(
        "Catalogue: printed errors 1.15 (B = 2), 3.26 (B = 4), 6.44 (B = 8); ours are over other problems, B up to "
        "6. The text after Eq. 37 is right: V_XX is not block-diagonal, and neither derivative is made of per-sample "
        "values."
    ),
    over=ONE_STAGE,
    counterexample=missing_mean_counterexample,
    ranges={"error of the printed form": (0.03, 100.0), "share off the diagonal blocks": (1e-4, 0.9)},
)(coupled_hessian)
