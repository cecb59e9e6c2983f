"""What a file of a closed form states: which Keras losses it is for, and the head that it makes."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from bellman_tf._typing import LossFunction
from bellman_tf.losses.ends import ACTIVATIONS_KEEPING_LOGITS, looks_through
from bellman_tf.losses.head import Head

AUTOMATIC = "automatic"


@dataclass(frozen=True)
class LossForm:
    """Form of one output's terminal cost, from the loss and the last activation alone.

    Attributes:
        kind: kind of a registered `ClosedForm`, or `"automatic"` when none applies.
        before_activation: where to cut. True: `z` is the input of the last activation; False: `z` is the output.
        options: the loss function's keyword arguments that the form reads.
    """

    kind: str
    before_activation: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class Prediction(NamedTuple):
    """An output on its way into a loss function.

    Attributes:
        activation: name of the last activation; None or `"linear"` for none.
        rank: number of axes, None if unknown.
        reached: the tensor that reached `Loss.call`; None if only names are known, and then a softmax or sigmoid is
            taken for Keras's own in the loss's dtype.
    """

    activation: str | None = None
    rank: int | None = None
    reached: tf.Tensor | None = None

    @property
    def keeps_logits(self) -> bool:
        """Whether the last activation is a softmax or sigmoid."""
        return self.activation in ACTIVATIONS_KEEPING_LOGITS

    def gives_logits(self, operation: str) -> bool:
        """Whether a cross-entropy that looks for `operation` takes the logits instead of the output."""
        return self.keeps_logits if self.reached is None else looks_through(self.reached, operation)


class ClosedForm(abc.ABC):
    """A terminal cost whose Hessian is written down.

    Attributes:
        kind: name of the form.
        functions: the Keras loss functions it may apply to.
    """

    kind: ClassVar[str]
    functions: ClassVar[tuple[LossFunction, ...]]

    def recognise(self, function: LossFunction, options: Mapping[str, Any], prediction: Prediction) -> LossForm | None:
        """Says whether the form applies; by default to every call of `functions`, as a function of the output.

        Args:
            function: one of `functions`.
            options: keyword arguments it is called with.
            prediction: the output.

        Returns:
            The form, or None.
        """
        return LossForm(self.kind)

    def fits(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor) -> bool:
        """Says whether the static shapes are the ones that the form is written for; by default they are.

        Args:
            form: what `recognise` returned.
            y_true: labels as they reach `Loss.call`.
            z: the output or its logits.

        Returns:
            False if the loss has to be differentiated instead.
        """
        return True

    @abc.abstractmethod
    def head(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor, f: tf.Tensor) -> Head:
        """Makes the Hessian.

        Args:
            form: what `recognise` returned.
            y_true: labels as they reach `Loss.call`.
            z: `[B, ..., C]`, float32 or float64.
            f: B dJ/d(loss values), in the dtype of `z`.

        Returns:
            The head.
        """


class CrossEntropyForm(ClosedForm):
    """A cross-entropy and the activation it inverts, as one function of the logits.

    Attributes:
        operation: the TensorFlow operation whose input Keras's function looks for.
    """

    operation: ClassVar[str]

    def cut(self, options: Mapping[str, Any], prediction: Prediction, sees_output: bool = True) -> bool | None:
        """Finds the place of the logits.

        Args:
            options: keyword arguments of the Keras function.
            prediction: the output.
            sees_output: whether the function gets to see the output itself, and so its logits.

        Returns:
            True: before the last activation, False: the output, None: the form does not apply. Logits that Keras finds
            by itself win over `from_logits`, and over the activation's name.
        """
        if sees_output and prediction.gives_logits(self.operation):
            return True
        if options.get("from_logits", False):
            return False
        return True if prediction.activation == self.kind else None
