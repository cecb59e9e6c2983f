"""The kernelized Wasserstein natural gradient: Arbel, Gretton, Li, Montufar 2020."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.baselines import wasserstein
from verification.claim import EPS, at_most, measured, same
from verification.papers import BASE
from verification.problems.outputs import Outputs, outputs
from verification.references import wasserstein as reference


def truth(problem: Outputs):
    """G, A, and the condition of A on what counts of it."""
    parts = problem.points, problem.coordinates, problem.X
    A = reference.energy(*parts, problem.variance, problem.ridge)
    cutoff = len(A) * EPS
    G = reference.metric(*parts, problem.J, problem.variance, problem.ridge, cutoff)
    values = np.linalg.eigvalsh(A)
    kept = values[values > cutoff * values[-1]]
    return G, A, (kept[-1] / kept[0] if len(kept) else 1.0)


@BASE.exact(
    "KWNG-G",
    "Arbel et al. 2020, Prop. 3",
    "G = T' A^+ T, T = C J / N, A = C C'/N + lambda K, C the mixed derivatives of the kernel at M pairs and N samples",
    over=outputs(),
)
def metric(problem: Outputs):
    """Our C, A and G against derivatives by the complex step and a dense pseudo-inverse."""
    G, A, condition = truth(problem)
    C, ours, root = problem.ours()
    parts = problem.points, problem.coordinates, problem.X, problem.variance
    yield same(C, reference.mixed(*parts), scale=1 / problem.variance, label="C")
    yield same(ours, A, scale=1 / problem.variance**2, label="A")
    scale = np.linalg.norm(problem.J) ** 2 / len(problem.X)
    if condition < 1e10:  # beyond that, what counts as 0 is a matter of rounding
        yield same(tf.transpose(root) @ root, G, condition=condition, scale=scale, label="G")


@BASE.exact(
    "KWNG-DUAL",
    "Arbel et al. 2020, Prop. 2",
    "u' G u / 2 = sup_a [a' T u - a' A a / 2]",
    assumes="lambda = 0, or A regular",
    over=outputs(),
)
def dual(problem: Outputs):
    """No coefficients beat G, and those of the maximum reach it."""
    _, A, root = problem.ours()
    A, root, rng = A.numpy(), root.numpy(), np.random.default_rng(0)
    _, _, condition = truth(problem)
    C = problem.ours()[0].numpy().reshape(len(A), -1)
    T = C @ problem.J.reshape(C.shape[1], -1) / len(problem.X)
    u = rng.standard_normal(T.shape[1])
    value = np.sum((root @ u) ** 2) / 2
    best = np.linalg.pinv(A, rcond=len(A) * EPS, hermitian=True) @ T @ u
    unit = np.linalg.norm(problem.J) ** 2 * (u @ u) / len(problem.X)
    for a in [*rng.standard_normal((5, len(A))), best / 2]:
        scale = unit + abs(a @ T @ u) + a @ A @ a
        yield at_most(a @ T @ u - a @ A @ a / 2, value, scale=scale, condition=condition, label="below the supremum")
    if condition < 1e10:
        yield same(best @ T @ u - best @ A @ best / 2, value, scale=unit, condition=condition, label="supremum")


@BASE.exact(
    "KWNG-GN",
    "Arbel et al. 2020, Sec. 3",
    "with lambda = 0 G <= J'J/N, with equality for the pairs of all coordinates and all samples",
    assumes="different outputs for the equality",
    remark="On M pairs of one batch KWNG is a sketch of the outputs' Gauss-Newton matrix; M < Nd tells them apart.",
    over=st.tuples(outputs(ridges=(0.0,)), outputs(ridges=(0.0,), everything=True)),
)
def gauss_newton(drawn):
    """The projector on the rows of C, and the identity where they span everything."""
    few, full = drawn
    for problem in drawn:
        flat = problem.J.reshape(-1, problem.J.shape[2])
        matrix = flat.T @ flat / len(problem.X)
        _, _, condition = truth(problem)
        root = problem.ours()[2].numpy()
        G, size = root.T @ root, np.linalg.norm(matrix)
        if problem is few:
            least = np.linalg.eigvalsh(matrix - G)[0]
            yield at_most(-least, 0.0, scale=size, condition=condition, label="G <= J'J/N")
        elif condition < 1e10:
            yield same(G, matrix, condition=condition, label="G = J'J/N")


@BASE.exact(
    "KWNG-STEP",
    "Arbel et al. 2020, Eq. 13",
    "(G + epsilon D)^{-1} grad J by a system in M unknowns, D_jj = sqrt(G_jj)",
    over=outputs(),
)
def step(problem: Outputs):
    """Woodbury's identity against the dense solve."""
    root = problem.ours()[2]
    diagonal = wasserstein.diagonal_of(root)
    gradient = tf.constant(problem.gradient)
    for D in (diagonal, tf.ones_like(diagonal)):
        ours = wasserstein.damped_solve(root, D, tf.constant(problem.epsilon, tf.float64), gradient)
        dense = root.numpy().T @ root.numpy() + problem.epsilon * np.diag(D)
        taken_off = np.linalg.norm((root.numpy() / D.numpy()) @ root.numpy().T, 2) / problem.epsilon  # of the gradient
        condition = np.linalg.cond(dense) * (1 + taken_off)
        if condition < 1e10:
            unit = np.linalg.norm(np.linalg.inv(dense), 2) * np.linalg.norm(problem.gradient)
            yield same(ours, np.linalg.solve(dense, problem.gradient), condition=condition, scale=unit, label="step")


@BASE.approximation(
    "KWNG-GAUSS",
    "Arbel et al. 2020, Thm. 5, Sec. 4.1",
    "G estimates the Wasserstein metric; its error falls with the samples and the pairs",
    assumes="Gaussian law X = mu + L z in two dimensions, parameters mu and L",
    remark="The exact metric comes from a Lyapunov equation. J'J/N is another matrix: a rotation of z moves the samples"
    " and not their law, which the kernel's gradients see and the Jacobian does not.",
    over=st.integers(0, 2**32 - 1),
    ranges={"few: error of G": (0.05, 0.6), "many: error of G": (0.0, 0.12), "error of J'J/N": (0.2, 1.5)},
    examples=20,
)
def gaussian(seed):
    """Relative error against the exact metric."""
    rng = np.random.default_rng(seed)
    L = np.eye(2) + 0.5 * np.tril(rng.standard_normal((2, 2)))
    exact = reference.gaussian_metric(L)
    for name, N, M in (("few", 50, 5), ("many", 2000, 20)):
        X, J = reference.gaussian_outputs(rng.standard_normal(2), L, rng.standard_normal((N, 2)))
        chosen = rng.choice(N, M, replace=False)
        distance = np.mean(np.sum((X[chosen][:, None] - X[None]) ** 2, axis=-1))
        problem = Outputs(X, J, np.zeros(6), X[chosen], rng.integers(0, 2, M), 10 * distance, 0.0, 1.0)
        root = problem.ours()[2].numpy()
        error = np.linalg.norm(root.T @ root - exact) / np.linalg.norm(exact)
        yield measured(error, f"{name}: error of G")
    flat = J.reshape(-1, 6)
    yield measured(np.linalg.norm(flat.T @ flat / N - exact) / np.linalg.norm(exact), "error of J'J/N")
