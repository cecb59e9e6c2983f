"""Hessians of terminal costs without a closed form, by differentiating twice."""

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import tensorflow as tf

from bellman_tf.losses.heads import dot_per_sample, entries_per_sample, top_factor


def hessian_times_by_ad(phi, z, v):
    """H v for a terminal cost given as a function.

    Args:
        phi: function of the list `z` returning the scalar sum_i phi_i (that is B J), twice differentiable.
        z: list of `[B, ...]`, the outputs.
        v: list of tensors shaped like `z`.

    Returns:
        List of tensors shaped like `z`. If phi couples samples, sample i also receives sum_j H_ij v_j.
    """
    with tf.GradientTape() as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            cost = phi(z)
        gradients = inner.gradient(cost, z, unconnected_gradients="zero")
    return outer.gradient(gradients, z, output_gradients=list(v), unconnected_gradients="zero")


def hessian_by_ad(phi, z):
    """Hessian of every sample, by D products (D static, one loop).

    Args:
        phi: function of the list `z` returning the scalar sum_i phi_i, a sum over samples.
        z: list of `[B, ...]`, the outputs.

    Returns:
        `[B, D, D]`, symmetric, D running over the flattened outputs in order.
    """
    sizes = [entries_per_sample(x) for x in z]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            cost = phi(z)
        gradients = inner.gradient(cost, z, unconnected_gradients="zero")
        # Samples do not meet in phi: the rows of all of them come out of one derivative of the sum over samples.
        flat = [tf.reshape(g, [-1, n]) for g, n in zip(gradients, sizes, strict=True)]
        total = tf.reduce_sum(tf.concat(flat, axis=1), axis=0)  # [D]
    rows = outer.jacobian(total, z, unconnected_gradients="zero", experimental_use_pfor=False)
    D = sum(sizes)
    H = tf.concat([tf.reshape(r, [D, -1, n]) for r, n in zip(rows, sizes, strict=True)], axis=2)
    H = tf.transpose(H, [1, 0, 2])  # [B, D, D]
    return 0.5 * (H + tf.linalg.matrix_transpose(H))


def hessian_factor_by_ad(phi, z, rank=None):
    """Factor of every sample's Hessian, negative eigenvalues dropped.

    Args:
        phi: function of the list `z` returning the scalar sum_i phi_i, a sum over samples.
        z: list of `[B, ...]`, the outputs.
        rank: number of columns; all D if None.

    Returns:
        `[B, D, rank]`, largest eigenvalue first.
    """
    H = hessian_by_ad(phi, z)
    return top_factor(H, H.shape[-1] if rank is None else rank)


@dataclass(frozen=True, eq=False)
class AutomaticHead:
    """phi = sum f x loss(y_true, activation(z)) for any Keras loss; methods as in `heads.py`.

    A loss whose `call` returns one number for the whole batch has no Hessian per sample: its Hessian is taken as 0.

    Attributes:
        z: `[B, ..., C]`.
        loss: the Keras loss; only its `call` is used.
        y_true: labels, as observed.
        f: B dJ/d(loss value), shaped like `loss.call(...)`.
        activation: function from `z` to the output; None if `z` is the output.
    """

    z: tf.Tensor
    loss: Any
    y_true: Any
    f: tf.Tensor
    activation: Any = None

    kind: ClassVar[str] = "automatic"

    def phi(self, z):
        """The terminal cost, summed over samples.

        Args:
            z: list with the one tensor shaped like `z`.

        Returns:
            Scalar.
        """
        y = z[0] if self.activation is None else self.activation(z[0])
        if y.dtype != self.loss.dtype:
            y = tf.cast(y, self.loss.dtype)  # as `Loss.__call__` does
        values = self.loss.call(self.y_true, y)
        return tf.reduce_sum(tf.cast(self.f, self.z.dtype) * tf.cast(values, self.z.dtype))

    def gradient(self):
        """dphi/dz.

        Returns:
            Shaped like `z`.
        """
        with tf.GradientTape() as tape:
            tape.watch(self.z)
            cost = self.phi([self.z])
        return tape.gradient(cost, self.z, unconnected_gradients="zero")

    def hessian_times(self, v):
        """H v.

        Args:
            v: shaped like `z`.

        Returns:
            Shaped like `z`.
        """
        return hessian_times_by_ad(self.phi, [self.z], [v])[0] if self._per_sample() else tf.zeros_like(self.z)

    def quadratic(self, v):
        """V' H v.

        Args:
            v: shaped like `z`.

        Returns:
            `[B]`.
        """
        return dot_per_sample(v, self.hessian_times(v))

    def factor(self):
        """Factor of the Hessian, negative eigenvalues dropped.

        Returns:
            `[B, D, D]`.
        """
        return self.top_factor(entries_per_sample(self.z))

    def top_factor(self, rank):
        """Largest eigenpairs.

        Args:
            rank: number of columns.

        Returns:
            `[B, D, rank]`.
        """
        if not self._per_sample():
            size = entries_per_sample(self.z)
            return tf.zeros([tf.shape(self.z)[0], size, rank], self.z.dtype)
        return hessian_factor_by_ad(self.phi, [self.z], rank)

    def _per_sample(self):
        return self.f.shape.rank is None or self.f.shape.rank > 0


def activation_function(name):
    """Keras function of an activation's name.

    Args:
        name: None or a name.

    Returns:
        The function, None for none.
    """
    return None if name in {None, "linear"} else keras.activations.get(name)
