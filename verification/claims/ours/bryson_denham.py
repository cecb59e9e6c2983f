"""A published optimum under a limit of the state, and what held controls make of it (OURS-26)."""

import numpy as np
from hypothesis import strategies as st

from verification.claim import Measurement, at_most
from verification.papers import OURS
from verification.problems.bryson_denham import allowed, solve
from verification.references import bryson_denham as published


@st.composite
def limits(draw):
    """A published limit, with its kinks at nodes, and the number of cells: 24 or 48, for one compiled program each."""
    cells = draw(st.sampled_from([24, 48]), label="cells")
    contact = draw(st.sampled_from(["arc", "point", "none"]), label="contact")
    if contact == "arc":
        return draw(st.integers(cells // 6, cells // 2 - 1), label="cells before the arc") / (3 * cells), cells
    least, most = (1 / 6 + 1 / (3 * cells**2), 0.25) if contact == "point" else (0.25, 0.5)
    return draw(st.floats(least, most), label="limit"), cells


@OURS.exact(
    "26",
    "Bryson, Ho, Applied Optimal Control (1975), Sec. 3.11",
    "least 1/2 int u^2 with x'' = u, x(0) = x(1) = 0, x'(0) = -x'(1) = 1 under x <= l: J = 4 / (9 l) up to l = 1/6,"
    " 2 + 6 (1 - 4 l)^2 up to 1/4, then 2. If u is held over cells of length h and its kinks are nodes, its means are"
    " optimal under l + h^2 (u(1/2) - u(0)) / 12 at the nodes, for J - h^2 int u'^2 / 24; under l the least cost is"
    " J + h^2 int u'^2 / 24 up to O(h^3)",
    remark="J and u are published, the rest is ours; proofs are in `verification/references/bryson_denham.py`. Our"
    " solver and the dense reference for inequalities are held to it.",
    over=limits(),
    examples=20,
)
def published_optimum(problem):
    """Our solver under both limits against the closed forms, to what its tolerance allows."""
    limit, cells = problem
    found = solve([published.held_limit(limit, cells), limit], cells)
    may = allowed(limit, cells)
    yield at_most(1.0, found.converged.numpy(), label="converged")
    (cost, unmoved), controls = found.cost.numpy(), found.controls.numpy()[0, :, 0]
    yield Measurement(abs(cost - published.held_cost(limit, cells)), may.cost, "cost of the means")
    gap = np.abs(controls - published.held_controls(limit, cells)).max()
    yield Measurement(gap, may.control, "means")
    total = found.multipliers.stage.numpy()[0].sum()
    yield Measurement(abs(total - published.masses(limit)), cells * may.multiplier, "sum of the multipliers")
    least, most = published.bracket(limit, cells)
    yield Measurement(max(least - unmoved, unmoved - most, 0.0), may.cost, "cost under the published limit")
