"""Existing methods as special cases: Proposition 5, Eq. 12, Lemma 7, Eq. 38, Table 2."""

import numpy as np
import tensorflow as tf

from verification.claim import same
from verification.derivations.stagewise import (
    CAVEAT,
    FORCED,
    collapse,
    collapse_and_gauss_newton,
    decoupled,
    true_derivatives,
)
from verification.papers import DDP1
from verification.problems.networks import Chain, chains

P5 = (
    "with Q_ux = 0 at all stages V_x = p = nabla_{x_t} J, V_xx = nabla^2_{x_t} J, Q_u = nabla_{u_t} J, Q_uu = "
    "nabla^2_{u_t} J"
)

DDP1.exact(
    "P5",
    "Proposition 5",
    f"{P5}: DDP is stage-wise Newton",
    assumes=FORCED,
    remark=CAVEAT,
    over=chains(activations=("tanh", "softplus", "sigmoid")),
    ranges={"Q_uu against its Gauss-Newton part, first layer": (1e-3, 2.0)},
)(collapse_and_gauss_newton)
for key, place, statement in (
    ("E12", "Eq. 12", "Q_u = H_u = nabla_u J, Q_uu = nabla^2_u J"),
    ("L7", "Lemma 7", "V_x = H_x = p_t = nabla_{x_t} J and V_xx = nabla^2_{x_t} J"),
    ("E38", "Eq. 38", "V_x = H_x = p_t = nabla_{x_t} J and V_xx = nabla^2_{x_t} J"),
):
    DDP1.exact(key, place, statement, assumes=FORCED, remark=CAVEAT, over=chains())(collapse)


@DDP1.exact(
    "TAB2",
    "Table 2",
    "with Q_ux = 0, Q_uu^{-1} = eta I is gradient descent, eta diag(g) an adaptive first-order method, J_uu^{-1} "
    "stage-wise Newton",
    assumes="Q_ux set to 0; for the last column: J_uu positive definite and second-order dynamics kept",
    over=chains(running=("control",)),
)
def methods(chain: Chain):
    """Our gains for the three preconditioners against the three methods' steps from J differentiated twice."""
    eta, rng = 0.1, np.random.default_rng(0)
    g = [10.0 ** rng.uniform(-3, 3, layer.size) for layer in chain.layers]
    truth = [true_derivatives(chain, t) for t in range(len(chain.layers))]
    shift = [
        max(0.0, 1e-3 - np.linalg.eigvalsh(H[layer.cols :, layer.cols :])[0])
        for layer, (_, H) in zip(chain.layers, truth, strict=True)
    ]
    columns = {
        "first-order": lambda Q, t: tf.eye(chain.layers[t].size, dtype=tf.float64) / eta,
        "adaptive": lambda Q, t: tf.linalg.diag(1 / (eta * g[t])),
        "Newton": lambda Q, t: Q.Q_uu + shift[t] * tf.eye(chain.layers[t].size, dtype=tf.float64),
    }
    for name, metric in columns.items():
        _, policy, _ = decoupled(chain, metric)
        for t, (k, K, _) in enumerate(policy):
            n = chain.layers[t].cols
            slope, curvature = truth[t][0][n:], truth[t][1][n:, n:] + shift[t] * np.eye(chain.layers[t].size)
            step = {"first-order": eta * slope, "adaptive": eta * g[t] * slope}.get(name)
            condition, size = 1.0, np.linalg.norm(truth[t][0])
            if name == "Newton":
                step, condition = np.linalg.solve(curvature, slope), np.linalg.cond(curvature)
                size = size / np.linalg.norm(curvature, 2)
            else:
                size *= eta * (np.max(g[t]) if name == "adaptive" else 1)
            yield same(k, -step, condition=condition, scale=size, label=name)
            yield same(K, np.zeros(K.shape), label=f"{name}, feedback")
