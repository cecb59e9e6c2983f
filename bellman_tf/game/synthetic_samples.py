"""Made-up samples and weights to look at a model with, and a way to keep its samples apart while it runs."""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import LayerCall, Nested, Signature

# Made-up samples: with two, a reversed batch and a rolled one are the same. An even number, because for an odd one
# TensorFlow 2.21 with oneDNN writes out of bounds in the kernel's gradient of a 1 x 1 convolution with stride of up to
# eight input channels (seen on a processor with AVX-512), and the process dies.
ROWS = 4


def mixes(layer: keras.Layer) -> bool:
    """Tells whether a layer mixes samples on purpose.

    Args:
        layer: any layer.

    Returns:
        Whether it normalises with the moments of the batch.
    """
    return isinstance(layer, keras.layers.BatchNormalization) and layer.trainable


class ConstantMoments:
    """Normalisations whose moments count as constants in a backward pass, so that samples stay apart.

    The forward pass is the model's own. A backward pass inside `mixing()` sees the moments as what they are.

    Attributes:
        before: ids of the layers that were noted before one of the normalisations was called.
        resting: ids of normalisations that ran with `training=False`, on their moving moments.
    """

    def __init__(
        self, layers: Sequence[keras.Layer], scope: keras.StatelessScope, noted: Mapping[int, object] | None = None
    ) -> None:
        """Says which layers.

        Args:
            layers: `BatchNormalization` layers.
            scope: the scope that their calls run in.
            noted: layers noted so far, by `id`; grows while the model runs.
        """
        self._layers, self._scope, self._noted = layers, scope, {} if noted is None else noted
        self._mixing = False
        self.before: set[int] = set()
        self.resting: set[int] = set()

    @contextlib.contextmanager
    def calls(self) -> Generator[None, None, None]:
        """Inside the context, the normalisations run so.

        Yields:
            Nothing.
        """
        with contextlib.ExitStack() as stack:
            for layer in self._layers:
                own = functools.partial(self._call, layer, layer.call)
                stack.enter_context(keras_access.replaced(layer, "call", own))
            yield

    @contextlib.contextmanager
    def mixing(self) -> Generator[None, None, None]:
        """Inside the context, backward passes see that moments depend on all samples.

        Yields:
            Nothing.
        """
        self._mixing = True
        try:
            yield
        finally:
            self._mixing = False

    def _call(
        self,
        layer: keras.Layer,
        own: LayerCall,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        if not training:
            self.resting.add(id(layer))
            return own(inputs, training=training, mask=mask)
        self.before.update(self._noted)
        axes = [k for k in range(inputs.shape.rank) if k != layer.axis % inputs.shape.rank]
        mean, variance = tf.nn.moments(tf.cast(inputs, layer.moving_mean.dtype), axes)
        for variable, moment in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            self._scope.add_update((variable, self._constant(moment)))
        return own(inputs, training=False, mask=mask)

    def _constant(self, moment: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def run(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            return tf.identity(x), lambda c: c if self._mixing else tf.zeros_like(c)

        return run(moment)


def before_activation(output: tf.Tensor) -> tf.Tensor:
    """The logits of an output that ends in softmax or sigmoid, which may leave no gradient; else the output.

    Args:
        output: an output of a model.

    Returns:
        A tensor to differentiate.
    """
    logits = keras_access.logits_of(output)
    return output if logits is None else logits


def synthetic_samples(signature: Signature, size: int, rows: int = ROWS, indices: bool = False) -> Nested:
    """Draws random samples.

    Args:
        signature: symbolic tensors, first axis the batch.
        size: entries of axes of unknown size.
        rows: samples.
        indices: whether floating numbers are ones too.

    Returns:
        Tensors in the structure of `signature`; integers are ones.
    """
    random = np.random.default_rng(1)

    def leaf(spec: keras.KerasTensor | None) -> tf.Tensor | None:
        if spec is None:
            return None
        fixed = spec.shape[0] or rows  # a model may have been made for batches of one size
        shape = [fixed, *(size if n is None else n for n in spec.shape[1:])]
        dtype = keras.backend.standardize_dtype(spec.dtype)
        if dtype == "string":
            return tf.fill(shape, "a")
        if dtype == "bool":
            return tf.ones(shape, tf.bool)
        if dtype == "uint8":
            return tf.constant(random.integers(0, 256, shape), tf.uint8)
        # A token or an index: 1 exists in nearly every table and is not masked.
        values = tf.ones(shape, dtype) if "int" in dtype or indices else tf.constant(random.normal(size=shape), dtype)
        return tf.sparse.from_dense(values) if getattr(spec, "sparse", False) else values

    return keras.tree.map_structure(leaf, signature)


def synthetic_weights(variable: keras.Variable, random: np.random.Generator) -> tf.Tensor:
    """Draws values of a scale that neither explodes nor vanishes in depth; vectors are positive, as scales must be.

    Args:
        variable: a floating variable.
        random: where to draw from.

    Returns:
        Values in its shape and dtype.
    """
    shape = tuple(variable.shape)
    if len(shape) < 2:
        values = random.random(shape, np.float32) + np.float32(0.5)
    else:
        rows = 1 if variable.path.endswith("embeddings") else max(1, math.prod(shape[:-1]))  # a table may be empty
        # Of variance 1.7 / rows; uniform numbers are drawn in a quarter of the time of normal ones.
        values = (random.random(shape, np.float32) - np.float32(0.5)) * np.float32(1.3 * math.sqrt(12 / rows))
    return tf.constant(values, variable.dtype)
