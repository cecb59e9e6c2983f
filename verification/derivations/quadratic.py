"""Checks of the minimiser of a quadratic model and of its value, which several papers state."""

import numpy as np

from bellman_tf import bellman
from verification.claim import same
from verification.problems.quadratics import Quadratic
from verification.references import dense


def affine_minimiser(problem: Quadratic):
    """Ours against the stationary point of the dense quadratic."""
    ours = bellman.gains(problem.expansion())
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.n)
    yield same(ours.open_loop, k, condition=problem.condition, label="k")
    yield same(ours.feedback, K, condition=problem.condition, label="K")


def value_of_the_minimiser(problem: Quadratic):
    """Ours against the policy inserted in the quadratic."""
    expansion = problem.expansion()
    ours = bellman.value_update(expansion, bellman.gains(expansion))
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.n)
    v, W = dense.follow(problem.gradient, problem.hessian, k, K)
    yield same(ours.V_x, v, condition=problem.condition, scale=np.linalg.norm(problem.gradient), label="V_x")
    yield same(ours.V_xx, W, condition=problem.condition, scale=np.linalg.norm(problem.hessian), label="V_xx")
