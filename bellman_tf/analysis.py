"""Looking into a game: the feedback policy of a layer as singular values and images, information structures compared.

The gain of a layer on the stacked state of the batch is never formed. With the columns q of the layer's gradients, c of
the state's, and the value's core S = L L' before the stage,

    K = -(M^{-1} Q) S C',    Q = [q_1 ...],  C = blockdiag(c_1, ...)

so with thin factors M^{-1} Q = Q_u R_u and C = Q_c R_c its singular values are those of the small matrix R_u S R_c'.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.config import KFAC
from bellman_tf.curvature.inner import InnerBlock
from bellman_tf.game.players import Player, Program
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.training.context import StepContext
from bellman_tf.training.game_step import GameStep
from bellman_tf.training.round import Round
from bellman_tf.training.settings import GameOptions, StepSettings


class _Gain(NamedTuple):
    """K in factored form; `columns` are those of all samples, `[B, m, ...]`."""

    left: np.ndarray  # M^{-1} Q, [P, B m]
    core: np.ndarray  # S before the stage, [B m, B m]
    slots: list  # of the state at the cut
    columns: list[np.ndarray]  # for each slot, c, [B, m, size]


def feedback_spectrum(model: keras.Model, x: object, layer: object, y: object = None) -> np.ndarray:
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
    """
    gain = _gain(model, x, layer, y)
    R_u = np.linalg.qr(gain.left, mode="r")
    stacked = np.concatenate(gain.columns, axis=2)  # [B, m, n]
    B, m, _ = stacked.shape
    factors = [np.linalg.qr(columns.T, mode="r") for columns in stacked]  # [min(n, m), m] each
    core = gain.core.reshape(-1, B, m)
    right = np.concatenate([core[:, i] @ factor.T for i, factor in enumerate(factors)], axis=1)
    return np.linalg.svd(R_u @ right, compute_uv=False)


def feedback_maps(
    model: keras.Model, x: object, layer: object, y: object = None, *, count: int = 4, project: bool = False
) -> np.ndarray:
    """The state deviations that a layer's policy answers most, as images.

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
    """
    _checks.check_integer("count", count, least=1)
    gain, player = _gain(model, x, layer, y), _player(model, layer)
    [slot] = player.calls[0].inputs
    if slot not in gain.slots:
        rule = "read a tensor that crosses the cut before its stage: its input is made from it without a copy"
        raise _checks.error("layer", rule, player.name, "Choose the layer behind it.")
    columns = gain.columns[gain.slots.index(slot)].reshape(gain.core.shape[0], -1)  # [B m, n]
    R_u = np.linalg.qr(gain.left, mode="r")
    _, _, directions = np.linalg.svd(R_u @ gain.core @ columns, full_matrices=False)
    maps = directions[:count].reshape(-1, *_state(model, x, slot).shape[1:])
    return _pull_back(model, x, slot, maps) if project else maps


def _program(model: keras.Model) -> Program:
    """The game whose cuts and states are known call by call."""
    game = model.game
    return game if isinstance(game, Program) else game.program


def _player(model: keras.Model, layer: object) -> Player:
    name = layer if isinstance(layer, str) else layer.name
    players = _program(model).players
    found = [player for player in players if player.name == name and player.stage is not None]
    if not found or not found[0].covered:
        known = [player.name for player in players if player.covered]
        raise _checks.error("layer", f"be a player with a Gram form, one of {known}", name)
    if found[0].stage == 0:
        rule = "act behind the first stage: before it the state is the data, which does not deviate"
        raise _checks.error("layer", rule, name)
    return found[0]


