"""A whole training step on small networks, by dense recursions and complex-step Jacobians.

A network is a list of stages. A stage is a pair (f, U): U is the list of its players' parameters, arrays of any shape,
and f(x, U) maps the state of one sample, a vector, to the next one. Derivatives are Im f(x + i h) / h with h = 1e-100,
exact to rounding for functions NumPy can evaluate on complex numbers.

The recursion is DDP1's, Eqs. 29 to 34, in the states of all samples stacked, one group of samples at a time.
With M = I / learning_rate and a group's policy u = k + K dx = -M^{-1} (l_u + Q w), the groups add up to

    du = -M^{-1} l_u + sum over groups of (k + K dx + M^{-1} l_u).
"""

import numpy as np
from scipy.linalg import block_diag

STEP = 1e-100


def _flat(players):
    return np.concatenate([part.ravel() for part in players]) if players else np.zeros(0)


def _split(vector, players):
    sizes = np.cumsum([part.size for part in players])[:-1]
    return [piece.reshape(part.shape) for piece, part in zip(np.split(vector, sizes), players, strict=True)]


def jacobian(f, x):
    """Derivative of a vector function at a vector.

    Returns:
        `[len(f(x)), len(x)]`.
    """
    columns = []
    for k in range(len(x)):
        moved = x.astype(complex)
        moved[k] += 1j * STEP
        columns.append(f(moved).imag / STEP)
    return np.stack(columns, axis=1)


def softmax_cost(label):
    """Cross-entropy of one sample from logits.

    Returns:
        Function of the logits giving value, gradient and Hessian.
    """

    def cost(z):
        p = np.exp(z - z.max())
        p = p / p.sum()
        return -np.log(p[label]), p - np.eye(len(z))[label], np.diag(p) - np.outer(p, p)

    return cost


def square_cost(target):
    """Mean squared error of one sample.

    Returns:
        Function of the outputs giving value, gradient and Hessian.
    """

    def cost(z):
        gap = z - target
        return np.mean(gap**2), 2 * gap / len(z), 2 * np.eye(len(z)) / len(z)

    return cost


def terminal_hessian(g, H, kind):
    """The Hessian that the recursion starts from: "matched", "outer_product", "full" or a rank.

    Returns:
        `[n, n]`.
    """
    if kind == "outer_product":
        return np.outer(g, g)
    if kind == "matched":
        return (g @ H @ g) / (g @ g) ** 2 * np.outer(g, g)
    if kind == "full":
        return H
    eigenvalues, vectors = np.linalg.eigh(H)
    top = vectors[:, len(g) - kind :] * np.sqrt(np.maximum(eigenvalues[len(g) - kind :], 0))
    return top @ top.T


class Linearisation:
    """States, Jacobians and terminal data of every sample.

    Attributes:
        states: per stage and at the end, `[B, n]`.
        f_x: per stage, `[B, n_next, n]`.
        f_u: per stage, `[B, n_next, P]`, the players of the stage side by side.
        g: `[B, n]` at the end.
        H: `[B, n, n]` at the end, exact.
    """

    def __init__(self, stages, inputs, costs):
        """Runs the network.

        Args:
            stages: the network.
            inputs: `[B, n]`.
            costs: one function per sample.
        """
        self.states, self.f_x, self.f_u = [inputs], [], []
        for f, U in stages:
            x, u = self.states[-1], _flat(U)
            self.f_x.append(np.stack([jacobian(lambda s, U=U, f=f: f(s, U), row) for row in x]))
            self.f_u.append(np.stack([jacobian(lambda v, U=U, f=f, row=row: f(row, _split(v, U)), u) for row in x]))
            self.states.append(np.stack([f(row, U) for row in x]))
        ends = [cost(z) for cost, z in zip(costs, self.states[-1], strict=True)]
        self.g, self.H = np.stack([end[1] for end in ends]), np.stack([end[2] for end in ends])
        self.loss = np.mean([end[0] for end in ends])


def backward(line, group, columns, own, M_inv, terminal):
    """Dense recursion of one group of samples, for the given columns of each stage's controls.

    Args:
        line: a `Linearisation`.
        group: numbers of the samples.
        columns: per stage, which entries of the stage's controls move.
        own: per stage, l_u of all its controls.
        M_inv: learning rate.
        terminal: kind of terminal Hessian.

    Returns:
        Per stage the gains k `[p]` and K `[p, b n]`.
    """
    return [(k, K) for k, K, _ in policies_and_values(line, group, columns, own, M_inv, terminal)]


