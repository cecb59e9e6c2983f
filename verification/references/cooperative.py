"""Joint Kronecker metrics of the players of a stage, densely; reference for `bellman_tf/curvature/coupling`.

A player's parameters are a matrix `[inputs, outputs]` read row by row, so that its metric is `kron(A, B)`. Rows of A
are input features with the bias's constant one last. The joint A and B of a stage hold its players one after the other.
"""

import numpy as np
from scipy.linalg import block_diag

from verification.references.kfac import damping_ratio
from verification.references.training import Linearisation, terminal_hessian


def pieces(sizes):
    """Where each player's rows are in a joint factor."""
    ends = np.cumsum([0, *sizes])
    return [slice(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)]


def moments(rows, columns):
    """A and B of a stage from inputs `[B, L, a]` and cotangents `[B, L, e]` of its players."""
    x, c = (np.concatenate(parts, axis=-1) for parts in (rows, columns))
    return np.einsum("bli,blj->ij", x, x) / len(x), np.einsum("bli,blj->ij", c, c) / (x.shape[0] * x.shape[1])


def damped(A, B, inputs, outputs, damping):
    """The joint factors with each player's own split of the damping on the diagonal."""
    A, B = A.copy(), B.copy()
    for a, b in zip(pieces(inputs), pieces(outputs), strict=True):
        pi = damping_ratio(A[a, a], B[b, b])
        A[a, a] += pi * np.sqrt(damping) * np.eye(len(A[a, a]))
        B[b, b] += np.sqrt(damping) / pi * np.eye(len(B[b, b]))
    return A, B


def khatri_rao(A, B, inputs, outputs, sign=1):
    """The matrix with blocks `kron(A_nm, B_nm)`, the others than n = m times `sign`."""
    own, other = pieces(inputs), pieces(outputs)
    players = range(len(own))
    return np.block([
        [(1 if n == m else sign) * np.kron(A[own[n], own[m]], B[other[n], other[m]]) for m in players] for n in players
    ])  # fmt: skip


def inverse(A, B, inputs, outputs, damping, kind, sign=1):
    """M^{-1} of a stage: "exact", "published" (GTDDP Thm. 3) or `False`, from undamped joint factors."""
    A, B = damped(A, B, inputs, outputs, damping)
    if kind == "published":
        return khatri_rao(np.linalg.inv(A), np.linalg.inv(B), inputs, outputs, sign)
    return np.linalg.inv(khatri_rao(A, B, inputs, outputs, 1 if kind == "exact" else 0))


def rescaled_inverse(A, B, inputs, outputs, damping):
    """M^{-1} of players taken as identical: Schur complement of one of them for each eigenvalue (GTDDP Cor. 7)."""
    count, blocks = len(inputs), []
    for a, b in zip(pieces(inputs), pieces(outputs), strict=True):
        eigenvalues, U = np.linalg.eigh(np.kron(A[a, a], B[b, b]))
        new = []
        for value in eigenvalues:
            joint = damping * np.eye(count) + value * np.ones((count, count))
            new.append(1 / np.linalg.inv(joint)[0, 0])
        blocks.append(U @ np.diag(1 / np.array(new)) @ U.T)
    return block_diag(*blocks)


def eigen_congruence(A, B, inputs, outputs, damping, bases, scalings):
    """D^{-1} of EKFAC: U sqrt(k / (s + damping)) U' of each player, k the damped Kronecker eigenvalues.

    Args:
        A: joint, undamped.
        B: joint, undamped.
        inputs: sizes.
        outputs: sizes.
        damping: lambda.
        bases: `U_A (x) U_B` of each player.
        scalings: s of each player, flat.

    Returns:
        The block-diagonal matrix; M^{-1} is `D^{-1} K^{-1} D^{-1}` for K the joint K-FAC matrix, damped.
    """
    A, B = damped(A, B, inputs, outputs, damping)
    blocks = []
    for a, b, U, s in zip(pieces(inputs), pieces(outputs), bases, scalings, strict=True):
        k = np.diag(U.T @ np.kron(A[a, a], B[b, b]) @ U)
        blocks.append(U @ np.diag(np.sqrt(k / (s + damping))) @ U.T)
    return block_diag(*blocks)


class Stages:
    """Running joint factors of every stage of a dense network, and the metrics they give.

    Attributes:
        factors: per stage the joint A and B.
    """

    def __init__(self, reads, damping, decay, kind, sign=1):
        """Describes the network.

        Args:
            reads: per stage and player, which entries of the stage's state the layer reads.
            damping: lambda.
            decay: of the running means.
            kind: "exact", "published", "rescale" or `False`.
            sign: of "published".
        """
        self.reads, self.damping, self.decay, self.kind, self.sign = reads, damping, decay, kind, sign
        self.factors, self.count = [None] * len(reads), 0

    def update(self, line, stages, weights=None):
        """New factors from one batch, and M^{-1} of every stage.

        Args:
            line: a `Linearisation`.
            stages: the network.
            weights: per stage, what each sample's cotangents are multiplied with; `None` for one.

        Returns:
            The matrices, without the learning rate.
        """
        rate, found = min(self.decay, 1 - 1 / (self.count + 1)), []
        for t in range(len(stages)):
            alpha = np.ones(len(line.g)) if weights is None else weights[t]
            found.append(self.update_stage(line, stages, t, alpha, rate))
        self.count += 1
        return found

    def update_stage(self, line, stages, t, alpha, rate):
        """One stage of `update`."""
        U = stages[t][1]
        q = sample_gradients(line, t)
        columns = [part * alpha[:, None] for part in cotangents(q, U)]
        rows = [np.concatenate([line.states[t][:, read], np.ones((len(alpha), 1))], axis=1) for read in self.reads[t]]
        new = moments([x[:, None] for x in rows], [c[:, None] for c in columns])
        old = self.factors[t]
        if old is not None:
            new = tuple(rate * a + (1 - rate) * b for a, b in zip(old, new, strict=True))
        self.factors[t] = new
        inputs, outputs = [len(part) for part in U], [part.shape[1] for part in U]
        if self.kind == "rescale" and len(U) > 1:
            return rescaled_inverse(*new, inputs, outputs, self.damping)
        if self.kind == "rescale":  # alone: the damping adds to the eigenvalues all the same
            return np.linalg.inv(np.kron(*new) + self.damping * np.eye(U[0].size))
        return inverse(*new, inputs, outputs, self.damping, self.kind, self.sign)


