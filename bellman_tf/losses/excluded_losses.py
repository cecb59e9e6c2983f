"""J without the losses of some outputs: what a player minimises that does not feel them.

J, as Keras computes it, is linear in the values v_o of its compiled losses, so without the losses o it is
J - sum_o <dJ/dv_o, v_o>. All of Keras's weights, masks and reductions are in the slopes. A derivative of that sum is
one `tape.gradient` of several targets, in which the two ways to v_o cancel to the last bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bellman_tf._checks import error
from bellman_tf.losses.observe import Observation, per_sample


class ExcludedLosses(NamedTuple):
    """Losses that are taken out of B J.

    Attributes:
        outputs: `id` of their outputs; all losses of an output are taken out.
        less: their values, and B dJ/d(values).
    """

    outputs: frozenset[int] = frozenset()
    less: tuple[tuple[tf.Tensor, tf.Tensor], ...] = ()


NOTHING = ExcludedLosses()


def exclude_losses(
    observed: Sequence[Observation], loss: tf.Tensor, scale: tf.Tensor, tape: tf.GradientTape
) -> ExcludedLosses:  # fmt: skip
    """Takes losses out of J.

    Args:
        observed: the losses.
        loss: J.
        scale: B.
        tape: persistent, has recorded J and watched the losses' values.

    Returns:
        What is taken out.
    """
    if not observed:
        return NOTHING
    values = [o.values for o in observed]
    slopes = tape.gradient(loss, values, output_gradients=tf.cast(scale, loss.dtype), unconnected_gradients="zero")
    return ExcludedLosses(frozenset(id(o.y_pred) for o in observed), tuple(zip(values, slopes, strict=True)))


def named_losses(model: keras.Model, y_pred: Any, observed: Sequence[Observation]) -> dict[str, list[Observation]]:
    """The compiled losses of a model by the names of their outputs.

    Args:
        model: whose outputs have the names of `output_names`, or of the keys of the dictionary that `call` returns.
        y_pred: what it returned.
        observed: the losses that J called.

    Returns:
        Losses by name, for every output that has one.

    Raises:
        ValueError: if outputs have no names of their own, or a loss is not one of one output with a value per sample.
    """
    leaves = dict(zip(_names(model, y_pred), keras.tree.flatten(y_pred), strict=True))
    found = {name: [o for o in observed if o.y_pred is leaf] for name, leaf in leaves.items()}
    for loss in [leaf for leaf in keras.tree.flatten(model.loss) if isinstance(leaf, keras.losses.Loss)]:
        if type(loss).__call__ is not keras.losses.Loss.__call__:
            raise error(
                "loss", "leave weights and reduction to Keras where players have losses of their own: only `call` is "
                "the loss's own", loss.name, "Define `call(y_true, y_pred)`, one value per sample.",
            )  # fmt: skip
    whole = [o.loss.name for o in observed if not per_sample(o)]
    if whole:
        raise error(
            "loss", "give one value per sample where players have losses of their own", whole,
            "Return `[B]` from the loss, and Keras takes the mean.",
        )  # fmt: skip
    if sum(map(len, found.values())) != len(observed):
        raise error(
            "outputs", "be tensors of their own, each with losses on it alone, where players have losses of their own",
            list(leaves), "Give every output its own layer, and every loss one output.",
        )  # fmt: skip
    return {name: losses for name, losses in found.items() if losses}


def _names(model: keras.Model, y_pred: Any) -> list[str]:
    """Names of the outputs, in the order of `keras.tree.flatten`."""
    paths = [path for path, _ in keras.tree.flatten_with_path(y_pred)] if keras.tree.is_nested(y_pred) else [()]
    if isinstance(y_pred, dict):
        names = ["/".join(map(str, path)) for path in paths]
    else:
        names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(paths) or len(set(names)) != len(names):
        raise error(
            "outputs", "have names of their own where players have losses of their own", names,
            "Name the output layers of a functional model, or return a dictionary from `call`.",
        )  # fmt: skip
    return names
