"""Random signs, the same ones for the same seed: eager, compiled and under XLA."""

import tensorflow as tf


class Signs:
    """A source of independent random signs.

    Attributes:
        seed: `[2]`, int32; the same one gives the same signs.

    Example:
        >>> signs = Signs(tf.constant([7, 0]))
        >>> signs(tf.zeros([3])).numpy().tolist() == Signs(signs.seed)(tf.zeros([3])).numpy().tolist()
        True
    """

    def __init__(self, seed: tf.Tensor) -> None:
        self.seed = seed
        self._drawn = 0

    def __call__(self, like: tf.Tensor) -> tf.Tensor:
        """Draws the next ones.

        Args:
            like: a tensor.

        Returns:
            -1 or 1 with equal chance for each of its entries, in its shape and dtype.

        Numerics: integers are drawn, which TensorFlow and XLA agree about.
        """
        seed = self.seed + tf.constant([0, self._drawn])
        self._drawn += 1
        bits = tf.random.stateless_uniform(tf.shape(like), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
        one = tf.ones([], like.dtype)
        return tf.ensure_shape(tf.where(bits < 0, -one, one), like.shape)
