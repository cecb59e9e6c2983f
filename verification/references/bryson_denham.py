"""The published optimum of the Bryson-Denham problem, and what a control that is held over each of N cells makes of it.

    least 1/2 int_0^1 u^2 dt,  x' = v, v' = u,  x(0) = x(1) = 0, v(0) = 1, v(1) = -1,  x(t) <= limit.

*Why the control is optimal.* It is continuous, piecewise linear and concave, with kinks where x = limit only: u'' is
minus a sum of masses m_i > 0 at times t_i. For any other admissible y, w = y - x vanishes at both ends with its
derivative, and two integrations by parts give an identity,

    J(y) - J(x) = int u w'' + 1/2 int w''^2 = sum_i m_i (limit - y(t_i)) + 1/2 int (y'' - u)^2 >= 0.

*Held controls.* Let h = 1/N and let every kink be a node. The means of u over the cells move v at the nodes not at all
and x by h^2/12 (u(t) - u(0)), which vanishes at the end, for u is symmetric, and is largest where u is, at 1/2. So the
means keep x at the nodes below the *held limit*, limit + h^2/12 (u(1/2) - u(0)), and reach it at the kinks. The same
identity with sums for w then says that they are the optimum of the problem with held controls and the held limit at the
nodes, with the masses for multipliers and the cost J - h^2/24 int u'^2.

*Any other limit.* The optimal cost of a convex program is convex in its limits, with minus the sum of their multipliers
for slope. So at a limit between two held limits it is between a tangent and the chord: a bracket.

Source: Bryson, Ho, "Applied Optimal Control" (1975), Section 3.11, pages 120-123: control, cost and the three cases,
of an arc on the limit (limit <= 1/6), of a point that touches it (<= 1/4), and of none. Read not in the book but in
code that quotes these pages, `danielrherber/optimal-control-direct-method-examples`; the proof above needs neither.
"""

import numpy as np


def control(limit, t):
    """The optimal u at times t."""
    to_end = np.minimum(t, 1.0 - np.asarray(t))
    if limit <= 1 / 6:
        return -2 / (3 * limit) * np.maximum(0.0, 1.0 - to_end / (3 * limit))
    slack = max(0.0, 1.0 - 4.0 * limit)
    return -2.0 - 6.0 * slack + 24.0 * slack * to_end


def cost(limit):
    """J = 1/2 int u^2."""
    return 4 / (9 * limit) if limit <= 1 / 6 else 2.0 + 6.0 * max(0.0, 1.0 - 4.0 * limit) ** 2


def roughness(limit):
    """The integral of u'^2."""
    return 8 / (27 * limit**3) if limit <= 1 / 6 else 576.0 * max(0.0, 1.0 - 4.0 * limit) ** 2


def arc(limit):
    """First and last time at which x = limit, `None` where there is none."""
    if limit > 1 / 4:
        return None
    return (3 * limit, 1 - 3 * limit) if limit <= 1 / 6 else (0.5, 0.5)


def masses(limit):
    """What the multipliers add up to."""
    return 4 / (9 * limit**2) if limit <= 1 / 6 else 48.0 * max(0.0, 1.0 - 4.0 * limit)


def end_multipliers(limit):
    """Of x(1) = 0 and v(1) = -1: u'(1) and -u(1)."""
    slope = -2 / (9 * limit**2) if limit <= 1 / 6 else -24.0 * max(0.0, 1.0 - 4.0 * limit)
    return np.array([slope, -control(limit, 1.0)])


def held_controls(limit, cells):
    """Means of u over the cells, `[cells]`; the kinks must be nodes, so that they are the values in the middle."""
    return control(limit, (np.arange(cells) + 0.5) / cells)


def held_limit(limit, cells):
    """The limit at the nodes under which these are optimal."""
    return limit + (control(limit, 0.5) - control(limit, 0.0)) / (12 * cells**2)


def held_cost(limit, cells):
    """The optimal cost then."""
    return cost(limit) - roughness(limit) / (24 * cells**2)


def bracket(limit, cells):
    """Least and largest possible optimal cost of held controls under `limit` at the nodes.

    Args:
        limit: below 1/6 with 3 limit cells an integer above 1, or from 1/6 + 1/(3 cells^2) on with `cells` even.
        cells: their number.

    Returns:
        Two numbers, 1/(121.5 limit^4 cells^3) + O(cells^-4) apart below 1/6, and the same above: there every control
        has its kink, if it has one, at 1/2, and `limit` is a held limit.
    """
    if limit < 1 / 6:  # the arcs that begin at this node, under a larger limit, and one before
        at, before = limit, limit - 1 / (3 * cells)
    else:
        at = before = (limit - 1 / cells**2) / (1 - 4 / cells**2) if limit < 1 / 4 else limit
    top, bottom = (held_limit(published, cells) for published in (at, before))
    least, most = (held_cost(published, cells) for published in (at, before))
    missing = top - limit
    tangent = least + masses(at) * missing
    return tangent, tangent if at == before else least + (most - least) * missing / (top - bottom)


def held_states(controls):
    """States x and v at the nodes, `[cells + 1, 2]`, exactly."""
    h = 1 / len(controls)
    v = 1.0 + h * np.append(0.0, np.cumsum(controls))
    return np.stack([np.append(0.0, np.cumsum(h * v[:-1] + 0.5 * h**2 * np.asarray(controls))), v], axis=1)


def linear_quadratic(limit, cells):
    """The problem with held controls in the arrays of `constrained.linear_quadratic`, the ends as two rows each."""
    h = 1 / cells

    def every(array):
        return np.tile(array, (cells, 1, 1))

    ends = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    return {
        "F": every([[1.0, h, h**2 / 2], [0.0, 1.0, h]]),
        "c": np.zeros((cells, 2)),
        "g": np.zeros((cells, 3)),
        "H": every(np.diag([0.0, 0.0, h])),
        "v": np.zeros(2),
        "W": np.zeros((2, 2)),
        "A": every([[1.0, 0.0, 0.0]]),
        "b": np.full((cells, 1), limit),
        "A_end": ends,
        "b_end": np.array([0.0, 0.0, -1.0, 1.0]),
    }
