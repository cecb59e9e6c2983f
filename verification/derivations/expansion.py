"""The recursion on one stage and on a linear-quadratic problem."""

import numpy as np

from bellman_tf import bellman
from verification.claim import same
from verification.problems.control import (
    LinearQuadratic,
    as_stage,
    as_value,
)
from verification.references import jets

PARTS = ("Q_x", "Q_u", "Q_xx", "Q_ux", "Q_uu")


def blocks(gradient, hessian, n):
    """The five parts of an expansion in z = [x; u]."""
    return dict(
        zip(PARTS, (gradient[:n], gradient[n:], hessian[:n, :n], hessian[n:, :n], hessian[n:, n:]), strict=True)
    )


def one_iteration(problem: LinearQuadratic):
    """One iteration from a random nominal trajectory, against the Newton step on all controls at once."""
    nominal = problem.split(np.random.default_rng(0).standard_normal(sum(problem.sizes)))
    terminal, stages = problem.expansions(nominal)
    policy, _ = bellman.backward_dense(as_value(*terminal), [as_stage(stage) for stage in stages])
    old, x, controls = problem.states(nominal), problem.states(nominal)[0], []
    for t, (k, K, _) in enumerate(policy):
        controls.append(nominal[t] + k.numpy() + K.numpy() @ (x - old[t]))
        s = problem.stages[t]
        x = problem.offsets[t] + s["f_x"] @ x + s["f_u"] @ controls[t]
    _, gradient, hessian = jets.expansion(problem.cost, np.concatenate(nominal))
    truth = np.concatenate(nominal) - np.linalg.solve(hessian, gradient)
    scale = np.linalg.norm(np.concatenate(nominal)) + np.linalg.norm(np.linalg.solve(hessian, gradient))
    condition = np.linalg.cond(hessian)
    yield same(np.concatenate(controls), truth, condition=condition, scale=scale, label="all controls")
