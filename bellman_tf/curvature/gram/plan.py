"""Which form a player's Gram matrix takes, and what it costs: decided once, from static sizes alone.

    factored     one position, two-sided metric:  (x A^{-1} x') * (c B^{-1} c')     exact, b (d + e) a sample
    positions    the same over all pairs of positions, summed                       exact, b L^2 (d + e)
    per_sample   per-sample gradients                                               exact, L d e + b d e
    squares      one position, groups of one, diagonal metric                       exact, d e
    lookup       pairs of positions of a table that hold the same token             exact, b L^2 e
    rank_one     `factored` or `positions` with a diagonal metric of rank one       approximate, b L^2 (d + e)
    sketch       a convolution's centre tap times the number of taps                approximate, L c c' + b c c'
    reduced      pixels and cotangents of a convolution pooled to few positions     approximate, cheapest

Source: algorithm.md, Section 7, claims OURS-9; the centre tap and the metric of rank one are measured in
`benchmarks/gram_error.py`.

The samples b that meet in one Gram matrix are those of a group, or `USUAL_BATCH`: neither form nor cost depends on the
batch at hand, so that a summary printed before training is what runs.
"""

import dataclasses
from typing import NamedTuple

from bellman_tf.curvature.block import MetricKind
from bellman_tf.layers.matrix_layout import Extent

FORMS = ("auto", "exact", "per_sample", "positions", "sketch", "reduced")
# Samples in a batch, as far as the choice of a form goes.
USUAL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class GramLimits:
    """Sizes from which on a form is approximated.

    Attributes:
        sketch_above: "auto" sketches a convolution whose per-sample gradients read more numbers a sample than this.
        rank_one_above: "auto" takes the diagonal metric of a player with more parameters than this as one of rank one.
            Measured on one core with B = 64: a Dense layer of 2^14 weights 16 ms exactly and 0.6 ms with rank one (the
            products of its plain gradient step 0.6 ms), of 2^16 weights 50 and 0.8 ms.
        reduced_size: positions per axis that "reduced" keeps at most.
    """

    sketch_above: int = 2**18
    rank_one_above: int = 2**14
    reduced_size: int = 4


LIMITS = GramLimits()


class Plan(NamedTuple):
    """The form of a player's Gram matrix.

    Attributes:
        form: its name.
        cost: multiplications per sample; `None` where a size is not static.
        words: the form in words, for `game_summary`.
    """

    form: str
    cost: int | None
    words: str


def plan(
    extent: Extent, kind: MetricKind, form: str = "auto", group_size: int | None = None, limits: GramLimits = LIMITS
) -> Plan:
    """Chooses the form of a player's Gram matrix.

    Args:
        extent: static sizes of the player.
        kind: of its metric.
        form: the `gram` option, one of `FORMS`. A form that does not exist for the player gives the cheapest exact one.
        group_size: samples per group; `None` is the whole batch.
        limits: sizes from which on "auto" approximates.

    Returns:
        The form and its cost.
    """
    b = _samples(group_size)
    exact, near = _exact(extent, kind, b), _approximate(extent, kind, b, limits)
    chosen = min(exact, key=lambda name: (exact[name] is None, exact[name]))
    work = None if extent.positions is None else extent.positions * extent.rows * extent.width
    if form == "per_sample" or form in near:
        chosen = form
    elif form == "positions" and extent.positions != 1:
        chosen = "positions" if "positions" in exact else "per_sample"
    elif form == "auto" and extent.taps > 1 and "sketch" in near and work is not None and work > limits.sketch_above:
        chosen = "sketch"
    elif form == "auto" and "rank_one" in near and chosen == "per_sample" and extent.parameters > limits.rank_one_above:
        chosen = "rank_one" if near["rank_one"] < exact["per_sample"] else chosen
    words = f"sketch, 1 of {extent.taps} taps" if chosen == "sketch" else chosen.replace("_", " ")
    return Plan(chosen, {**near, **exact}[chosen], words)


def _exact(extent: Extent, kind: MetricKind, b: int) -> dict[str, int | None]:
    """The exact forms that exist, and their multiplications per sample."""
    m, L, d, e = extent.columns, extent.positions, extent.rows, extent.width
    matrix = extent.rows > 0 and extent.groups == 1
    if extent.rows:
        costs = {"per_sample": None if L is None else m * L * d * e // extent.groups + m * m * b * d * e}
    else:
        costs = {"per_sample": m * extent.parameters * (1 + m * b)}
    if matrix and kind.kronecker and L is not None:
        costs["factored" if L == 1 and not extent.taps else "positions"] = L * L * b * (d + m * m * e)
    if matrix and kind.diagonal and L == 1 and not extent.taps and m == b == 1:
        costs["squares"] = d * e
    if extent.vocabulary and kind.rowwise and L is not None and USUAL_BATCH * L * L * m <= extent.parameters:
        costs = {"lookup": L * L * b * m * m * e, **costs}  # fewer pairs of positions than entries of all the tables
    return costs


def pairs_are_cheaper(extent: Extent, kind: MetricKind, group_size: int | None) -> bool:
    """Whether one tap's inner products are cheaper from pairs of positions than from gradients per sample.

    Args:
        extent: static sizes of a convolution.
        kind: of its metric.
        group_size: samples per group; `None` is the whole batch.

    Returns:
        Whether they are; `False` where a size is not static.
    """
    if extent.positions is None:
        return False
    costs = _of_one_tap(extent, kind, _samples(group_size))
    return min(costs, key=costs.get) == "pairs"


def _samples(group_size: int | None) -> int:
    return USUAL_BATCH if group_size is None else min(group_size, USUAL_BATCH)


def _of_one_tap(extent: Extent, kind: MetricKind, b: int) -> dict[str, int]:
    """Multiplications per sample of one tap's inner products, from gradients or from pairs of positions."""
    m, L, d, e = extent.columns, extent.positions, extent.rows // extent.taps, extent.width
    costs = {"gradients": m * L * d * e // extent.groups + m * m * b * d * e}
    if kind.sided and extent.groups == 1:
        costs["pairs"] = L * L * b * (d + m * m * e)
    return costs


def _approximate(extent: Extent, kind: MetricKind, b: int, limits: GramLimits) -> dict[str, int | None]:
    """The approximate forms that exist, and their multiplications per sample."""
    m, L, d, e = extent.columns, extent.positions, extent.rows, extent.width
    costs: dict[str, int | None] = {}
    if extent.taps and kind.tapwise:
        tap = d // extent.taps * e
        costs["sketch"] = None if L is None else min(_of_one_tap(extent, kind, b).values())
        if L is not None and extent.groups == 1:
            costs["reduced"] = m * limits.reduced_size**2 * tap + m * m * b * tap
    elif extent.rows and not extent.taps and kind.diagonal and L is not None:
        costs["rank_one"] = L * L * b * (d + m * m * e)
    return costs
