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
from collections.abc import Sequence

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.capture import Capture, MatrixCapture, Tensors
from bellman_tf.curvature.convolution import Convolution
from bellman_tf.curvature.coverage import Coverage
from bellman_tf.curvature.diagonal import DiagonalMetric, IdentityMetric
from bellman_tf.curvature.embedding import Lookup
from bellman_tf.curvature.kfac import EigenMetric
from bellman_tf.curvature.linear_map import LinearMap

FORMS = ("auto", "exact", "per_sample", "positions", "sketch", "reduced")

# "auto" sketches a convolution when its per-sample gradients would read more numbers per sample than this.
SKETCH_ABOVE = 2**18
# Taps drawn by a sketch.
SKETCHED_TAPS = 1
# Samples in a batch, where that is not known while tracing.
USUAL_BATCH = 32
# Positions per axis that "reduced" keeps at most.
REDUCED_SIZE = 4


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
        return "lookup" if _few_pairs(capture) else "per_sample"
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


def draw_taps(
    players: Sequence[tuple[Capture, Metric]], form: str, seed: Sequence[int | tf.Tensor]
) -> list[tf.Tensor | None]:
    """Draws the taps of all sketches of a step at once.

    Args:
        players: capture and metric of each player.
        form: the `gram` option.
        seed: two integers.

    Returns:
        For each player `SKETCHED_TAPS` different taps, int32; `None` where nothing is sketched.
    """
    totals = [
        len(capture.taps.offsets) if choose_form(capture, metric, form) == "sketch" else 0
        for capture, metric in players
    ]
    drawn: list[tf.Tensor | None] = [None] * len(totals)
    if any(totals):  # a row for each player; integers, because floats differ between TensorFlow and XLA
        shape = [len(totals), max(totals)]
        keys = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    for total in sorted({*totals} - {0}):
        places = [k for k, count in enumerate(totals) if count == total]
        order = tf.argsort(tf.gather(keys, places)[:, :total])[:, :SKETCHED_TAPS]
        for k, taps in zip(places, tf.unstack(order), strict=True):
            drawn[k] = taps
    return drawn


def gram(
    capture: Capture, metric: Metric, group_size: int | None, form: str = "auto", taps: tf.Tensor | None = None
) -> tf.Tensor:
    """The Gram matrix of one player, group by group.

    Args:
        capture: the player's capture, m columns.
        metric: its metric, learning rate included.
        group_size: samples per group b; `None` is the whole batch.
        form: one of `FORMS`.
        taps: what `draw_taps` drew for the player.

    Returns:
        `[G, b m, b m]`, zero where the last group is padded.
    """
    chosen = choose_form(capture, metric, form)
    if chosen == "factored":
        return _factored(capture, metric, group_size)
    if chosen == "lookup":
        return _lookup(capture, metric, group_size)
    if chosen == "positions":
        return _positions(capture, metric, group_size)
    if chosen == "sketch":
        return _sketch(capture, metric, group_size, taps)
    if chosen == "reduced":
        return _reduced(capture, metric, group_size)
    if isinstance(capture, LinearMap) and capture.flat and group_size == 1 and capture.columns == 1:
        return _squares(capture, metric)
    if isinstance(metric, EigenMetric) and isinstance(capture, MatrixCapture):
        q = metric.rotate(capture.matrix_per_sample())
        return inner_products([q], [metric.inverse * q], group_size)
    parts = capture.per_sample()
    return inner_products(parts, metric.solve(parts), group_size)


def _few_pairs(capture: Lookup) -> bool:
    """Whether the pairs of all positions of a batch are fewer than the entries of its per-sample tables."""
    size = capture.batch_size if isinstance(capture.batch_size, int) else USUAL_BATCH
    length = capture.positions if capture.positions is not None else 1
    return size * length * length * capture.columns <= capture.vocabulary * capture.cotangents[0].shape[-1]