def policies_and_values(line, group, columns, own, M_inv, terminal):
    """As `backward`, with the value Hessian before each stage.

    Returns:
        Per stage k `[p]`, K `[p, b n]` and V_XX `[b n, b n]`.
    """
    B = len(line.g)
    v = np.concatenate([line.g[i] for i in group]) / B
    W = block_diag(*[terminal_hessian(line.g[i], line.H[i], terminal) for i in group]) / B
    found = []
    for f_x, f_u, chosen, l_u in reversed(list(zip(line.f_x, line.f_u, columns, own, strict=True))):
        F_x = block_diag(*[f_x[i] for i in group])
        F_u = np.concatenate([f_u[i] for i in group])[:, chosen]
        Q_x, Q_u = F_x.T @ v, l_u[chosen] + F_u.T @ v
        Q_xx, Q_ux, Q_uu = F_x.T @ W @ F_x, F_u.T @ W @ F_x, np.eye(len(chosen)) / M_inv + F_u.T @ W @ F_u
        k, K = -np.linalg.solve(Q_uu, Q_u), -np.linalg.solve(Q_uu, Q_ux)
        v, W = Q_x + Q_ux.T @ k, Q_xx + Q_ux.T @ K
        found.insert(0, (k, K, W))
    return found


def train_step(stages, inputs, costs, learning_rate, *, terminal="matched", group_size=None, information="cooperative",
               regularizer_gradient=None, rollout="nonlinear"):  # fmt: skip
    """One step of the game with the metric I / learning_rate.

    Args:
        stages: the network; not changed.
        inputs: `[B, n]`.
        costs: one function per sample, giving value, gradient, Hessian.
        learning_rate: a number.
        terminal: "matched", "outer_product", "full" or a rank.
        group_size: samples coupled together, `None` for all.
        information: "open", "feedback", "cooperative_open" or "cooperative".
        regularizer_gradient: function of one parameter array giving l_u, or `None`.
        rollout: "nonlinear" (the deviation is that of the network with its new parameters) or "linear" (of the
            linearised network, for each group what its own policies move).

    Returns:
        The new parameters, a list of arrays per stage, and the loss before the step.
    """
    line = Linearisation(stages, inputs, costs)
    B, sizes = len(inputs), [[part.size for part in U] for _, U in stages]
    own = [_own(U, regularizer_gradient) for _, U in stages]
    size = group_size or B
    groups = [np.arange(start, min(start + size, B)) for start in range(0, B, size)]
    joint = information != "feedback"
    agents = 1 if joint else max(len(U) for _, U in stages)
    whole = [[np.arange(sum(s))] if joint else _pieces(s) for s in sizes]
    policies = {}
    if information != "open":
        for agent in range(agents):
            columns = [parts[agent] if agent < len(parts) else np.arange(0) for parts in whole]
            for number, group in enumerate(groups):
                policies[agent, number] = backward(line, group, columns, own, learning_rate, terminal)
    moved, new = inputs, []
    deviations = [np.zeros((len(group), inputs.shape[1])) for group in groups]
    for t, (f, U) in enumerate(stages):
        du = -learning_rate * own[t]
        acts = [np.zeros(sum(sizes[t])) for _ in groups]
        for agent, chosen in enumerate(whole[t]):
            if information == "open":
                du[chosen] -= learning_rate * np.mean(
                    [line.f_u[t][i].T @ _costate(line, t, i) for i in range(B)], axis=0
                )
                continue
            for number, group in enumerate(groups):
                k, K = policies[agent, number][t]
                dx = moved[group] - line.states[t][group] if rollout == "nonlinear" else deviations[number]
                feedback = K @ dx.ravel() if information in {"feedback", "cooperative"} else 0
                acts[number][chosen] += k + feedback
                du[chosen] += k + feedback + learning_rate * own[t][chosen]
        new.append([part + step for part, step in zip(U, _split(du, U), strict=True)])
        moved = np.stack([f(row, new[-1]) for row in moved])
        deviations = [
            np.stack([line.f_x[t][i] @ row + line.f_u[t][i] @ act for i, row in zip(group, deviation, strict=True)])
            for group, deviation, act in zip(groups, deviations, acts, strict=True)
        ]
    return new, line.loss


def _costate(line, t, i):
    """Gradient of sample i's cost in the state behind stage t."""
    g = line.g[i]
    for f_x in reversed(line.f_x[t + 1 :]):
        g = f_x[i].T @ g
    return g


def _own(U, gradient):
    return _flat([np.zeros_like(part) if gradient is None else gradient(part) for part in U])


def _pieces(sizes):
    ends = np.cumsum([0, *sizes])
    return [np.arange(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)]
