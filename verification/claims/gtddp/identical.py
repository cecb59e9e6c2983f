"""Players with a common input and a summed output: Corollary 7 and its proof (Eqs. 24, 55-58)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import linalg
from verification.claim import Counterexample, at_most, same
from verification.papers import GTDDP
from verification.problems.moments import Samples, from_samples, seeds, shared_signal

COMMON = (
    "x_u = x_v and g_u = g_v (outputs added before the nonlinearity); damping gamma on the diagonal blocks only; "
    "Q_uv = +Q_uu or -Q_uu without the damping"
)


class Twins(NamedTuple):
    """Two players with curvature C = A (x) B, gamma on the diagonal blocks, cross block sign * C."""

    A: np.ndarray
    B: np.ndarray
    gamma: float
    sign: float
    gradient: np.ndarray

    @property
    def C(self):
        """Curvature of each player."""
        return np.kron(self.A, self.B)

    @property
    def condition(self):
        """Of the damped matrix."""
        return 1 + np.linalg.norm(self.C, 2) / self.gamma

    def eigenbasis(self):
        """U and lambda, from our eigendecompositions of the factors: Eq. 55."""
        (a, U_A), (b, U_B) = (linalg.eigh(tf.constant(M)) for M in (self.A, self.B))
        return linalg.kron(U_A, U_B).numpy(), np.maximum(np.kron(a, b), 0)

    def cooperative(self):
        """Our Schur complement."""
        own = tf.constant(self.C + self.gamma * np.eye(len(self.C)))
        return linalg.schur_complement(own, tf.constant(self.sign * self.C), own).numpy()


@st.composite
def twins(draw):
    """Moments of up to ten samples (of rank one, too), factors up to 3 x 3."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    B, n, m = draw(st.sampled_from([1, 2, 10])), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x, g = rng.normal(size=(B, n)), rng.normal(size=(B, m))
    gamma = 10.0 ** -draw(st.integers(-1, 5), label="-log10 gamma")
    sign = draw(st.sampled_from([1.0, -1.0]), label="sign")
    return Twins(x.T @ x / B, g.T @ g / B, gamma, sign, rng.normal(size=n * m))


def rescaled(eigenvalues, gamma):
    """lambda~ of Eq. 24."""
    return gamma * eigenvalues / (gamma + eigenvalues)


@GTDDP.exact(
    "E24",
    "Eq. 24",
    "Q~_uu = U (diag(lambda~) + gamma) U', lambda~ = gamma lambda / (gamma + lambda)",
    assumes=COMMON,
    remark="gamma + lambda~ is in [gamma, 2 gamma) whatever lambda is: the curvature is erased, and on the plain "
    "gradient this is gradient descent with a rate between 1 / (2 gamma) and 1 / gamma.",
    over=twins(),
)
def rescaling(problem: Twins):
    """Our Schur complement against the rescaling in the eigenbasis, and the range of its eigenvalues."""
    U, eigenvalues = problem.eigenbasis()
    S = problem.cooperative()
    truth = (U * (rescaled(eigenvalues, problem.gamma) + problem.gamma)) @ U.T
    # C - C (C + gamma)^{-1} C loses what C is larger than gamma, twice: once in C, once in the solve
    size = np.linalg.norm(problem.C) + problem.gamma
    yield same(S, truth, condition=problem.condition, scale=size, label="Schur complement")
    found = np.linalg.eigvalsh(truth)
    yield at_most(problem.gamma, found, scale=problem.gamma, label="gamma <= eigenvalues")
    yield at_most(found, 2 * problem.gamma, scale=problem.gamma, label="eigenvalues < 2 gamma")
    yield at_most(np.linalg.cond(truth), 2.0, label="condition number below 2")


@GTDDP.exact(
    "E55",
    "Eq. 55",
    "A (x) B = (U_A S_A U_A') (x) (U_B S_B U_B') = (U_A (x) U_B)(S_A (x) S_B)(U_A (x) U_B)'",
    assumes="A and B symmetric",
    over=twins(),
)
def kronecker_eigenbasis(problem: Twins):
    """Our eigendecompositions, put together; our damped solve in that basis against the dense one."""
    U, eigenvalues = problem.eigenbasis()
    n = len(U)
    yield same((U * eigenvalues) @ U.T, problem.C, label="decomposition")
    yield same(U.T @ U, np.eye(n), label="orthonormal")
    (a, U_A), (b, U_B) = (linalg.eigh(tf.constant(M)) for M in (problem.A, problem.B))
    X = tf.constant(problem.gradient.reshape(len(a), len(b)).T)
    scalings = tf.maximum(b, 0)[:, None] * tf.maximum(a, 0)[None, :]
    ours = linalg.vec(linalg.ekfac_solve(U_A, U_B, scalings, problem.gamma, X))
    truth = np.linalg.solve(problem.C + problem.gamma * np.eye(n), problem.gradient)
    yield same(ours, truth, condition=problem.condition, label="damped solve")


