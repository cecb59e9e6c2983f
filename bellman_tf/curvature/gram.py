"""Gram matrices `G_ij = <q_i, M^{-1} q_j>` of a player: the only thing the sample-space recursion asks of it.

All forms of algorithm.md, Section 7, claims OURS-9, chosen by static shapes or by the `gram` option:

    factored     one position, Kronecker metric:  (x A^{-1} x') * (c B^{-1} c')     exact, cost B^2 (d + e)
    positions    the same over all pairs of positions, summed                        exact, cost B^2 L^2 (d + e)
    per_sample   per-sample gradients                                                exact, cost B L d e + B^2 d e
    sketch       some taps of a convolution, drawn anew every step                   unbiased
    reduced      pixels and cotangents pooled to few positions                       biased, cheapest

A sketch of s of T taps multiplies by T / s; it is positive semi-definite like the Gram matrix itself. Its error is
measured in `benchmarks/gram_error.py`.
"""

import tensorflow as tf

from bellman_tf.bellman.sample_space import to_groups
from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.capture import Capture, MatrixCapture, Tensors
from bellman_tf.curvature.convolution import Convolution
from bellman_tf.curvature.diagonal import DiagonalMetric, IdentityMetric
from bellman_tf.curvature.embedding import Lookup
from bellman_tf.curvature.kfac import EigenMetric
from bellman_tf.curvature.linear_map import LinearMap

FORMS = ("auto", "exact", "per_sample", "positions", "sketch", "reduced")

# "auto" sketches a convolution when its per-sample gradients would read more numbers per sample than this.
SKETCH_ABOVE = 2**18
# Taps drawn by a sketch.
SKETCHED_TAPS = 1
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
        return "lookup"
    if isinstance(capture, LinearMap) and capture.flat:
        return "factored" if metric.kronecker and requested != "per_sample" else "per_sample"
    if not isinstance(capture, MatrixCapture):
        return "per_sample"
    convolution = isinstance(capture, Convolution)
    sketchable = convolution and metric.tapwise and capture.groups == 1
    if requested in {"sketch", "reduced"}:
        return requested if sketchable else "per_sample"
    if requested == "auto" and sketchable and len(capture.taps.offsets) > 1:
        work = (capture.positions or SKETCH_ABOVE) * capture.layout.rows * capture.layout.width
        if work > SKETCH_ABOVE:
            return "sketch"
    pairs = metric.kronecker and capture.columns == 1 and capture.positions is not None
    pairs = pairs and (not convolution or capture.groups == 1)
    if requested == "positions":
        return "positions" if pairs else "per_sample"
    cheaper = (
        pairs
        and capture.positions * (capture.layout.rows + capture.layout.width)
        < capture.layout.rows * capture.layout.width
    )
    return "positions" if cheaper and requested != "per_sample" and capture.positions <= 64 else "per_sample"


def gram(
    capture: Capture, metric: Metric, group_size: int | None, form: str = "auto", seed: tf.Tensor | None = None
) -> tf.Tensor:
    """The Gram matrix of one player, group by group.

    Args:
        capture: the player's capture, m columns.
        metric: its metric, learning rate included.
        group_size: samples per group b; `None` is the whole batch.
        form: one of `FORMS`.
        seed: `[2]` int32, for "sketch".

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
        return _sketch(capture, metric, group_size, seed)
    if chosen == "reduced":
        return _reduced(capture, metric, group_size)
    if isinstance(capture, LinearMap) and capture.flat and group_size == 1 and capture.columns == 1:
        return _squares(capture, metric)
    if isinstance(metric, EigenMetric) and isinstance(capture, MatrixCapture):
        q = metric.rotate(capture.matrix_per_sample())
        return _pair([q], [metric.inverse * q], group_size)
    parts = capture.per_sample()
    return _pair(parts, metric.solve(parts), group_size)


def _grouped(tensor: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`[B, m, ...]` to `[G, b m, P]`, zero-padded."""
    lead = tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]
    columns = tensor.shape[1]
    width = 1
    for size in tensor.shape[2:]:
        width *= size
    if group_size is None:
        return tf.reshape(tensor, [1, lead * columns, width])
    rows = to_groups(tf.reshape(tensor, [lead, columns * width]), group_size)
    return tf.reshape(rows, [tf.shape(rows)[0], group_size * columns, width])


