"""The papers' own step with every matrix of every sample written out, in each reading of its scale.

Written from DDPN Alg. 3 with Eqs. 4, 9, 13, DDP1 Eqs. 15, 34, 36 and GT Eqs. 21-23 (with the sign of claims GTDDP-P5).
V_x^(i) and V_xx^(i) are arrays in the state of sample i; no column, slope or factor is carried.

    scale      cost of sample i     V_x^T        V_xx^T
    "mean"     phi_i / B            phi_x / B    z z' with z = V_x^T, or phi_xx / B
    "batch"    phi_i / B            phi_x / B    phi_x phi_x' / B, or phi_xx / B
    "sample"   phi_i                phi_x        phi_x phi_x', or phi_xx

The metric M stands for Q_uu. The step is the policy of the summed costs where they are phi_i / B, else the mean of the
samples' policies.
"""

import numpy as np

from verification.references.training import Linearisation, _own, _pieces, _split, terminal_hessian


def positive_part(A):
    """Nearest positive semi-definite matrix, and whether that is another one.

    Returns:
        (matrix, boolean).
    """
    w, V = np.linalg.eigh(A)
    return (V * np.maximum(w, 0)) @ V.T, bool(w[0] < 0)


def root(A):
    """Symmetric square root of a positive semi-definite matrix.

    Returns:
        `[n, n]`.
    """
    w, V = np.linalg.eigh(A)
    return (V * np.sqrt(np.maximum(w, 0))) @ V.T


def terminal_values(line, terminal, scale):
    """V_x and V_xx of every sample at the end of the network.

    Returns:
        Two lists.
    """
    unit = 1.0 if scale == "sample" else 1 / len(line.g)
    v = [unit * g for g in line.g]
    if terminal == "outer_product" and scale == "mean":
        return v, [np.outer(z, z) for z in v]
    return v, [unit * terminal_hessian(g, H, terminal) for g, H in zip(line.g, line.H, strict=True)]


def backward(line, columns, own, metric, *, terminal, scale, gain, value_damping):
    """Gains of every sample for the given columns of each stage's controls.

    Args:
        line: a `Linearisation`.
        columns: per stage, which entries of the stage's controls move.
        own: per stage, l_u of all its controls.
        metric: function of (stage, Q_u of every sample without l_u `[B, p]`) giving M^{-1} `[p, p]`.
        terminal: kind of terminal Hessian.
        scale: "mean", "batch" or "sample".
        gain: "batch" or "own".
        value_damping: eps_V.

    Returns:
        Per stage the open gain k `[p]` and K `[B, p, n]`; and how many samples were clamped in all.
    """
    B, (v, W), gains, clamps = len(line.g), terminal_values(line, terminal, scale), [], 0
    unit, together = (1.0, np.mean) if scale == "sample" else (1 / B, np.sum)
    for t in range(len(line.f_x) - 1, -1, -1):
        f_u, l_u = line.f_u[t][:, :, columns[t]], own[t][columns[t]]
        Q_u = np.array([f.T @ v_i for f, v_i in zip(f_u, v, strict=True)])
        M_inv = metric(t, Q_u / unit)
        k, K = -M_inv @ (l_u + together(Q_u, axis=0)), []
        for i, f_x in enumerate(line.f_x[t]):
            Q_ux = f_u[i].T @ W[i] @ f_x
            K.append(-M_inv @ Q_ux)
            own_k = -M_inv @ (unit * l_u + Q_u[i]) if gain == "own" else k
            N = root(W[i])
            kept, clamped = positive_part(np.eye(len(N)) - N @ f_u[i] @ M_inv @ f_u[i].T @ N)
            clamps += clamped
            v[i] = f_x.T @ v[i] + Q_ux.T @ own_k
            W[i] = f_x.T @ N @ kept @ N @ f_x + value_damping * np.eye(f_x.shape[1])
        gains.insert(0, (k, np.array(K)))
    return gains, clamps


def train_step(stages, inputs, costs, learning_rate, *, terminal="outer_product", scale="mean", gain="batch",
               value_damping=0.0, information="cooperative", regularizer_gradient=None, metric=None):  # fmt: skip
    """One step of the papers' form.

    Args:
        stages: the network; not changed.
        inputs: `[B, n]`.
        costs: one function per sample, giving value, gradient, Hessian.
        learning_rate: a number.
        terminal: "matched", "outer_product", "full" or a rank.
        scale: "mean", "batch" or "sample".
        gain: "batch" or "own".
        value_damping: eps_V.
        information: "feedback", "cooperative_open" or "cooperative".
        regularizer_gradient: function of one parameter array giving l_u, or `None`.
        metric: function of the samples' Q_u `[B, p]` giving M; `None` is the identity.

    Returns:
        The new parameters, the loss before the step, the number of clamps.
    """
    line = Linearisation(stages, inputs, costs)
    sizes = [[part.size for part in U] for _, U in stages]
    own = [_own(U, regularizer_gradient) for _, U in stages]
    joint = information != "feedback"
    whole = [[np.arange(sum(s))] if joint else _pieces(s) for s in sizes]
    policies, clamps = [], 0

    def inverse(t, Q_u):
        M = np.eye(Q_u.shape[1]) if metric is None else metric(Q_u)
        return learning_rate * np.linalg.inv(M)

    for agent in range(max(map(len, whole))):
        columns = [parts[agent] if agent < len(parts) else np.arange(0) for parts in whole]
        gains, clamped = backward(
            line, columns, own, inverse, terminal=terminal, scale=scale, gain=gain, value_damping=value_damping
        )
        clamps += clamped
        policies.append((columns, gains))
    moved, new = inputs, []
    together = np.mean if scale == "sample" else np.sum
    for t, (f, U) in enumerate(stages):
        du = np.zeros(sum(sizes[t]))
        for columns, gains in policies:
            k, K = gains[t]
            answers = np.einsum("ipn,in->ip", K, moved - line.states[t])
            du[columns[t]] += k + (together(answers, axis=0) if information != "cooperative_open" else 0)
        new.append([part + step for part, step in zip(U, _split(du, U), strict=True)])
        moved = np.stack([f(row, new[-1]) for row in moved])
    return new, line.loss, clamps
