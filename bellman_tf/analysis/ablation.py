"""One network under the four information structures of DGNOpt."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from bellman_tf.curvature.config import KFAC, Cooperation

STRUCTURES = {
    "O": ("open", False),
    "C": ("feedback", False),
    "O-CG": ("open", True),
    "C-CG": ("cooperative", True),
}
"""The information structures of `information_ablation`, by name. Each is the option `information`, and whether the
metric has cross blocks between the players of a stage (DGN Sec. 3, Def. 8)."""


class Ablation(NamedTuple):
    """Results under the four information structures.

    Attributes:
        losses: name of the structure to the final values, one per seed.
        metric: the logged quantity.

    Example:
        >>> table = btf.analysis.Ablation({"O": [1.0, 2.0], "C": [0.5, 1.0]}, "loss")
        >>> table.rows()[1]
        ('C', 0.75, 0.25, -0.75)
    """

    losses: dict[str, list[float]]
    metric: str

    def rows(self) -> list[tuple[str, float, float, float]]:
        """The results as a table.

        Returns:
            For each structure its name, mean, standard deviation, and mean difference to "O" of the same seed.

        Example:
            >>> btf.analysis.Ablation({"O": [1.0, 2.0], "C-CG": [1.0, 1.5]}, "loss").rows()
            [('O', 1.5, 0.5, 0.0), ('C-CG', 1.25, 0.25, -0.25)]
        """
        base = np.array(self.losses["O"])
        return [
            (name, float(np.mean(values)), float(np.std(values)), float(np.mean(np.array(values) - base)))
            for name, values in self.losses.items()
        ]

    def __str__(self) -> str:
        lines = [f"{'structure':10}{self.metric:>14}{'+-':>12}{'minus O':>12}"]
        lines += [f"{name:10}{mean:14.5g}{spread:12.2g}{gap:12.3g}" for name, mean, spread, gap in self.rows()]
        return "\n".join(lines)


def information_ablation(
    build: Callable[[], keras.Model],
    fit: Callable[[keras.Model], keras.callbacks.History],
    optimizer: Callable[..., keras.optimizers.Optimizer],
    *,
    loss: Any,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "loss",
    cross_blocks: Cooperation = "exact",
    compile_options: dict[str, Any] | None = None,
) -> Ablation:
    """Trains one network under open loop (O), feedback (C), cooperation without and with feedback (O-CG, C-CG).

    Every structure starts from the same seeds, so differences within a seed are those of the structure alone.
    Cooperation is cross blocks between the players of a stage, which K-FAC and EKFAC have; under another metric O-CG is
    O. C-CG has a joint value with feedback besides. Convolutions have cross blocks with `convolution="patches"`.

    Args:
        build: makes the network, a model of this package.
        fit: trains it and returns the history.
        optimizer: called with `information=...`, for example `functools.partial(btf.GTDDP, 0.1)`; its curvature's
            `cooperative` is set here.
        loss: for `compile`.
        seeds: one run each.
        metric: which entry of the history counts, its last value.
        cross_blocks: `cooperative` of the curvature under O-CG and C-CG.
        compile_options: further arguments of `compile`.

    Returns:
        The table.

    Source: DGN Sec. 3.2, Table 1, Definition 8.

    Example:
        >>> x = np.eye(2, dtype="float32")
        >>> def build():
        ...     return btf.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> def fit(model):
        ...     return model.fit(x, x[:, :1], verbose=0)
        >>> found = btf.analysis.information_ablation(build, fit, btf.GTDDP, loss="mse", seeds=[0],
        ...                                       compile_options={"run_eagerly": True})
        >>> sorted(found.losses)
        ['C', 'C-CG', 'O', 'O-CG']
    """
    losses: dict[str, list[float]] = {name: [] for name in STRUCTURES}
    for seed in seeds:
        for name, (information, cooperates) in STRUCTURES.items():
            keras.utils.set_random_seed(seed)
            model, used = build(), optimizer(information=information)
            if isinstance(used.curvature, KFAC):
                used.curvature = dataclasses.replace(used.curvature, cooperative=cross_blocks if cooperates else False)
            model.compile(optimizer=used, loss=loss, **(compile_options or {}))
            losses[name].append(float(fit(model).history[metric][-1]))
    return Ablation(losses, metric)