def _gain(model: keras.Model, x: object, layer: object, y: object) -> _Gain:
    """One step without its second pass, eagerly; nothing is assigned."""
    optimizer = getattr(model, "optimizer", None)
    if not hasattr(optimizer, "options"):
        raise _checks.error("model", "be compiled with an optimizer of this package", model.name)
    player = _player(model, layer)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    outputs = model(x, training=False)
    labels = _labels(model, outputs) if y is None else y
    kept = [(v, v.numpy()) for v in model.non_trainable_variables] + [(v, v.numpy()) for v in model.seed_variables()]
    game = _program(model)
    batch = Round(model, game, *_seen(optimizer, game), (tf.convert_to_tensor(x), tf.convert_to_tensor(labels)))
    step = GameStep(batch)
    values = step.stage_values()
    for variable, value in kept:
        variable.assign(value)
    capture, metric = step.derivatives.captures[player.index], batch.metrics[player.index]
    q = [tf.cast(part, batch.dtype) for part in capture.per_sample()]
    solved = [part.numpy().reshape(*part.shape[:2], -1) for part in metric.solve(q)]
    left = np.concatenate(solved, axis=2)
    L = values[player.stage].L.numpy()
    gradients = step.derivatives.at_cuts[player.stage]
    columns = [np.stack([g.numpy().reshape(len(g), -1) for g in parts], axis=1) for parts in gradients.values()]
    return _Gain(left.reshape(-1, left.shape[2]).T, L @ L.T, list(gradients), columns)


def _seen(optimizer: GTDDP, game: Program) -> tuple[StepSettings, StepContext]:
    """An optimizer's curvature, player by player of another game, under the options that the gain is defined for."""
    known = {frozenset(map(id, p.variables)): k for k, p in enumerate(optimizer.players)}
    blocks, state, context = [], [], optimizer.context()
    for player in game.players:
        place = known.get(frozenset(map(id, player.variables)))
        block = optimizer.make_block(player)
        blocks.append(block)
        fresh = [_initial(spec) for spec in block.state_specs()]
        fresh += block.read() if isinstance(block, InnerBlock) else []
        state.append(fresh if place is None else context.state[place])
    options = GameOptions("cooperative", "batch", "full", None, False, "exact", "nonlinear")
    return StepSettings(options, tuple(blocks)), context._replace(state=state, control=None)


def _initial(spec: StateSpec) -> tf.Tensor:
    return tf.eye(*spec.shape) if spec.initial == "identity" else tf.fill(spec.shape, float(spec.initial == "ones"))


def _labels(model: keras.Model, outputs: object) -> object:
    """Labels on which the Hessian of a usual loss does not depend."""
    name = str(getattr(model.loss, "name", model.loss))
    return tf.argmax(outputs, axis=-1) if "sparse" in name else tf.stop_gradient(outputs)


def _state(model: keras.Model, x: object, slot: object) -> tf.Tensor:
    """The value of a slot of the graph, in inference mode."""
    graph = _program(model).graph
    values = dict(zip(graph.inputs, keras.tree.flatten(x), strict=True))
    for call in graph.calls:
        if slot in values:
            break
        args, kwargs = keras.tree.map_structure(
            lambda leaf: values.get(leaf, leaf) if type(leaf) is type(slot) else leaf, (call.args, call.kwargs)
        )
        if "training" in kwargs:
            kwargs["training"] = False
        values.update(zip(call.outputs, keras.tree.flatten(call.operation(*args, **kwargs)), strict=True))
    return values[slot]


def _pull_back(model: keras.Model, x: object, slot: object, maps: np.ndarray) -> np.ndarray:
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


# Name: information, whether the metric has cross blocks between the players of a stage (DGN Sec. 3, Def. 8).
STRUCTURES = {
    "O": ("open", False),
    "C": ("feedback", False),
    "O-CG": ("open", True),
    "C-CG": ("cooperative", True),
}


class Ablation(NamedTuple):
    """Results under the four information structures.

    Attributes:
        losses: name of the structure to the final values, one per seed.
        metric: the logged quantity.
    """

    losses: dict[str, list[float]]
    metric: str

    def rows(self) -> list[tuple[str, float, float, float]]:
        """For each structure: its name, mean, standard deviation, and mean difference to "O" of the same seed."""
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
    loss: object,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "loss",
    cross_blocks: str = "exact",
    compile_options: dict | None = None,
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
