"""The feedback policy of a layer as singular values and images.

The gain of a layer on the stacked state of the batch is never formed. With the columns q of the layer's gradients, c of
the state's, and the value's core S = L L' before the stage,

    K = -(M^{-1} Q) S C',    Q = [q_1 ...],  C = blockdiag(c_1, ...)

so with thin factors M^{-1} Q = Q_u R_u and C = Q_c R_c its singular values are those of the small matrix R_u S R_c'.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import _checks, keras_access
from bellman_tf._typing import Array
from bellman_tf.analysis.eager_step import eager_step, player_of, program_of
from bellman_tf.game.graph import Slot


class _Gain(NamedTuple):
    """K in factored form; `columns` are those of all samples, `[B, m, ...]`."""

    left: np.ndarray  # M^{-1} Q, [P, B m]
    core: np.ndarray  # S before the stage, [B m, B m]
    slots: list[Slot]  # of the state at the cut
    columns: list[np.ndarray]  # for each slot, c, [B, m, size]


def feedback_spectrum(model: keras.Model, x: Array, layer: keras.Layer | str, y: Array | None = None) -> np.ndarray:
    """Singular values of a layer's feedback gain on the stacked state of a batch.

    Args:
        model: a model of this package, compiled with an optimizer of this package.
        x: inputs of the batch.
        layer: a player behind the first stage: the layer or its name.
        y: labels; needed only for losses whose Hessian depends on them.

    Returns:
        The singular values, not increasing; as many as the batch has columns, min(B r, P) of which can be nonzero.

    Raises:
        ValueError: if the layer is no player with a Gram form, acts in the first stage, or the model is not compiled
            with an optimizer of this package.

    Source: DDP1 Fig. 3, with the exact Gauss-Newton Hessian of the loss.

    Example:
        >>> hidden, last = keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)
        >>> model = btf.Sequential([keras.Input((2,)), hidden, last])
        >>> model.compile(optimizer=btf.GTDDP(0.1, curvature="identity"), loss="mse")
        >>> btf.analysis.feedback_spectrum(model, np.eye(2, dtype="float32"), last).shape
        (4,)
    """
    gain = _gain(model, x, layer, y)
    R_u = np.linalg.qr(gain.left, mode="r")
    stacked = np.concatenate(gain.columns, axis=2)  # [B, m, n]
    B, m, _ = stacked.shape
    factors = [np.asarray(np.linalg.qr(columns.T, mode="r")) for columns in stacked]  # [min(n, m), m] each
    core = gain.core.reshape(-1, B, m)
    right = np.concatenate([core[:, i] @ factor.T for i, factor in enumerate(factors)], axis=1)
    return np.linalg.svd(R_u @ right, compute_uv=False)


def feedback_maps(
    model: keras.Model,
    x: Array,
    layer: keras.Layer | str,
    y: Array | None = None,
    *,
    count: int = 4,
    project: bool = False,
) -> np.ndarray:
    """The state deviations that change a layer's control most, as images.

    If every sample's state deviates by the same dx the layer answers `K (1 (x) dx)`; the maps are the leading right
    singular vectors of that map.

    Args:
        model: a model of this package, compiled with an optimizer of this package.
        x: inputs of the batch.
        layer: a player behind the first stage: the layer or its name.
        y: labels; needed only for losses whose Hessian depends on them.
        count: how many.
        project: pull the maps back to the input by the network's Jacobian, mean over the batch.

    Returns:
        `[count, ...]` in the shape of the layer's input, or of `x` with `project`; unit norm, signs free.

    Raises:
        ValueError: as `feedback_spectrum`; if the layer's input does not cross its cut.

    Source: GT-DDP Fig. 6c, DDPNOpt Fig. 5.

    Example:
        >>> hidden, last = keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)
        >>> model = btf.Sequential([keras.Input((2,)), hidden, last])
        >>> model.compile(optimizer=btf.GTDDP(0.1, curvature="identity"), loss="mse")
        >>> btf.analysis.feedback_maps(model, np.eye(2, dtype="float32"), last, count=1, project=True).shape
        (1, 2)
    """
    _checks.check_integer("count", count, least=1)
    gain, player = _gain(model, x, layer, y), player_of(model, layer)
    [slot] = player.calls[0].inputs
    if slot not in gain.slots:
        rule = "read a tensor that crosses the cut before its stage: its input is made from it without a copy"
        raise _checks.error("layer", rule, player.name, "Choose the layer behind it.")
    columns = gain.columns[gain.slots.index(slot)].reshape(gain.core.shape[0], -1)  # [B m, n]
    R_u = np.linalg.qr(gain.left, mode="r")
    _, _, directions = np.linalg.svd(R_u @ gain.core @ columns, full_matrices=False)
    maps = directions[:count].reshape(-1, *_state(model, x, slot).shape[1:])
    return _pull_back(model, x, slot, maps) if project else maps


def _gain(model: keras.Model, x: Array, layer: keras.Layer | str, y: Array | None) -> _Gain:
    """One step without its second pass, eagerly; nothing is assigned."""
    with eager_step(model, x, y) as step:
        player = player_of(model, layer)
        values = step.stage_values()
    batch = step.batch
    capture = _checks.given("capture", step.derivatives.captures[player.index])
    metric = _checks.given("metric", batch.metrics[player.index])
    q = [tf.cast(part, batch.dtype) for part in capture.per_sample()]
    solved = [part.numpy().reshape(*part.shape[:2], -1) for part in metric.solve(q)]
    left = np.concatenate(solved, axis=2)
    L = values[player.place].L.numpy()
    gradients = step.derivatives.at_cuts[player.place]
    columns = [np.stack([g.numpy().reshape(len(g), -1) for g in parts], axis=1) for parts in gradients.values()]
    return _Gain(left.reshape(-1, left.shape[2]).T, L @ L.T, list(gradients), columns)


def _state(model: keras.Model, x: Array, slot: Slot) -> tf.Tensor:
    """The value of a slot of the graph, in inference mode."""
    graph = program_of(model).traced
    values = dict(zip(graph.inputs, keras.tree.flatten(x), strict=True))
    for call in graph.calls:
        if slot in values:
            break
        args, kwargs = keras_access.mapped(
            lambda leaf: values.get(leaf, leaf) if isinstance(leaf, Slot) else leaf, (call.args, call.kwargs)
        )
        if "training" in kwargs:
            kwargs["training"] = False
        values.update(zip(call.outputs, keras.tree.flatten(call.operation(*args, **kwargs)), strict=True))
    return values[slot]


def _pull_back(model: keras.Model, x: Array, slot: Slot, maps: np.ndarray) -> np.ndarray:
    images = []
    inputs = tf.convert_to_tensor(x)
    for direction in maps:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            state = _state(model, inputs, slot)
            along = tf.reduce_sum(state * tf.cast(direction, state.dtype))
        image = tf.reduce_mean(tape.gradient(along, inputs), axis=0).numpy()
        images.append(image / (np.linalg.norm(image) or 1.0))
    return np.stack(images)
