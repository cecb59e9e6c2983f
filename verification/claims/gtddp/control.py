"""Set-up and DDP: Eqs. 1-6, Algorithm 1, Proposition 1."""

import numpy as np

from bellman_tf import bellman
from verification.claim import same
from verification.papers import GTDDP
from verification.problems.quadratics import Quadratic, quadratics
from verification.references import dense


@GTDDP.exact(
    "E4",
    "Eq. 4",
    "the quadratic model of Q is minimised over affine policies by k = -Q_uu^{-1} Q_u, K = -Q_uu^{-1} Q_ux",
    assumes="Q_uu positive definite",
    remark="The restriction to affine policies costs nothing: the minimiser over all maps is this one.",
    over=quadratics(),
)
def affine_minimiser(problem: Quadratic):
    """Ours against the stationary point of the dense quadratic."""
    ours = bellman.gains(problem.expansion())
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.n)
    yield same(ours.open_loop, k, condition=problem.condition, label="k")
    yield same(ours.feedback, K, condition=problem.condition, label="K")


@GTDDP.exact(
    "E6",
    "Eq. 6",
    "V_x = Q_x + Q_ux' k, V_xx = Q_xx + Q_ux' K",
    assumes="k, K from the same Q_uu, taken constant in x",
    remark="With another positive definite matrix in the gains it is not the value of that policy: OURS-5.",
    over=quadratics(),
)
def value_of_the_minimiser(problem: Quadratic):
    """Ours against the policy inserted in the quadratic."""
    expansion = problem.expansion()
    ours = bellman.value_update(expansion, bellman.gains(expansion))
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.n)
    v, W = dense.follow(problem.gradient, problem.hessian, k, K)
    yield same(ours.V_x, v, condition=problem.condition, scale=np.linalg.norm(problem.gradient), label="V_x")
    yield same(ours.V_xx, W, condition=problem.condition, scale=np.linalg.norm(problem.hessian), label="V_xx")