def _pair(parts: Tensors, solved: Tensors, group_size: int | None) -> tf.Tensor:
    """`sum over variables of Q (M^{-1} Q)'` inside groups."""
    total = []
    for q, s in zip(parts, solved, strict=True):
        if group_size == 1 and q.shape[1] == 1:
            axes = list(range(1, len(q.shape)))
            total.append(tf.reduce_sum(q * s, axis=axes)[:, None, None])
        else:
            total.append(tf.matmul(_grouped(q, group_size), _grouped(s, group_size), transpose_b=True))
    return tf.add_n(total)


def _stacked(cotangents: Tensors) -> tf.Tensor:
    """M tensors `[B, ...]` to `[B, m, ...]`."""
    return cotangents[0][:, None] if len(cotangents) == 1 else tf.stack(cotangents, axis=1)


def _factored(capture: LinearMap, metric: Metric, group_size: int | None) -> tf.Tensor:
    c = _stacked(capture.cotangents)
    solved_c = metric.scale * metric.cotangent_solve(c)
    m = capture.columns
    if isinstance(metric, IdentityMetric):
        x = solved_x = capture.inputs[:, None]
        bias = tf.ones([], x.dtype) if capture.bias else None
    else:
        x = capture.augmented()[:, None]
        solved_x, bias = metric.input_solve(x), None
    inputs = _pair([x], [solved_x], group_size)
    if bias is not None:
        inputs += bias
    if m > 1:
        inputs = tf.repeat(tf.repeat(inputs, m, axis=1), m, axis=2)
    return inputs * _pair([c], [solved_c], group_size)


def _squares(capture: LinearMap, metric: Metric) -> tf.Tensor:
    """The diagonal `q_i' M^{-1} q_i` for a metric that is diagonal in some basis, without per-sample gradients."""
    x, c = capture.augmented(), capture.cotangents[0]
    if isinstance(metric, EigenMetric):
        x, c, inverse = metric.rotate_input(x), metric.rotate_cotangent(c), metric.inverse
    elif isinstance(metric, DiagonalMetric):
        inverse = capture.layout.pack(metric.inverse)
    else:
        parts = capture.per_sample()
        return _pair(parts, metric.solve(parts), 1)
    return tf.reduce_sum(tf.matmul(tf.square(x), inverse) * tf.square(c), axis=1)[:, None, None]


