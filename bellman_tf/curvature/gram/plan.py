"""Which form a player's Gram matrix takes, and what it costs: decided once, from static sizes alone.

    factored     one position, two-sided metric:  (x A^{-1} x') * (c B^{-1} c')     exact, b (d + e) a sample
    positions    the same over all pairs of positions, summed                       exact, b L^2 (d + e)
    per_sample   per-sample gradients                                               exact, L d e + b d e
    squares      one position, groups of one, diagonal metric                       exact, d e
    lookup       pairs of positions of a table that hold the same token             exact, b L^2 e
    rank_one     `factored` or `positions` with a diagonal metric of rank one       approximate, b L^2 (d + e)
    sketch       a convolution's centre tap times the number of taps                approximate, L c c' + b c c'
                 (of 64 input channels and more a quarter, where the metric does not mix them)
    hashed       a table's rows summed in few buckets, with signs                   approximate, L e + b h e
    features     some of a position layer's input features, times all of them approximate, (L d e + b d e) / 4

Source: claims OURS-9; the centre tap and the metric of rank one are measured in
`benchmarks/gram_error.py`.

The samples b that meet in one Gram matrix are those of a group, or `USUAL_BATCH`: neither form nor cost depends on the
batch at hand, so that a summary printed before training is what runs.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, TypeAlias, get_args

import keras

from bellman_tf import _checks
from bellman_tf._serial import Serialisable
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.metric import MetricKind
from bellman_tf.layers.matrix_layout import Extent

GramForm: TypeAlias = Literal["auto", "exact", "per_sample", "positions", "sketch", "features", "hashed"]
FORMS = get_args(GramForm)
# Samples in a batch, as far as the choice of a form goes.
USUAL_BATCH = 64


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class GramLimits(Serialisable):
    """Sizes from which on the option `gram="auto"` approximates a Gram matrix, or forms it in blocks of samples.

    Attributes:
        sketch_above: "auto" sketches a convolution, and takes some of the input features of a layer with positions,
            whose per-sample gradients cost more multiplications a sample than this.
        rank_one_above: "auto" takes the diagonal metric of a player with more parameters than this as one of rank one.
            Measured on one core with B = 64: a Dense layer of 2^14 weights 16 ms exactly and 0.6 ms with rank one (the
            products of its plain gradient step 0.6 ms), of 2^16 weights 50 and 0.8 ms; the loss is the same
            (`benchmarks/gram_loss.py --only wide`).
        feature_share: "features" keeps one input feature of so many, and "sketch" one input channel of as many.
        buckets: "hashed" sums the rows of a table in so many; "auto" takes it for larger tables whose exact form costs
            more multiplications a sample than `sketch_above`.
        thin_from: input channels from which on "sketch" keeps some.
        joint_up_to: numbers of a gradient per sample up to which players with a joint metric have its Gram matrix, for
            which the gradients are formed, and above which those of the players alone are added. At 33 x 32 numbers a
            step takes 1.1 times as long as without cross blocks, at 65 x 64 it would take 1.5 times as long.
        memory: bytes that what a Gram matrix is formed of may take (gradients per sample, products of pairs of
            positions), besides the matrix itself: above it is formed in blocks of samples.

    Example:
        >>> btf.GTDDP(0.1, gram=btf.curvature.GramLimits(sketch_above=2**20)).options.gram_limits.sketch_above
        1048576
    """

    sketch_above: int = 2**18
    rank_one_above: int = 2**12
    feature_share: int = 4
    buckets: int = 256
    thin_from: int = 64
    joint_up_to: int = 2**11
    memory: int = 2**28

    def __post_init__(self) -> None:
        """Checks every size.

        Raises:
            ValueError: for one that is no integer or too small.
        """
        for name in ("sketch_above", "rank_one_above", "joint_up_to"):
            _checks.check_integer(f"GramLimits.{name}", getattr(self, name), least=0)
        for name in ("feature_share", "buckets", "thin_from"):
            _checks.check_integer(f"GramLimits.{name}", getattr(self, name), least=1)
        _checks.check_integer("gram_memory", self.memory, least=1)


LIMITS = GramLimits()


class Plan(NamedTuple):
    """The form of a player's Gram matrix.

    Attributes:
        form: its name.
        cost: multiplications per sample; `None` where a size is not static.
        words: the form in words, for `game_summary`.
        load: numbers that are held while the matrix is formed.
    """

    form: str
    cost: int | None
    words: str
    load: MemoryUse = MemoryUse()


def plan(
    extent: Extent,
    kind: MetricKind,
    form: GramForm = "auto",
    group_size: int | None = None,
    limits: GramLimits = LIMITS,
    itemsize: int = 4,
) -> Plan:
    """Chooses the form of a player's Gram matrix.

    Args:
        extent: static sizes of the player.
        kind: of its metric.
        form: the `gram` option, one of `FORMS`. A form that does not exist for the player gives the cheapest exact one.
        group_size: samples per group; `None` is the whole batch.
        limits: sizes from which on "auto" approximates.
        itemsize: bytes of one number of the captures.

    Returns:
        The form, its cost and its memory.
    """
    b = _samples(group_size)
    exact, near = _exact(extent, kind, b), _approximate(extent, kind, b, limits)
    chosen = min(exact, key=lambda name: _known(exact[name]))
    thin = kept_channels(extent, kind, limits) < extent.channels
    fewer = extent.taps > 1 or thin  # than all that a sketch would keep
    work = None if extent.positions is None else extent.positions * extent.rows * extent.width
    if form == "per_sample" or form in near:
        chosen = form
    elif form == "positions" and extent.positions != 1:
        chosen = "positions" if "positions" in exact else "per_sample"
    elif form == "auto" and "sketch" in near and fewer and work is not None and work > limits.sketch_above:
        chosen = "sketch"
    elif form == "auto" and "hashed" in near:
        dear = _known(exact[chosen]) > max(limits.sketch_above, _known(near["hashed"]))
        chosen = "hashed" if dear and extent.vocabulary > limits.buckets else chosen
    elif form == "auto" and chosen == "per_sample":
        known = {
            "rank_one": extent.parameters > limits.rank_one_above,
            "features": work is not None and work > limits.sketch_above,
        }
        cheaper = {name: near[name] for name, big in known.items() if big and name in near}
        chosen = (
            min({**cheaper, chosen: exact[chosen]}.items(), key=lambda pair: _known(pair[1]))[0] if cheaper else chosen
        )
    share = f"1 of {limits.feature_share}"
    parts = [f"1 of {extent.taps} taps"] * (extent.taps > 1 or not thin) + [f"{share} channels"] * thin
    sketched = f"sketch, {' and '.join(parts)}"
    words = {"sketch": sketched, "features": f"{share} features", "hashed": f"hashed, {limits.buckets} buckets"}
    words = words.get(chosen, chosen.replace("_", " "))
    load = _load(chosen, extent, kind, group_size, limits)
    most = load.most(limits.memory // itemsize, group_size, extent.columns)
    words = words if most is None else f"{words}, blocks above {most} samples"
    return Plan(chosen, {**near, **exact}[chosen], words, load)


def _load(form: str, extent: Extent, kind: MetricKind, group_size: int | None, limits: GramLimits) -> MemoryUse:
    """Numbers held while a form's Gram matrix is formed.

    Gradients are there twice, as they are and under the metric; of pairs of positions there are the products of inputs,
    those of cotangents, and those of both.

    Args:
        form: its name.
        extent: static sizes of the player.
        kind: of its metric.
        group_size: samples per group.
        limits: which share of the features is kept.

    Returns:
        The load.
    """
    m, L, d, e = extent.columns, extent.positions, extent.rows, extent.width
    if form == "per_sample":
        return MemoryUse(sample=2 * m * extent.parameters)
    if form == "hashed":
        return MemoryUse(sample=2 * m * limits.buckets * e)
    if form == "features":
        return MemoryUse(sample=2 * m * kept_features(d, limits) * e)
    if form == "sketch" and not pairs_are_cheaper(extent, kind, group_size, limits):
        return MemoryUse(sample=2 * m * kept_channels(extent, kind, limits) * e)
    if form in {"factored", "squares"} or (form == "rank_one" and L == 1):
        return MemoryUse()
    L = _checks.given("positions", L)
    return MemoryUse(pair=L * L * (1 + 2 * m * m))


def _exact(extent: Extent, kind: MetricKind, b: int) -> dict[str, int | None]:
    """The exact forms that exist, and their multiplications per sample."""
    m, L, d, e = extent.columns, extent.positions, extent.rows, extent.width
    matrix = extent.rows > 0 and extent.groups == 1
    costs: dict[str, int | None]
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


def kept_features(rows: int, limits: GramLimits) -> int:
    """Input features that "features" keeps: at least one.

    Args:
        rows: of the matrix form.
        limits: which share.

    Returns:
        How many.
    """
    return -(-rows // limits.feature_share)


def kept_channels(extent: Extent, kind: MetricKind, limits: GramLimits) -> int:
    """Input channels of a tap that "sketch" keeps.

    Args:
        extent: static sizes of a convolution.
        kind: of its metric.
        limits: which share, and from how many channels on.

    Returns:
        How many; all where there are few, or where the metric or channel groups mix them with others.
    """
    few = extent.channels < limits.thin_from or not kind.rowwise or extent.groups > 1
    return extent.channels if few else -(-extent.channels // limits.feature_share)


def pairs_are_cheaper(extent: Extent, kind: MetricKind, group_size: int | None, limits: GramLimits = LIMITS) -> bool:
    """Whether one tap's inner products are cheaper from pairs of positions than from gradients per sample.

    Args:
        extent: static sizes of a convolution.
        kind: of its metric.
        group_size: samples per group; `None` is the whole batch.
        limits: which share of many channels is kept.

    Returns:
        Whether they are; `False` where a size is not static.
    """
    if extent.positions is None:
        return False
    costs = _of_one_tap(extent, kind, _samples(group_size), limits)
    return min(costs, key=costs.__getitem__) == "pairs"


def _known(cost: int | None) -> float:
    """A cost to compare: one that is not static is above all others."""
    return math.inf if cost is None else cost


def _samples(group_size: int | None) -> int:
    return USUAL_BATCH if group_size is None else min(group_size, USUAL_BATCH)


def _of_one_tap(extent: Extent, kind: MetricKind, b: int, limits: GramLimits) -> dict[str, int]:
    """Multiplications per sample of one tap's inner products, from gradients or from pairs of positions."""
    L = _checks.given("positions", extent.positions)
    m, d, e = extent.columns, kept_channels(extent, kind, limits), extent.width
    costs = {"gradients": m * L * d * e // extent.groups + m * m * b * d * e}
    if kind.sided and extent.groups == 1:
        costs["pairs"] = L * L * b * (d + m * m * e)
    return costs


def _approximate(extent: Extent, kind: MetricKind, b: int, limits: GramLimits) -> dict[str, int | None]:
    """The approximate forms that exist, and their multiplications per sample."""
    m, L, d, e = extent.columns, extent.positions, extent.rows, extent.width
    costs: dict[str, int | None] = {}
    if extent.taps and kind.tapwise:
        costs["sketch"] = None if L is None else min(_of_one_tap(extent, kind, b, limits).values())
    elif extent.vocabulary and kind.rowwise:
        costs["hashed"] = (m * (L or 0) + m * m * b * limits.buckets) * e
    elif extent.rows and extent.taps <= 1 and L is not None:
        if kind.diagonal and not extent.taps:
            costs["rank_one"] = L * L * b * (d + m * m * e)
        if L > 1 and (kind.whitened or (kind.rowwise and not extent.taps)):
            costs["features"] = (m * L + m * m * b) * kept_features(d, limits) * e
    return costs
