"""Outputs and losses of a model as it runs, brought to the form that `Terminal` reads."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf.keras_access import logits_of
from bellman_tf.training.terminal import Terminal


class Ends(NamedTuple):
    """Outputs that may carry a loss, by number.

    Attributes:
        outputs: the model's floating-point outputs.
        ends: (tensor before it, name) of the softmax or sigmoid that an output ends in.
    """

    outputs: dict[int, tf.Tensor]
    ends: dict[int, tuple[tf.Tensor, str]]


class NativeTerminal(Terminal):
    """The terminal cost of a native step.

    Attributes:
        rows: R, the number of samples of the loss, or `None` if its outputs disagree about it.
    """

    def __init__(self, y_pred: object, observed: list, cost: Callable) -> None:
        """Sorts the outputs.

        Args:
            y_pred: the model's outputs.
            observed: what `observe_losses` recorded.
            cost: function from the outputs to B J.
        """
        leaves = keras.tree.flatten(y_pred)
        outputs = {k: leaf for k, leaf in enumerate(leaves) if tf.is_tensor(leaf) and leaf.dtype.is_floating}
        ends = {k: (logits_of(leaf), _activation(leaf)) for k, leaf in outputs.items() if logits_of(leaf) is not None}

        def of_values(values: dict) -> tf.Tensor:
            return cost(keras.tree.pack_sequence_as(y_pred, [values.get(k, leaf) for k, leaf in enumerate(leaves)]))

        super().__init__(Ends(outputs, ends), observed, of_values)
        sizes = {z.shape[0] if z.shape.rank else 0 for z in self.z}
        alone = len(sizes) == 1 and sizes != {0}
        self.rows = (sizes.pop() or tf.shape(self.z[0])[0]) if alone else None

    def beta_squared(self, gradients: list, kind: str, dtype: tf.DType) -> tf.Tensor:
        """Curvature of a terminal Hessian along the gradient.

        Args:
            gradients: of phi_i at every `z`.
            kind: "matched" or "outer_product".
            dtype: of the result.

        Returns:
            `[R]`.
        """
        if kind == "matched":
            return tf.cast(self.matched_coefficient(gradients), dtype)
        return tf.ones([self.rows], dtype)


def _activation(output: tf.Tensor) -> str:
    """Whether an output is the softmax or the sigmoid of its logits."""
    if not isinstance(output, tf.__internal__.EagerTensor):
        return {"Sigmoid": "sigmoid"}.get(output.op.type, "softmax")
    gap = tf.abs(tf.sigmoid(logits_of(output)) - output)
    return "sigmoid" if bool(tf.reduce_all(gap <= 1e-3)) else "softmax"