def _split(tensor: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`[B, ...]` to `[G, b, ...]`, zero-padded."""
    if group_size is None:
        return tensor[None]
    sizes = [tf.shape(tensor)[k] if size is None else size for k, size in enumerate(tensor.shape)]
    groups = -(-sizes[0] // group_size)
    if group_size > 1:
        tensor = tf.pad(tensor, [[0, groups * group_size - sizes[0]], *[[0, 0]] * (len(sizes) - 1)])
    return tf.reshape(tensor, [groups, group_size, *sizes[1:]])


def _grouped(tensor: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`[B, m, ...]` to `[G, b m, P]`, zero-padded."""
    split = _split(tensor, group_size)
    sizes = [tf.shape(split)[k] if size is None else size for k, size in enumerate(split.shape)]
    return tf.reshape(split, [sizes[0], sizes[1] * sizes[2], math.prod(sizes[3:])])


def inner_products(parts: Tensors, solved: Tensors, group_size: int | None) -> tf.Tensor:
    """`sum over variables of Q (M^{-1} Q)'` inside groups."""
    total = []
    for q, s in zip(parts, solved, strict=True):
        if group_size == 1 and q.shape[1] == 1:
            axes = list(range(1, len(q.shape)))
            total.append(tf.reduce_sum(q * s, axis=axes)[:, None, None])
        elif group_size is None:  # a plain product: the batched one costs more than a small matrix
            total.append(tf.matmul(_rows(q), _rows(s), transpose_b=True)[None])
        else:
            total.append(tf.matmul(_grouped(q, group_size), _grouped(s, group_size), transpose_b=True))
    return total[0] if len(total) == 1 else tf.add_n(total)


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """`[B, m, ...]` to `[B m, P]`."""
    return tf.reshape(tensor, [-1, math.prod(tensor.shape[2:])])


def stacked(cotangents: Tensors) -> tf.Tensor:
    """M tensors `[B, ...]` to `[B, m, ...]`."""
    return cotangents[0][:, None] if len(cotangents) == 1 else tf.stack(cotangents, axis=1)


def _factored(capture: LinearMap, metric: Metric, group_size: int | None) -> tf.Tensor:
    m = capture.columns
    if isinstance(metric, IdentityMetric):
        x = solved_x = capture.inputs
        bias = 1.0 if capture.bias else 0.0  # the constant feature, added rather than carried
    else:
        x, bias = capture.augmented(), 0.0
        solved_x = metric.input_solve(x)
    if m == 1:
        c = capture.cotangents[0]
        solved_c = metric.cotangent_solve(c)
        if group_size is None:
            inputs = tf.matmul(x, solved_x, transpose_b=True)
            outputs = metric.scale * tf.matmul(c, solved_c, transpose_b=True)
            return tf.expand_dims((inputs + bias if bias else inputs) * outputs, 0)
        if group_size == 1:
            inputs = tf.reduce_sum(x * solved_x, axis=1, keepdims=True)
            outputs = metric.scale * tf.reduce_sum(c * solved_c, axis=1, keepdims=True)
            return tf.expand_dims((inputs + bias if bias else inputs) * outputs, 2)
    inputs = inner_products([x[:, None]], [solved_x[:, None]], group_size) + bias
    if m > 1:
        inputs = tf.repeat(tf.repeat(inputs, m, axis=1), m, axis=2)
    c = stacked(capture.cotangents)
    return inputs * inner_products([c], [metric.scale * metric.cotangent_solve(c)], group_size)


def _squares(capture: LinearMap, metric: Metric) -> tf.Tensor:
    """The diagonal `q_i' M^{-1} q_i` for a metric that is diagonal in some basis, without per-sample gradients."""
    x, c = capture.augmented(), capture.cotangents[0]
    if isinstance(metric, EigenMetric):
        x, c, inverse = metric.rotate_input(x), metric.rotate_cotangent(c), metric.inverse
    elif isinstance(metric, DiagonalMetric):
        inverse = capture.layout.pack(metric.inverse)
    else:
        parts = capture.per_sample()
        return inner_products(parts, metric.solve(parts), 1)
    return tf.reduce_sum(tf.matmul(tf.square(x), inverse) * tf.square(c), axis=1)[:, None, None]


def _positions(capture: MatrixCapture, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Sum over pairs of positions of input products times cotangent products."""
    x = capture.augmented()
    first, second = (_grouped(part, group_size) for part in (x, metric.input_solve(x)))
    c = stacked(capture.cotangents)
    return _sum_pairs(
        tf.matmul(first, second, transpose_b=True), c, metric.scale * metric.cotangent_solve(c), group_size
    )


def _sum_pairs(inputs: tf.Tensor, c: tf.Tensor, solved: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`sum_lk inputs[il, jk] <c_il, solved_jk>` over positions l of a sample and k of another.

    Args:
        inputs: `[G, b L, b L]`.
        c: `[B, m, L, e]`.
        solved: `[B, m, L, e]`, another tensor like it.
        group_size: samples per group.

    Returns:
        `[G, b m, b m]`.
    """
    m, length = c.shape[1], tf.shape(c)[2] if c.shape[2] is None else c.shape[2]
    first, second = (_split(part, group_size) for part in (c, solved))  # [G, b, m, L, e]
    groups, size = tf.shape(first)[0], tf.shape(first)[1]
    first, second = (tf.reshape(part, [groups, size * m * length, c.shape[-1]]) for part in (first, second))
    pairs = tf.matmul(first, second, transpose_b=True)
    pairs = tf.reshape(pairs, [groups, size, m, length, size, m, length])
    pairs *= tf.reshape(inputs, [groups, size, 1, length, size, 1, length])
    return tf.reshape(tf.reduce_sum(pairs, axis=[3, 6]), [groups, size * m, size * m])


def _bias_part(capture: Convolution, metric: Metric) -> tuple[Tensors, Tensors]:
    """The bias's per-sample gradients and their solve; a tapwise metric keeps the bias row apart from the kernel."""
    if not capture.bias:
        return [], []
    q = capture.bias_per_sample()
    return [q], [metric.solve_bias(q)]


def _sketch(capture: Convolution, metric: Metric, group_size: int | None, taps: tf.Tensor) -> tf.Tensor:
    """Unbiased: the kernel's part from some taps drawn without replacement, the bias's part exact."""
    parts, solved = _bias_part(capture, metric)
    for tap in tf.unstack(taps):
        q, s = metric.tap_pair(capture, tap)
        parts.append(q)
        solved.append(len(capture.taps.offsets) / taps.shape[0] * s)
    return inner_products(parts, solved, group_size)


def _reduced(capture: Convolution, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Pixels averaged and cotangents summed over the same few cells; every tap then sees the same pixels.

    Exact for inputs that are constant in space, as far as no tap leaves the image.

    Args:
        capture: the player's capture.
        metric: a metric that does not mix taps.
        group_size: samples per group.

    Returns:
        `[G, b m, b m]`.
    """
    pixels, sizes = capture.pixels, capture.output_sizes
    cells = [min(REDUCED_SIZE, into, out) for into, out in zip(pixels.shape[1:-1], sizes, strict=True)]
    mean = _pool(pixels, cells, average=True)
    q = tf.stack(
        [
            tf.matmul(mean, _pool(tf.reshape(c, [-1, *sizes, c.shape[-1]]), cells, average=False), transpose_a=True)
            for c in capture.cotangents
        ],
        axis=1,
    )
    parts, solved = _bias_part(capture, metric)
    parts.append(q)
    solved.append(tf.add_n([metric.solve_tap(q, tap) for tap in range(len(capture.taps.offsets))]))
    return inner_products(parts, solved, group_size)


def _pool(tensor: tf.Tensor, cells: list[int], *, average: bool) -> tf.Tensor:
    """Sums or averages of `[B, *spatial, c]` over a grid of nearly equal cells, `[B, product of cells, c]`."""
    for axis, count in enumerate(cells):
        size = tensor.shape[axis + 1]
        member = [[float(k * count // size == cell) for k in range(size)] for cell in range(count)]
        weights = [[entry / sum(row) if average else entry for entry in row] for row in member]
        moved = tf.tensordot(tensor, tf.constant(weights, tensor.dtype), [[axis + 1], [1]])
        order = list(range(len(moved.shape) - 1))
        tensor = tf.transpose(moved, [*order[: axis + 1], len(order), *order[axis + 1 :]])
    return tf.reshape(tensor, [-1, math.prod(cells), tensor.shape[-1]])


def _lookup(capture: Lookup, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Pairs of positions that hold the same token: `sum_lk [token_il = token_jk] <c_il, M^{-1} c_jk>`."""
    c = stacked(capture.cotangents)  # [B, m, L, e]
    if isinstance(metric, DiagonalMetric):
        solved = tf.gather(metric.inverse[0], capture.tokens)[:, None] * c
    elif isinstance(metric, IdentityMetric):
        solved = metric.scale * c
    else:
        parts = capture.per_sample()
        return inner_products(parts, metric.solve(parts), group_size)
    # What pads a group matches token 0, but its cotangents are zero.
    tokens = _split(capture.tokens, group_size)
    tokens = tf.reshape(tokens, [tf.shape(tokens)[0], -1])  # [G, b L]
    same = tf.cast(tf.equal(tokens[:, :, None], tokens[:, None, :]), c.dtype)
    return _sum_pairs(same, c, solved, group_size)
