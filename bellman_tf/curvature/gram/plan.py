"""Gram matrices `G_ij = <q_i, M^{-1} q_j>` of a player: the only thing the sample-space recursion asks of it.

All forms of algorithm.md, Section 7, claims OURS-9, chosen by static shapes or by the `gram` option:

    factored     one position, Kronecker metric:  (x A^{-1} x') * (c B^{-1} c')     exact, cost B^2 (d + e)
    positions    the same over all pairs of positions, summed                        exact, cost B^2 L^2 (d + e)
    per_sample   per-sample gradients                                                exact, cost B L d e + B^2 d e
    lookup       an embedding's pairs of positions that hold the same token          exact, cost B^2 L^2 e
    sketch       some taps of a convolution, drawn anew every step                   unbiased
    reduced      pixels and cotangents pooled to few positions                       biased, cheapest

A sketch of s of T taps multiplies by T / s; it is positive semi-definite like the Gram matrix itself. Its error is
measured in `benchmarks/gram_error.py`.
"""

import math

from bellman_tf.curvature.block import Metric
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.convolution import Convolution
from bellman_tf.layers.dense import LinearMap
from bellman_tf.layers.embedding import Lookup
from bellman_tf.layers.registry import Coverage

FORMS = ("auto", "exact", "per_sample", "positions", "sketch", "reduced")
# "auto" sketches a convolution when its per-sample gradients would read more numbers per sample than this.
SKETCH_ABOVE = 2**18
# Taps drawn by a sketch.
SKETCHED_TAPS = 1
# Samples in a batch, where that is not known while tracing.
USUAL_BATCH = 32


def choose_form(capture: Capture, metric: Metric, requested: str) -> str:
    """The Gram form used for a player, from static shapes alone.

    Args:
        capture: the player's capture.
        metric: its metric.
        requested: the `gram` option. A form that does not exist for this layer gives the cheapest exact one.

    Returns:
        "factored", "positions", "per_sample", "lookup", "sketch" or "reduced".
    """
    if isinstance(capture, Lookup):
        return "lookup" if few_pairs(capture) else "per_sample"
    if isinstance(capture, LinearMap) and capture.flat:
        return "factored" if metric.kronecker and requested != "per_sample" else "per_sample"
    if not isinstance(capture, MatrixCapture):
        return "per_sample"
    convolution = isinstance(capture, Convolution)
    sketchable = convolution and metric.tapwise and capture.groups == 1 and capture.positions is not None
    if requested in {"sketch", "reduced"}:
        return requested if sketchable else "per_sample"
    if requested == "auto" and sketchable and len(capture.taps.offsets) > 1:
        work = capture.positions * capture.layout.rows * capture.layout.width
        if work > SKETCH_ABOVE:
            return "sketch"
    pairs = metric.kronecker and capture.positions is not None and (not convolution or capture.groups == 1)
    if requested == "positions":
        return "positions" if pairs else "per_sample"
    cheaper = (
        pairs
        and capture.columns == 1
        and capture.positions * (capture.layout.rows + capture.layout.width)
        < capture.layout.rows * capture.layout.width
    )
    return "positions" if cheaper and requested != "per_sample" and capture.positions <= 64 else "per_sample"


def static_plan(found: Coverage, output_shape: tuple, parameters: int) -> tuple[str, int | None]:
    """What "auto" will do with a player, for a metric that keeps taps apart and one column per sample.

    Args:
        found: the player's coverage.
        output_shape: of its layer, batch axis first.
        parameters: of the player.

    Returns:
        The form in words, and the multiplications per sample of its per-sample part (`None` if not static).
    """
    middle = output_shape[1:-1]
    if found.kind == "embedding":
        return "lookup", None
    if None in middle:
        return "per sample", None
    positions = math.prod(middle)
    work = positions * parameters
    if found.matrix is not None and not found.convolution and not middle:
        return "factored", found.matrix.all_rows + found.matrix.width
    if found.convolution and found.matrix is not None and found.taps > 1:
        work = positions * found.matrix.rows * found.matrix.width
        if work > SKETCH_ABOVE:
            return f"sketch, {SKETCHED_TAPS} of {found.taps} taps", work * SKETCHED_TAPS // found.taps
    return "per sample", work


def few_pairs(capture: Lookup) -> bool:
    """Whether the pairs of all positions of a batch are fewer than the entries of its per-sample tables."""
    size = capture.batch_size if isinstance(capture.batch_size, int) else USUAL_BATCH
    length = capture.positions if capture.positions is not None else 1
    return size * length * length * capture.columns <= capture.vocabulary * capture.cotangents[0].shape[-1]
