"""Proposition 4: without mixed terms the update is that of the method whose matrix stands in place of Q_uu."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import same
from verification.papers import GTDDP
from verification.problems.blocks import constants, seeds
from verification.problems.games import Network, random_kinds
from verification.references import complex_step, diagonal, kfac

METHODS = ("SGD", "RMSprop", "Adam", "Fisher", "K-FAC", "EKFAC")
RATE, EPSILON, DAMPING, DECAY = 0.1, 1e-3, 0.05, 0.9


def player_inputs(network, states, t):
    """Input of each player of a stage: the main path, or the skip state."""
    n, shapes = network.layers[t]
    x, x_r = states[t][:, :n], states[t][:, n:]
    return [x_r if network.kinds[t] == "close_parametrised" and p == 1 else x for p in range(len(shapes))]


def metric(method, history):
    """M of the last step from the history [(per-sample gradients, inputs, gradients of the pre-activation)]."""
    means = [q.mean(axis=0) for q, _, _ in history]
    if method == "SGD":
        return np.eye(len(means[0])) / RATE
    if method == "RMSprop":
        return np.diag(diagonal.rmsprop(means, DECAY, EPSILON, RATE))
    if method == "Adam":
        return np.diag(diagonal.adam(means, DECAY, EPSILON, RATE))
    if method == "Fisher":
        F = diagonal.running_mean([diagonal.fisher(q) for q, _, _ in history], DECAY)
        return (F + DAMPING * np.eye(len(F))) / RATE
    ones = [np.hstack([x, np.ones((len(x), 1))]) for _, x, _ in history]
    A = diagonal.running_mean([diagonal.fisher(x) for x in ones], DECAY)
    G = diagonal.running_mean([diagonal.fisher(g) for _, _, g in history], DECAY)
    rows, n = len(G), len(A) - 1
    order = [r * (n + 1) + c for r in range(rows) for c in range(n)] + [r * (n + 1) + n for r in range(rows)]
    if method == "K-FAC":
        return (np.kron(G, A)[np.ix_(order, order)] + DAMPING * np.eye(len(order))) / RATE
    U = np.kron(np.linalg.eigh(G)[1], np.linalg.eigh(A)[1])[order]
    return kfac.ekfac(U, kfac.exact_scalings(U, history[-1][0]), DAMPING) / RATE


def sample_gradients(network, x, y, parameters):
    """Per-sample gradients of half the squared error in every player's parameters, by complex steps."""

    def loss(u, t, p):
        changed = [list(us) for us in parameters]
        changed[t][p] = u
        return np.sum((network.forward(x.astype(complex), changed)[0][-1] - y) ** 2, axis=1) / 2

    return [
        [complex_step.jacobian(lambda u, t=t, p=p: loss(u, t, p), us[p]) for p in range(len(us))]
        for t, us in enumerate(parameters)
    ]


def uncoupled_backward(network, x, y, parameters, histories, method):
    """Our recursion with Q_ux = 0 and Q_uv = 0: the steps, and the per-sample Q_u that the metrics are made of."""
    states, jacobians = network.forward(x, parameters)
    B = len(x)
    eyes = np.tile(np.eye(states[-1].shape[1]), (B, 1, 1))
    value = bellman.augment_value(*constants((states[-1] - y, eyes)))
    steps, gradients = [], []
    for t in reversed(range(len(jacobians))):
        f_x, f_us = jacobians[t]
        V = B * value.V_x.numpy().reshape(B, -1)
        q = [np.einsum("bij,bi->bj", f_u, V) for f_u in f_us]
        metrics = []
        for p, z in enumerate(player_inputs(network, states, t)):
            rows = network.layers[t][1][p][0]
            histories[t][p].append((q[p], z, q[p][:, -rows:]))
            metrics.append(metric(method, histories[t][p]))
        F_X = bellman.augment_batch(*constants((f_x, f_us[0])))[0]
        F_us = [bellman.augment_batch(*constants((f_x, f_u)))[1] for f_u in f_us]
        Q = bellman.expand_players(value, F_X, F_us)
        Q = Q._replace(Q_ux=[0 * M for M in Q.Q_ux])
        blocks = [[metrics[p] if p == r else np.zeros((len(metrics[p]), len(metrics[r]))) for r in range(len(q))]
                  for p in range(len(q))]  # fmt: skip
        gains = bellman.cooperative_gains(Q, [constants(row) for row in blocks])
        value = bellman.cooperative_update(Q, gains)
        steps.insert(0, [gain.open_loop.numpy() for gain in gains])
        gradients.insert(0, q)
    return steps, gradients


@GTDDP.exact(
    "P4",
    "Prop. 4",
    "the update degenerates to that of the method whose matrix replaces Q_uu, Q_vv, if the mixed terms of parameters "
    "and activations vanish and parameters of different layers are uncorrelated",
    assumes="Q_ux = Q_{u x_r} = 0, Q_uv = 0, the terminal cost counted once",
    remark="Checked over two steps with running averages, on chains, identity and parametrised shortcuts and parallel "
    "layers. The optimizer itself against Keras: information='open' in the tests.",
    over=st.tuples(seeds, st.integers(1, 3), st.booleans(), st.sampled_from([1, 2, 5]), st.sampled_from(METHODS)),
    examples=24,
)
def degeneration(problem: tuple[int, int, bool, int, str]):
    """Steps of our recursion without mixed terms against the method on complex-step gradients."""
    seed, depth, shortcuts, B, method = problem
    rng = np.random.default_rng(seed)
    network = Network(rng, random_kinds(rng, depth, shortcuts), size=2)
    x = rng.standard_normal((B, network.n))
    y = rng.standard_normal(network.forward(x)[0][-1].shape)
    parameters = [list(us) for us in network.parameters]
    ours, base = ([[[] for _ in us] for us in parameters] for _ in range(2))
    for _ in range(2):
        truth = sample_gradients(network, x, y, parameters)
        states = network.forward(x, parameters)[0]
        steps, gradients = uncoupled_backward(network, x, y, parameters, ours, method)
        for t, us in enumerate(parameters):
            for p, z in enumerate(player_inputs(network, states, t)):
                J, rows = truth[t][p], network.layers[t][1][p][0]
                yield same(gradients[t][p], J, scale=1.0, label="Q_u = J_u")
                base[t][p].append((J, z, J[:, -rows:]))
                M = metric(method, base[t][p])
                step = -np.linalg.solve(M, J.mean(axis=0))
                # two statistics agree to rounding; a root of one, RMSprop's, loses eps / EPSILON
                condition = np.linalg.cond(M) / EPSILON
                yield same(steps[t][p], step, condition=condition, scale=1e-3, label=method)
                us[p] = us[p] + step
    value = bellman.outer_product.init(B, 0.0, dtype=tf.float64)
    any_q = tf.constant(np.linspace(0.0, 9.0, B))
    value, _ = bellman.outer_product.backward(value, any_q, any_q)
    yield same(bellman.outer_product.weights(value, any_q), np.ones(B), label="rank-one form without curvature")
    start = bellman.init(B, beta_squared=tf.zeros([B], tf.float64))
    weights = bellman.weights(bellman.backward(start, tf.ones([1, B, B], tf.float64)))
    yield same(weights[0], np.ones(B) / B, label="sample space without curvature")
