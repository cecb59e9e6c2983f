"""The terminal cost of the passes that replay the traced graph: `losses.terminal` for the outputs of a `Forward`.

Everything is scaled so that sample i has the cost phi_i = B J_i, B the samples of the whole (global) batch.
"""

import contextlib
from collections.abc import Generator

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.losses import (
    LossRecord,
    OutputEnd,
    TerminalCurvature,
    TerminalHessian,
    keras_computes_loss,
    record_loss,
    terminal_cost,
    terminal_curvature,
)
from bellman_tf.training.passes import Forward


class Terminal:
    """The outputs that carry a loss, and their Hessian.

    Attributes:
        z: the tensors the terminal Hessian is taken in: outputs, or logits before a last softmax or sigmoid.
        values: loss values whose derivatives `resolve` needs.
    """

    def __init__(self, record: LossRecord, loss: tf.Tensor, scale: tf.Tensor, model: keras.Model) -> None:
        """Matches losses with outputs.

        Args:
            record: of `record_terminal`.
            loss: J.
            scale: B.
            model: whose `compute_loss` made J.
        """
        self._cost = terminal_cost(record, loss, scale, keras_computes_loss(model))
        self._derivatives: Tensors = []
        self.z = self._cost.z
        self.values = self._cost.values

    def resolve(self, derivatives: Tensors) -> None:
        """Takes f = B dJ/d(loss values), in the order of `values`, which fixes the Hessians.

        Args:
            derivatives: one tensor per entry of `values`.
        """
        self._derivatives = derivatives

    def matched_coefficient(self, gradients: Tensors) -> tf.Tensor:
        """`beta_i^2 = g' H g / |g|^4`, `[R]`.

        Args:
            gradients: g, `[R, ...]` for each of `z`.

        Returns:
            The coefficients.
        """
        return _checks.given("beta_squared", self._curvature(gradients, "matched").beta_squared)

    def factor_columns(self, rank: int | None) -> list[Tensors]:
        """Columns of Z with Z Z' = H, each as cotangents of `z`.

        Args:
            rank: number of columns, `None` for all.

        Returns:
            r lists of tensors shaped like `z`.
        """
        return self._curvature([], "full" if rank is None else rank).columns or []

    def _curvature(self, gradients: Tensors, terminal_hessian: TerminalHessian) -> TerminalCurvature:
        return terminal_curvature(self._cost, gradients, self._derivatives, terminal_hessian)


@contextlib.contextmanager
def record_terminal(forward: Forward, tape: tf.GradientTape) -> Generator[LossRecord, None, None]:
    """Records how J comes from the outputs of a pass; open it around the computation of J.

    Args:
        forward: what pass 1 captured.
        tape: the tape that differentiates J.

    Yields:
        The record.
    """
    ends = [OutputEnd(y, *forward.ends.get(slot, (None, None))) for slot, y in forward.outputs.items()]
    with record_loss([end for end in ends if end.output.dtype.is_floating], tape) as record:
        yield record