def _positions(capture: MatrixCapture, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Sum over pairs of positions of input products times cotangent products."""
    c = capture.cotangents[0]
    if isinstance(capture, Convolution):
        x = capture.taps.patches()
        if capture.bias:
            x = tf.concat([x, tf.ones_like(x[..., :1])], axis=-1)
    else:
        x = capture.augmented()
    length = capture.positions
    inputs = _pair_positions(x, metric.input_solve(x), group_size)
    outputs = _pair_positions(c, metric.scale * metric.cotangent_solve(c), group_size)
    product = inputs * outputs  # [G, b L, b L]
    size = tf.shape(product)[1] // length
    return tf.reduce_sum(tf.reshape(product, [-1, size, length, size, length]), axis=[2, 4])


def _pair_positions(x: tf.Tensor, solved: tf.Tensor, group_size: int | None) -> tf.Tensor:
    length, width = x.shape[1], x.shape[2]
    rows = [tf.reshape(_grouped(part[:, None], group_size), [-1, 1, width]) for part in (x, solved)]
    if group_size is None:
        first, second = (tf.reshape(part, [1, -1, width]) for part in rows)
    else:
        first, second = (tf.reshape(part, [-1, group_size * length, width]) for part in rows)
    return tf.matmul(first, second, transpose_b=True)


def _bias_part(capture: Convolution, metric: Metric) -> tuple[Tensors, Tensors]:
    """The bias's per-sample gradients and their solve; a tapwise metric keeps the bias row apart from the kernel."""
    if not capture.bias:
        return [], []
    q = capture.bias_per_sample()
    return [q], [metric.solve_bias(q)]


def _sketch(capture: Convolution, metric: Metric, group_size: int | None, seed: tf.Tensor) -> tf.Tensor:
    """Unbiased: the kernel's part from `SKETCHED_TAPS` taps drawn without replacement, the bias's part exact."""
    sizes = capture.kernel_size
    total = len(capture.taps.offsets)
    order = tf.argsort(tf.random.stateless_uniform([total], seed))
    parts, solved = _bias_part(capture, metric)
    scale = total / SKETCHED_TAPS
    for k in range(SKETCHED_TAPS):
        offset, rest = [], order[k]
        for size in reversed(sizes):
            offset.insert(0, rest % size)
            rest = rest // size
        q = capture.tap_gradients(offset)
        parts.append(q)
        solved.append(scale * metric.solve_tap(q, order[k]))
    return _pair(parts, solved, group_size)


def _reduced(capture: Convolution, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Pixels averaged and cotangents summed over large windows; every tap then sees the same pixels."""
    pixels = capture.pixels
    shape = capture.output_sizes
    window_x = [max(1, -(-size // REDUCED_SIZE)) for size in pixels.shape[1:-1]]
    mean = tf.nn.pool(pixels, window_x, "AVG", strides=window_x, padding="SAME")
    parts, solved = _bias_part(capture, metric)
    columns = []
    for c in capture.cotangents:
        spread = tf.reshape(c, [tf.shape(c)[0], *shape, c.shape[-1]])
        window_c = [max(1, -(-size // REDUCED_SIZE)) for size in shape]
        pooled = tf.nn.pool(spread, window_c, "AVG", strides=window_c, padding="SAME")
        columns.append(pooled)
    count = tf.cast(tf.reduce_prod(shape), mean.dtype) / tf.cast(tf.reduce_prod(tf.shape(columns[0])[1:-1]), mean.dtype)
    mean = tf.reshape(mean, [tf.shape(mean)[0], -1, mean.shape[-1]])
    q = tf.stack(
        [tf.matmul(mean, tf.reshape(c, [tf.shape(c)[0], -1, c.shape[-1]]), transpose_a=True) for c in columns], axis=1
    )
    q *= count
    taps = len(capture.taps.offsets)
    parts.append(q)
    solved.append(tf.add_n([metric.solve_tap(q, k) for k in range(taps)]))
    return _pair(parts, solved, group_size)


def _lookup(capture: Lookup, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Pairs of positions that hold the same token: `sum_lm [token_il = token_jm] <c_il, M^{-1} c_jm>`."""
    c = _stacked(capture.cotangents)  # [B, m, L, e]
    tokens = capture.tokens
    if isinstance(metric, DiagonalMetric):
        solved = tf.gather(metric.inverse[0], tokens)[:, None] * c
    elif isinstance(metric, IdentityMetric):
        solved = metric.scale * c
    else:
        parts = capture.per_sample()
        return _pair(parts, metric.solve(parts), group_size)
    length, width, m = tf.shape(tokens)[1], c.shape[-1], capture.columns
    # Tokens are shifted by one so that the zero padding of a group matches nothing.
    marked = to_groups(tf.cast(tokens + 1, c.dtype), group_size)  # [G, b L]
    same = tf.cast(tf.equal(marked[:, :, None], marked[:, None, :]), c.dtype)
    groups = tf.shape(marked)[0]
    size = tf.shape(marked)[1] // length
    first, second = (
        tf.reshape(
            to_groups(tf.reshape(part, [tf.shape(part)[0], m * length * width]), group_size),
            [groups, size * m * length, width],
        )
        for part in (c, solved)
    )
    pairs = tf.reshape(tf.matmul(first, second, transpose_b=True), [groups, size, m, length, size, m, length])
    same = tf.reshape(same, [groups, size, 1, length, size, 1, length])
    return tf.reshape(tf.reduce_sum(pairs * same, axis=[3, 6]), [groups, size * m, size * m])