def sample_gradients(line, t):
    """q_i of stage t, `[B, P]`."""
    gradients = []
    for i in range(len(line.g)):
        g = line.g[i]
        for f_x in reversed(line.f_x[t + 1 :]):
            g = f_x[i].T @ g
        gradients.append(line.f_u[t][i].T @ g)
    return np.stack(gradients)


def cotangents(q, U):
    """Cotangents of the players' pre-activations: the gradients of their biases, the last row of each matrix."""
    ends = np.cumsum([part.size for part in U])
    return [q[:, end - part.shape[1] : end] for part, end in zip(U, ends, strict=True)]


def train_step(stages, inputs, costs, learning_rate, joint, *, information="cooperative", terminal="matched"):
    """One step of the game with joint metrics, all samples coupled, by the dense recursion.

    Args:
        stages: the network, as in `training.py`.
        inputs: `[B, n]`.
        costs: one function per sample.
        learning_rate: a number.
        joint: a `Stages`, updated.
        information: "open" or "cooperative".
        terminal: kind of terminal Hessian.

    Returns:
        The new parameters, a list of arrays per stage, and the loss before the step.
    """
    line = Linearisation(stages, inputs, costs)
    B = len(inputs)
    M_inv = [learning_rate * matrix for matrix in joint.update(line, stages)]
    if information == "open":
        new = [_moved(U, -M_inv[t] @ np.mean(sample_gradients(line, t), axis=0)) for t, (_, U) in enumerate(stages)]
        return new, line.loss
    v = np.concatenate(line.g) / B
    W = block_diag(*[terminal_hessian(line.g[i], line.H[i], terminal) for i in range(B)]) / B
    gains = []
    for t in range(len(stages) - 1, -1, -1):
        F_x, F_u = block_diag(*line.f_x[t]), np.concatenate(line.f_u[t])
        Q_x, Q_u = F_x.T @ v, F_u.T @ v
        Q_xx, Q_ux, Q_uu = F_x.T @ W @ F_x, F_u.T @ W @ F_x, np.linalg.inv(M_inv[t]) + F_u.T @ W @ F_u
        k, K = -np.linalg.solve(Q_uu, Q_u), -np.linalg.solve(Q_uu, Q_ux)
        v, W = Q_x + Q_ux.T @ k, Q_xx + Q_ux.T @ K
        gains.insert(0, (k, K))
    moved, new = inputs, []
    for t, ((f, U), (k, K)) in enumerate(zip(stages, gains, strict=True)):
        new.append(_moved(U, k + K @ np.concatenate(moved - line.states[t])))
        moved = np.stack([f(row, new[-1]) for row in moved])
    return new, line.loss


def published_step(stages, inputs, costs, learning_rate, joint):
    """One step of the papers' recursion with joint metrics: two numbers per sample, statistics from the value's slope.

    Args:
        stages: the network.
        inputs: `[B, n]`.
        costs: one function per sample.
        learning_rate: a number.
        joint: a `Stages`, updated.

    Returns:
        The new parameters, the loss before the step.
    """
    line = Linearisation(stages, inputs, costs)
    B = len(inputs)
    alpha, beta2, behind, metrics = np.ones(B), np.ones(B), {}, {}
    rate = min(joint.decay, 1 - 1 / (joint.count + 1))
    for t in range(len(stages) - 1, -1, -1):
        metrics[t] = learning_rate * joint.update_stage(line, stages, t, alpha, rate)
        behind[t] = alpha, beta2
        q = sample_gradients(line, t)
        k = -metrics[t] @ np.mean(alpha[:, None] * q, axis=0)
        bracket = 1 - beta2 * np.einsum("bi,ij,bj->b", q, metrics[t], q)
        alpha, beta2 = alpha + beta2 * (q @ k), beta2 * np.maximum(bracket, 0)
    joint.count += 1
    moved, new = inputs, []
    for t, (f, U) in enumerate(stages):
        alpha, beta2 = behind[t]
        q = sample_gradients(line, t)
        state_gradient = np.stack([line.f_x[t][i].T @ _behind(line, t, i) for i in range(B)])
        d = np.sum(state_gradient * (moved - line.states[t]), axis=1)
        new.append(_moved(U, -metrics[t] @ np.mean((alpha + beta2 * d)[:, None] * q, axis=0)))
        moved = np.stack([f(row, new[-1]) for row in moved])
    return new, line.loss


def _behind(line, t, i):
    g = line.g[i]
    for f_x in reversed(line.f_x[t + 1 :]):
        g = f_x[i].T @ g
    return g


def _moved(U, du):
    ends = np.cumsum([0, *(part.size for part in U)])
    parts = zip(U, ends[:-1], ends[1:], strict=True)
    return [part + du[start:end].reshape(part.shape) for part, start, end in parts]
