"""Where an output of a model comes from: the logits before a last softmax or sigmoid.

Keras's cross-entropies do not read probabilities: they follow an output back to its logits, by the attribute
`_keras_logits` that Keras's softmax and sigmoid leave on their result, or, while a graph is traced, by the operation
that made the output. The derivative of such a loss in the output is then zero; in the logits it is not.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._checks import error

ACTIVATIONS_KEEPING_LOGITS = ("softmax", "sigmoid")
_OPERATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


@dataclass(frozen=True, eq=False)
class OutputEnd:
    """One output of a model.

    Attributes:
        output: `[B, ...]`, the object that reaches the loss.
        logits: the tensor before the last activation, shaped like `output`, or None.
        activation: "softmax" (over the last axis) or "sigmoid"; None if there is none or its name is not known.
    """

    output: tf.Tensor
    logits: tf.Tensor | None = None
    activation: str | None = None

    def coordinate(self, before: bool) -> tf.Tensor:
        """Chooses the tensor that the loss is differentiated in.

        Args:
            before: whether that is the logits.

        Returns:
            The logits or the output.

        Raises:
            ValueError: if logits are asked of an output that has none.
        """
        if not before:
            return self.output
        if self.logits is None:
            raise error("before", "be False for an output without logits", before)
        return self.logits


def carried_logits(output: tf.Tensor) -> tf.Tensor | None:
    """Logits that a Keras loss could follow `output` back to.

    Args:
        output: a tensor.

    Returns:
        The logits, or None.
    """
    logits = keras_access.logits_of(output)
    if logits is None and _operation(output) in _OPERATIONS:
        return output.op.inputs[0]
    return logits


def looks_through(y_pred: tf.Tensor, operation: str) -> bool:
    """Whether one of Keras's cross-entropies replaces `y_pred` by its logits.

    Args:
        y_pred: the tensor that reaches the loss function. A cast (mixed precision) has made a new tensor of it.
        operation: the operation that the function looks for: "Softmax" or "Sigmoid".

    Returns:
        Whether it does. The attribute is followed whatever activation has left it: a categorical cross-entropy on a
        Keras sigmoid is the cross-entropy of the *softmax* of its logits.

    Source: Keras 3.15, `keras/src/backend/tensorflow/nn.py`, `_get_logits`.
    """
    return keras_access.logits_of(y_pred) is not None or _operation(y_pred) == operation


def find_end(output: tf.Tensor) -> OutputEnd:
    """Finds the logits and the last activation of an output.

    Args:
        output: a model's output, as the model returned it.

    Returns:
        The end. Run eagerly, Keras leaves the logits but not the activation's name; then the values decide, and where
        both activations (or neither) give `output` the name stays None.
    """
    logits = carried_logits(output)
    if logits is None:
        return OutputEnd(output)
    operation = _operation(output)
    name = None if operation is None else _OPERATIONS.get(operation)
    if name is None and isinstance(output, tf.__internal__.EagerTensor):
        name = _name_by_values(output, logits)
    return OutputEnd(output, logits, name)


def _operation(tensor: tf.Tensor) -> str | None:
    """Type of the graph operation that made a tensor, None for an eager one."""
    if isinstance(tensor, tf.__internal__.EagerTensor | tf.Variable) or not hasattr(tensor, "op"):
        return None
    return tensor.op.type


def _name_by_values(output: tf.Tensor, logits: tf.Tensor) -> str | None:
    fits = [
        name
        for name, function in (("softmax", tf.nn.softmax), ("sigmoid", tf.nn.sigmoid))
        if np.array_equal(function(logits).numpy(), output.numpy(), equal_nan=True)
    ]
    return fits[0] if len(fits) == 1 else None