@GTDDP.exact(
    "E56",
    "Eq. 56",
    "A_uu = A_uv = A_vv and B_uu = B_uv = B_vv",
    assumes="x_u = x_v and g_u = g_v; if the outputs are added behind a nonlinearity, g_u and g_v differ",
    over=st.tuples(seeds, st.integers(1, 8)),
)
def common_moments(problem: tuple[int, int]):
    """Moments of players that share samples; our joint matrix then is [1 1; 1 1] (x) C."""
    seed, batch = problem
    rng = np.random.default_rng(seed)
    one = shared_signal(rng, batch, 0.5)
    game = from_samples(rng, Samples([one.x[0]] * 2, [one.g[0]] * 2), 0.0)
    for blocks in (game.A_blocks, game.B_blocks):
        yield same(np.hstack([blocks[0][1], blocks[1][1]]), np.hstack([blocks[0][0]] * 2), label="moments")
    C = np.kron(game.A_blocks[0][0], game.B_blocks[0][0])
    H = linalg.block_khatri_rao(*game.tensors()[:2])
    yield same(H, np.kron(np.ones((2, 2)), C), label="joint matrix")


@GTDDP.exact(
    "E57",
    "Eq. 57",
    "Q_uu - Q_uv Q_vv^{-1} Q_uv' = U ((S + gamma) - S (S + gamma)^{-1} S) U' with Q_uv = -A_uv (x) B_uv",
    assumes=COMMON,
    remark="The sign of Q_uv does not matter for this matrix, only for the gain.",
    over=twins(),
)
def schur_in_the_eigenbasis(problem: Twins):
    """Our Schur complement with either sign against the printed line."""
    U, s = problem.eigenbasis()
    gamma = problem.gamma
    truth = (U * (gamma + s - s * s / (s + gamma))) @ U.T
    size = np.linalg.norm(problem.C) + gamma
    for sign in (1.0, -1.0):
        S = problem._replace(sign=sign).cooperative()
        yield same(S, truth, condition=problem.condition, scale=size, label=f"sign {sign:+.0f}")


@GTDDP.exact(
    "E58",
    "Eq. 58",
    "lambda~ = lambda - lambda^2 / (gamma + lambda) = gamma lambda / (gamma + lambda)",
    assumes="gamma + lambda > 0",
    over=st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
)
def eigenvalue(problem: tuple[float, float]):
    """Both forms, and our Schur complement of numbers."""
    gamma, x = (10.0**e for e in problem)
    first, second = x - x * x / (gamma + x), rescaled(x, gamma)
    yield same(first, second, scale=x, label="both forms")
    own = tf.constant([[gamma + x]], tf.float64)
    S = linalg.schur_complement(own, tf.constant([[x]], tf.float64), own)
    yield same(S, [[gamma + second]], scale=x, label="Schur complement")
    yield at_most(second, min(gamma, x), scale=min(gamma, x), label="at most gamma and lambda")


def factored_damping():
    """Identical scalar players, A = B = 1, gamma = 0.01: Theorem 3 with each factor damped by 0.1, and the truth."""
    gamma = 0.01
    damped = 1 + np.sqrt(gamma)
    by_theorem = (damped - 1 / damped) ** 2  # A~ B~ of Eq. 16 with damped diagonal blocks
    truth = gamma + 1 - 1 / (1 + gamma)
    corrected = gamma + rescaled(1.0, gamma)
    setting = (
        "A = B = 1, gamma = 0.01: cooperative curvature from Theorem 3 (factors damped by 0.1), and that of Eq. 24"
    )
    return Counterexample(setting, np.array([by_theorem]), np.array([corrected]), np.array([truth]))


@GTDDP.misprint(
    "C7",
    "Corollary 7",
    "the cooperative matrix of two layers with a common input and a summed output",
    printed="a corollary to Theorem 3: Q~_uu = U (diag(lambda~) + gamma) U', and the update takes larger steps",
    corrected="the same formula as the exact Schur complement of the damped Kronecker blocks; it does not follow from "
    "Theorem 3, and the larger step is that of Q~_uu^{-1} alone: with the companion's term the exact step is "
    "g / (gamma + 2 lambda) per player, smaller than g / (gamma + lambda)",
    derivation="With A_uv = A_uu and B_uv = B_uu Theorem 3 has A~ = B~ = 0 and no inverse; if the factors are damped, "
    "A~ (x) B~ is a different number. The Schur complement per eigen-direction is gamma + lambda - lambda^2 / (gamma + "
    "lambda) = gamma + gamma lambda / (gamma + lambda), in [gamma, 2 gamma). The joint system [gamma + lambda, lambda; "
    "lambda, gamma + lambda] (k_u, k_v) = -(g, g) has k_u = k_v = -g / (gamma + 2 lambda).",
    origin="paper",
    counterexample=factored_damping,
    assumes=COMMON,
    remark="For N players: OURS-8.",
    over=twins(),
)
def corollary_7(problem: Twins):
    """The formula, the exact step of both players by our joint solve, and what is larger than what."""
    yield from rescaling(problem)
    U, s = problem.eigenbasis()
    gamma, g = problem.gamma, problem.gradient
    own = tf.constant(problem.C + gamma * np.eye(len(g)))
    blocks = [[own, None], [tf.constant(problem.C), own]]
    first, second = linalg.cooperative_solve(blocks, [tf.constant(g[:, None])] * 2)
    truth = U @ ((U.T @ g) / (gamma + 2 * s))
    # relative to the solution of the worst direction: eigenvalue gamma of the joint matrix
    rest = {"condition": 2 * problem.condition, "label": "joint step"}
    yield same(first[:, 0], truth, **rest)
    yield same(second[:, 0], truth, **rest)
    alone, schur_only = 1 / (gamma + s), 1 / (gamma + rescaled(s, gamma))
    yield at_most(alone, schur_only, scale=1 / gamma, label="Q~^{-1} alone: larger than without cooperation")
    yield at_most(1 / (gamma + 2 * s), alone, scale=1 / gamma, label="exact cooperative step: smaller")
