"""Finds, for variables without a Gram form, layers whose outputs lead to their gradient without one more backward pass.

Let o be the output of a layer that holds a variable u, and c the noted cotangents of o. If samples are the rows of o,
stay apart behind it, u acts through o alone, and no call of the layer reads what another call of it made, then

    the gradient of sum_i r_i phi_i in u  is  (do/du)' (r_i c_i)_i,    for any weights r:

the layer's own backward pass, at weighed cotangents, in place of one of everything behind the layer. As in `survey`,
the statement itself is checked on made-up samples, for the layer that holds the variable and for those around it.
"""

from collections.abc import Iterable, Sequence

import keras

from bellman_tf import keras_access
from bellman_tf.game.trial import Trial, TrialRun, agree


def enclosing_layers(
    trial: Trial, variables: Sequence[keras.Variable], draws: Iterable[int]
) -> dict[int, list[keras.Layer]]:
    """Layers for which the statement above holds.

    Args:
        trial: the model, its trainable variables replaced.
        variables: trainable variables of the model.
        draws: further states of the model's random generators to try.

    Returns:
        The layers by `id` of the variable, inner ones first; empty where there is none, or where the layers add
        something to the loss that the variable changes.
    """
    keys = [id(v) for v in variables]
    holders: dict[int, list[keras.Layer]] = {key: [] for key in keys}
    for layer in keras_access.layers_of(trial.model)[1:]:
        for v in layer.trainable_variables:
            if id(v) in holders:
                holders[id(v)].append(layer)
    found = _holding(trial, holders, 0)
    for draw in draws:
        again = _holding(trial, found, draw)
        found = {key: [layer for layer in layers if layer in again[key]] for key, layers in found.items()}
    return found


def _holding(trial: Trial, holders: dict[int, list[keras.Layer]], draw: int) -> dict[int, list[keras.Layer]]:
    """Those of `holders` for which the statement holds in one run."""
    layers = {id(layer): layer for some in holders.values() for layer in some}
    run = trial.run([], list(layers.values()), draw)
    found: dict[int, list[keras.Layer]] = {key: [] for key in holders}
    if run.reason:
        return found
    values = {key: trial.values[key] for key in holders}
    true, cotangents, added = run.gradients(values), run.cotangents(), run.added()
    for key in run.notes.calls:  # a layer inside another one returns first
        layer, parts = layers[key], [c for c in cotangents[key] if c is not None]
        holding = [k for k, some in holders.items() if layer in some and added.get(k) is None]
        inside = {k: g for k in holding if (g := true[k]) is not None}
        if not inside or not _has_rows(run, key) or len(parts) < len(cotangents[key]):
            continue
        sites = [note.site for note in run.notes.calls[key]]
        if run.chained(sites):
            continue
        own = run.behind(sites, run.weighed(parts), [values[k] for k in inside])
        for (k, whole), g in zip(inside.items(), own, strict=True):
            if g is not None and agree(layer, [whole], [g]):
                found[k].append(layer)
    return found


def _has_rows(run: TrialRun, key: int) -> bool:
    """Whether all outputs of a layer have one row per sample, samples apart behind them and noted where they are."""
    if key in run.apart.before or key in run.notes.hidden:
        return False
    shapes = [note.site.shape for note in run.notes.calls[key]]
    return all(shape.rank and shape[0] == len(run.weights) for shape in shapes)
