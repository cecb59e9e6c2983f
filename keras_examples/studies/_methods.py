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


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of a table that no `Method` describes.

    Attributes:
        name: what the table calls it.
        make: a new optimizer; the study sets its learning rate.
        metric: the curvature, or another group of rows.
        form: distinguishes rows of a group.
    """

    name: str
    make: Callable[[], keras.optimizers.Optimizer]
    metric: str = ""
    form: str = ""


DECADE = 4  # numbers of learning rates per factor of ten


def learning_rates(rate: float, decades: int, per_decade: int = 2) -> list[int]:
    """The learning rates of a study, as numbers for `rate_of`, around a middle.

    Args:
        rate: the middle, 1 or 3 times a power of ten.
        decades: how many the rates span.
        per_decade: 2 or 4 of them in each.

    Returns:
        `per_decade * decades + 1` numbers.
    """
    middle = min(range(-40, 40), key=lambda number: abs(rate_of(number) - rate))
    half = DECADE * decades // 2
    return list(range(middle - half, middle + half + 1, DECADE // per_decade))


def rate_of(number: int) -> float:
    """The learning rate 1, 1.8, 3, 5.6, 10 ... with this number; 0 is 1.0, ten times the rate is `DECADE` further."""
    return float(f"{(1, 1.8, 3, 5.6)[number % DECADE]}e{number // DECADE}")
