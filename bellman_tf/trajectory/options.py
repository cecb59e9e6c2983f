"""How far to step, and how much to regularise when a step cannot be taken."""

import dataclasses
from typing import Literal, TypeAlias, get_args

from bellman_tf import _checks

Place: TypeAlias = Literal["control", "state", "both"]
PLACES = get_args(Place)


@dataclasses.dataclass(frozen=True)
class Regularization:
    """Schedule of the regularisation mu, one mu per initial state.

    Where a sweep meets an indefinite Q_uu, or no step of the line search is accepted, mu grows; after every accepted
    step it shrinks, both at a rate that itself grows, so that mu is zero a few iterations after it was last needed.

    Attributes:
        on: what mu is added to; "control": Q_uu + mu I; "state": V_xx + mu I behind the stage, which holds the new
            states, and not the controls, near the old ones; "both". "state" alone cannot repair a direction of the
            control that the dynamics do not see.
        initial: mu of the first sweep.
        smallest: below this mu is zero; the first step up from zero.
        largest: beyond this an instance stops, with `Status.INDEFINITE` or `Status.LINE_SEARCH_FAILED`.
        factor: growth of the rate.

    Raises:
        ValueError: if a value is out of its range.

    Source: Tassa, Erez, Todorov, "Synthesis and stabilization of complex behaviors through online trajectory
        optimization" (2012), Section II-F.

    Example:
        >>> Regularization(on="control", initial=1e-3).smallest
        1e-06
    """

    on: Place = "both"
    initial: float = 0.0
    smallest: float = 1e-6
    largest: float = 1e10
    factor: float = 2.0

    def __post_init__(self) -> None:
        _checks.check_choice("on", self.on, PLACES)
        _checks.check_real("initial", self.initial, least=0.0)
        _checks.check_real("smallest", self.smallest, above=0.0)
        _checks.check_real("factor", self.factor, above=1.0)
        _checks.check_real("largest", self.largest, least=max(self.smallest, self.initial))


@dataclasses.dataclass(frozen=True)
class LineSearch:
    """Backtracking over the step sizes 1, factor, factor^2, ...

    A step alpha is accepted when the cost falls by at least `ratio` times the reduction that the quadratic model
    expects of it.

    Attributes:
        factor: ratio of one step size to the one before.
        trials: number of step sizes.
        ratio: least share of the expected reduction.

    Raises:
        ValueError: if a value is out of its range.

    Source: Tassa, Erez, Todorov (2012), Section II-E.

    Example:
        >>> LineSearch(factor=0.7, trials=20).ratio
        0.0001
    """

    factor: float = 0.5
    trials: int = 12
    ratio: float = 1e-4

    def __post_init__(self) -> None:
        _checks.check_real("factor", self.factor, above=0.0, below=1.0)
        _checks.check_integer("trials", self.trials, least=1)
        _checks.check_real("ratio", self.ratio, least=0.0, below=1.0)


@dataclasses.dataclass(frozen=True)
class AugmentedLagrangian:
    """Schedule of the penalty rho on inequality constraints, one rho per initial state.

    Whenever the augmented cost has been minimised well enough, the multipliers become y = max(0, lambda + rho g), and
    rho grows where the gap, the largest |y - lambda| / rho, has not shrunk enough since the last time. Well enough is a
    gradient in proportion to the gap: to minimise to the last digit under multipliers that are still wrong is lost
    work, most of all where convergence is linear.

    Attributes:
        initial: first penalty; small enough that the first minimisation is easy, in units of cost per squared
            inequality.
        factor: growth of the penalty.
        progress: the penalty grows unless the gap shrinks to this share of the one before.
        largest: an instance that asks for more stops with `Status.INFEASIBLE`.
        tolerance: on the largest violation and on the slack of an inequality that has a multiplier, in units of the
            inequality; `None` is the square root of the machine precision.
        inexact: multipliers are renewed once the largest entry of the gradient is at most so many times the gap, and
            the reduction that a step promises so many times the penalty times the gap squared; 0 minimises to the
            tolerances of the solve every time, as it is done at the largest penalty.

    Raises:
        ValueError: if a value is out of its range.

    Source: Nocedal and Wright, "Numerical Optimization" (2006), Section 17.4; Howell, Jackson, Manchester, "ALTRO: a
        fast solver for constrained trajectory optimization" (2019), Section III; for `inexact` Rockafellar, "Augmented
        Lagrangians and applications of the proximal point algorithm in convex programming" (1976), criterion (B').

    Example:
        >>> AugmentedLagrangian(initial=10.0).factor
        10.0
    """

    initial: float = 1.0
    factor: float = 10.0
    progress: float = 0.25
    largest: float = 1e8
    tolerance: float | None = None
    inexact: float = 0.1

    def __post_init__(self) -> None:
        _checks.check_real("initial", self.initial, above=0.0)
        _checks.check_real("inexact", self.inexact, least=0.0)
        _checks.check_real("factor", self.factor, above=1.0)
        _checks.check_real("progress", self.progress, above=0.0, below=1.0)
        _checks.check_real("largest", self.largest, least=self.initial)
        if self.tolerance is not None:
            _checks.check_real("tolerance", self.tolerance, above=0.0)
