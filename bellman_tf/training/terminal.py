"""The terminal cost of one step: gradients come from the tape, curvature from the losses.

Everything is scaled so that sample i has the cost phi_i = B J_i, B the samples of the whole (global) batch.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.layers.capture import Tensors, to_work
from bellman_tf.losses import (
    SumOfHeads,
    agree,
    curvature_along_gradient,
    hessian_factor,
    hessian_factor_by_ad,
    hessian_times_by_ad,
    matched_coefficient,
    recognise,
    terminal_head,
)
from bellman_tf.training.passes import Forward


class Terminal:
    """The outputs that carry a loss, and how their Hessian is had.

    Attributes:
        z: the tensors the terminal Hessian is taken in: outputs, or logits before a last softmax or sigmoid.
        heads: one Hessian per tensor, or `None` where no Keras loss was observed and the cost itself is differentiated.
    """

    def __init__(self, forward: Forward, observed: Sequence, cost: object) -> None:
        """Matches observed losses with outputs.

        Args:
            forward: what pass 1 captured.
            observed: what `observe_losses` recorded.
            cost: function from the list of output values (in slot order) to B J, for automatic differentiation.

        Raises:
            ValueError: if a loss has no batch axis.
        """
        for seen in observed:
            if seen.values.shape.rank == 0:
                raise _checks.error(
                    "loss", "return one value per sample", seen.loss.name,
                    "It returned a scalar. Leave the mean over the batch to Keras, or use information='open'.",
                )  # fmt: skip
        self._forward, self._cost = forward, cost
        self.slots = []
        self._forms: list[list] = []
        self._seen: list[list] = []
        for slot, output in forward.outputs.items():
            seen = [o for o in observed if o.y_pred is output]
            if not seen:
                continue
            activation = forward.ends[slot][1] if slot in forward.ends else None
            forms = [recognise(o.loss, activation, len(output.shape)) for o in seen]
            self.slots.append(slot)
            self._forms.append(agree(forms, activation))
            self._seen.append(seen)
        self.matched = sum(len(seen) for seen in self._seen) == len(observed) and bool(observed)
        if not self.matched:
            self.slots = list(forward.outputs)
            self.z = [forward.outputs[slot] for slot in self.slots]
            return
        self.z = []
        for slot, forms in zip(self.slots, self._forms, strict=True):
            before = forms[0].before_activation
            self.z.append(forward.ends[slot][0] if before else forward.outputs[slot])

    @property
    def values(self) -> Tensors:
        """Loss values whose derivatives `resolve` needs."""
        return [o.values for seen in self._seen for o in seen] if self.matched else []

    def resolve(self, derivatives: Tensors) -> None:
        """Takes f = B dJ/d(loss values), in the order of `values`, and fixes the Hessians.

        Args:
            derivatives: one tensor per entry of `values`.
        """
        remaining = iter(derivatives)
        self.heads = None
        if not self.matched:
            return
        self.heads = []
        for slot, z, forms, seen in zip(self.slots, self.z, self._forms, self._seen, strict=True):
            activation = self._forward.ends[slot][1] if slot in self._forward.ends else None
            parts = tuple(
                terminal_head(form, o, z, next(remaining), activation) for form, o in zip(forms, seen, strict=True)
            )
            self.heads.append(parts[0] if len(parts) == 1 else SumOfHeads(parts))

    def _phi(self, z: Tensors) -> tf.Tensor:
        return self._cost(dict(zip(self.slots, z, strict=True)))

    def matched_coefficient(self, gradients: Tensors) -> tf.Tensor:
        """`beta_i^2 = g' H g / |g|^4`, `[B]`.

        Args:
            gradients: g, `[B, ...]` for each of `z`.

        Returns:
            The coefficients.
        """
        g = [to_work(part) for part in gradients]
        if self.heads is not None:
            return matched_coefficient(self.heads, g)
        return curvature_along_gradient(g, hessian_times_by_ad(self._phi, self.z, g))

    def factor_columns(self, rank: int | None) -> list[Tensors]:
        """Columns of Z with Z Z' = H, each as cotangents of `z`.

        Args:
            rank: number of columns, `None` for all.

        Returns:
            r lists of tensors shaped like `z`.
        """
        if self.heads is not None:
            factors = hessian_factor(self.heads, rank)
        else:
            joint = hessian_factor_by_ad(self._phi, self.z, rank)
            factors = tf.split(joint, [_entries(z) for z in self.z], axis=1)
        columns = factors[0].shape[-1]
        return [
            [tf.cast(tf.reshape(Z[:, :, j], tf.shape(z)), z.dtype) for Z, z in zip(factors, self.z, strict=True)]
            for j in range(columns)
        ]


def _entries(tensor: tf.Tensor) -> int:
    return int(tf.TensorShape(tensor.shape[1:]).num_elements())


def structure_with(outputs: object, slots: object, values: dict) -> object:
    """The output structure with some slots replaced.

    Args:
        outputs: the model's outputs.
        slots: the same structure of slots.
        values: new values by slot.

    Returns:
        The new structure.
    """
    return keras.tree.map_structure(lambda slot, old: values.get(slot, old), slots, outputs)
