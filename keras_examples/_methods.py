"""What is compared: for every metric its baseline, and GTDDP with the same metric in several forms."""

import dataclasses
from collections.abc import Callable

import keras

import bellman_tf as btf

BASE = "base"
MATCHED = "GTDDP"
BLOCK = "GTDDP block"
OUTER = "GTDDP gg'"

# Options of GTDDP for each form; `MATCHED` is the default method.
FORMS = {
    MATCHED: {"value_hessian": "batch", "terminal_hessian": "matched"},
    BLOCK: {"value_hessian": "block_diagonal", "terminal_hessian": "matched"},
    OUTER: {"value_hessian": "batch", "terminal_hessian": "outer_product"},
}

KERAS_BASELINES: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "identity": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
    "adam": keras.optimizers.Adam,
}
OUR_BASELINES: dict[str, Callable[..., keras.optimizers.Optimizer]] = {"kfac": btf.KFAC, "ekfac": btf.EKFAC}
METRICS = (*KERAS_BASELINES, *OUR_BASELINES)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        metric: the curvature.
        form: `BASE`, or one of `FORMS`.
        gram: how GTDDP forms its Gram matrices.
        invert_every: steps between factorisations of K-FAC and EKFAC.
    """

    metric: str
    form: str
    gram: str = "auto"
    invert_every: int = 1

    @property
    def name(self) -> str:
        """What the table calls it."""
        if self.form != BASE:
            return f"{self.form}, {self.metric}"
        return (KERAS_BASELINES | OUR_BASELINES)[self.metric].__name__

    def make(self) -> keras.optimizers.Optimizer:
        """A new optimizer; the study sets its learning rate."""
        curvature: object = self.metric
        if self.metric in OUR_BASELINES:
            config = btf.curvature.KFAC if self.metric == "kfac" else btf.curvature.EKFAC
            curvature = config(invert_every=self.invert_every)
        if self.form != BASE:
            return btf.GTDDP(curvature=curvature, gram=self.gram, **FORMS[self.form])
        if self.metric in KERAS_BASELINES:
            return KERAS_BASELINES[self.metric]()
        return OUR_BASELINES[self.metric](curvature=curvature)


def half_decades(rate: float, decades: int) -> list[int]:
    """The learning rates of a study, as numbers for `rate_of`: half a decade apart around a middle.

    Args:
        rate: the middle, 1 or 3 times a power of ten.
        decades: how many the rates span.

    Returns:
        `2 * decades + 1` numbers.
    """
    middle = min(range(-20, 20), key=lambda number: abs(rate_of(number) - rate))
    return list(range(middle - decades, middle + decades + 1))


def rate_of(number: int) -> float:
    """The learning rate 1, 3, 10, 30, ... with this number; 0 is 1.0, and ten times the rate is two further."""
    return float(f"{1 if number % 2 == 0 else 3}e{number // 2}")
