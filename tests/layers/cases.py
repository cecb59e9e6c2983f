"""One layer of every covered kind, and what automatic differentiation says about it."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bellman_tf.layers.registry import coverage

L = keras.layers


class Case(NamedTuple):
    """A layer, the shape of one sample's input, and the size of the vocabulary if that input is tokens."""

    make: object
    shape: tuple
    vocabulary: int | None = None


def _case(kind, shape, *args, vocabulary=None, **options):
    return Case(lambda **common: kind(*args, **options, **common), shape, vocabulary)


CASES = {
    "dense": _case(L.Dense, (4,), 3),
    "dense without bias": _case(L.Dense, (4,), 3, use_bias=False),
    "dense rank 3": _case(L.Dense, (5, 4), 3),
    "dense two positions": _case(L.Dense, (2, 4), 3),
    "dense one position": _case(L.Dense, (1, 4), 3),
    "dense rank 4 without bias": _case(L.Dense, (2, 3, 4), 3, use_bias=False),
    "einsum dense": _case(L.EinsumDense, (4,), "ab,bc->ac", output_shape=(3,), bias_axes="c"),
    "einsum positions": _case(L.EinsumDense, (5, 4), "abc,cd->abd", output_shape=(None, 3), bias_axes="d"),
    "einsum ellipsis": _case(L.EinsumDense, (2, 3, 4), "...x,xy->...y", output_shape=(3,), bias_axes="y"),
    "einsum trailing ellipsis": _case(L.EinsumDense, (4, 2), "ax...,xy->ay...", output_shape=(3,), bias_axes="y"),
    "einsum two features": _case(L.EinsumDense, (5, 4), "abc,cde->abde", output_shape=(None, 2, 3), bias_axes="de"),
    "einsum two features swapped": _case(
        L.EinsumDense, (5, 4), "abc,cde->abed", output_shape=(None, 3, 2), bias_axes="ed"
    ),
    "einsum bias of one feature": _case(L.EinsumDense, (5, 4), "abc,cde->abde", output_shape=(5, 2, 3), bias_axes="d"),
    "einsum bias of the positions": _case(L.EinsumDense, (3, 4), "abc,cd->abd", output_shape=(3, 2), bias_axes="b"),
    "einsum bias as long as the matrix is wide": _case(
        L.EinsumDense, (6, 4), "abc,cde->abde", output_shape=(6, 2, 3), bias_axes="b"
    ),
    "einsum two inputs": _case(L.EinsumDense, (5, 2, 3), "abde,def->abf", output_shape=(None, 4), bias_axes="f"),
    "einsum inputs apart": _case(L.EinsumDense, (2, 5, 3), "adbe,def->abf", output_shape=(5, 4), bias_axes="f"),
    "einsum kernel transposed": _case(L.EinsumDense, (4,), "ab,cb->ac", output_shape=(3,), bias_axes="c"),
    "einsum batched kernel": _case(L.EinsumDense, (5, 4), "abc,bcd->abd", output_shape=(5, 3), bias_axes="bd"),
    "einsum elementwise": _case(L.EinsumDense, (5, 4), "abc,c->abc", output_shape=(None, 4)),
    "einsum summed input": _case(L.EinsumDense, (5, 4), "abc,cd->ad", output_shape=(3,), bias_axes="d"),
    "conv 1d": _case(L.Conv1D, (7, 2), 3, 3, padding="same"),
    "conv 1d causal": _case(L.Conv1D, (7, 2), 3, 3, padding="causal", dilation_rate=2),
    "conv 1d causal stride": _case(L.Conv1D, (7, 2), 3, 2, padding="causal", strides=2),
    "conv 2d": _case(L.Conv2D, (5, 6, 2), 3, 3, padding="same"),
    "conv 2d without bias": _case(L.Conv2D, (5, 6, 2), 3, 3, use_bias=False),
    "conv 2d stride 2": _case(L.Conv2D, (6, 7, 2), 3, 3, strides=2, padding="same"),
    "conv 2d stride 3 valid": _case(L.Conv2D, (8, 7, 2), 3, (3, 2), strides=3),
    "conv 2d dilated": _case(L.Conv2D, (7, 8, 2), 3, 3, dilation_rate=2, padding="same"),
    "conv 2d even": _case(L.Conv2D, (6, 5, 2), 3, (2, 4), strides=(2, 1), padding="same"),
    "conv 2d one by one": _case(L.Conv2D, (4, 5, 3), 4, 1),
    "conv 2d one by one stride 2": _case(L.Conv2D, (4, 5, 3), 4, 1, strides=2, padding="same", use_bias=False),
    "conv 2d groups": _case(L.Conv2D, (5, 5, 4), 6, 3, groups=2, padding="same"),
    "conv 3d": _case(L.Conv3D, (4, 3, 5, 2), 3, (2, 3, 2), padding="same", strides=(1, 1, 2)),
    "conv 2d groups without bias": _case(L.Conv2D, (4, 5, 6), 3, 2, groups=3, strides=2, use_bias=False),
    "conv 1d groups": _case(L.Conv1D, (6, 4), 4, 3, groups=2, padding="causal", dilation_rate=2),
    "transposed 1d": _case(L.Conv1DTranspose, (4, 2), 3, 3, strides=2, padding="same"),
    "transposed 2d": _case(L.Conv2DTranspose, (3, 4, 2), 3, 3, padding="same"),
    "transposed 2d stride 2": _case(L.Conv2DTranspose, (3, 4, 2), 3, 3, strides=2, padding="same", use_bias=False),
    "transposed 2d stride 2 valid": _case(L.Conv2DTranspose, (3, 2, 2), 3, (3, 2), strides=(2, 3)),
    "transposed 2d even": _case(L.Conv2DTranspose, (3, 4, 2), 3, 2, strides=2, padding="same"),
    "transposed 2d padded": _case(L.Conv2DTranspose, (3, 4, 2), 3, 3, strides=2, padding="same", output_padding=1),
    "transposed 2d wide stride": _case(L.Conv2DTranspose, (3, 2, 2), 3, 2, strides=3, padding="same"),
    "transposed 3d": _case(L.Conv3DTranspose, (2, 3, 2, 2), 3, (2, 3, 2), strides=(1, 2, 2), padding="same"),
    "depthwise 1d": _case(L.DepthwiseConv1D, (7, 2), 3, depth_multiplier=2, strides=2, padding="same"),
    "depthwise 2d": _case(L.DepthwiseConv2D, (5, 6, 3), 3, padding="same"),
    "depthwise 2d multiplier": _case(
        L.DepthwiseConv2D, (6, 6, 2), (2, 3), depth_multiplier=3, strides=2, use_bias=False
    ),
    "depthwise 2d dilated": _case(L.DepthwiseConv2D, (7, 6, 2), 3, dilation_rate=2, padding="same"),
    "separable 1d": _case(L.SeparableConv1D, (7, 2), 3, 3, depth_multiplier=2, padding="same"),
    "separable 2d": _case(L.SeparableConv2D, (5, 6, 2), 3, 3, padding="same"),
    "separable 2d stride 2": _case(
        L.SeparableConv2D, (6, 6, 2), 4, 2, strides=2, depth_multiplier=2, padding="same", use_bias=False
    ),
    "embedding": _case(L.Embedding, (6,), 5, 3, vocabulary=5),
    "embedding of a large table": _case(L.Embedding, (2,), 260, 3, vocabulary=260),
    "embedding of one token": _case(L.Embedding, (), 5, 3, vocabulary=5),
    "embedding rank 3": _case(L.Embedding, (2, 3), 4, 3, vocabulary=4),
    "batch norm": _case(L.BatchNormalization, (4,)),
    "batch norm of images": _case(L.BatchNormalization, (3, 2, 4)),
    "batch norm over axis 1": _case(L.BatchNormalization, (3, 4), axis=1, center=False),
    "batch norm without scale": _case(L.BatchNormalization, (3, 4), scale=False),
    "layer norm": _case(L.LayerNormalization, (4,)),
    "layer norm of sequences": _case(L.LayerNormalization, (3, 4)),
    "layer norm over two axes": _case(L.LayerNormalization, (3, 2, 4), axis=[1, 2]),
    "layer norm over swapped axes": _case(L.LayerNormalization, (3, 4), axis=[-1, 1]),
    "layer norm without shift": _case(L.LayerNormalization, (4,), center=False),
    "group norm": _case(L.GroupNormalization, (3, 2, 6), groups=3),
    "group norm of vectors": _case(L.GroupNormalization, (6,), groups=2, scale=False),
    "group norm over axis 1": _case(L.GroupNormalization, (6, 3), groups=2, axis=1),
    "slope": _case(L.PReLU, (4,)),
    "slope of images": _case(L.PReLU, (3, 2, 4)),
    "slope shared in space": _case(L.PReLU, (3, 2, 4), shared_axes=[1, 2]),
    "instance norm": _case(L.GroupNormalization, (4, 6), groups=-1),
}
if hasattr(L, "RMSNormalization"):  # from Keras 3.9 on
    CASES |= {
        "rms norm": _case(L.RMSNormalization, (4,)),
        "rms norm of sequences": _case(L.RMSNormalization, (3, 4)),
        "rms norm over two axes": _case(L.RMSNormalization, (3, 2, 4), axis=[2, 3]),
    }


class Sample(NamedTuple):
    """A built layer, its input, and the cotangents of its (pre-)activation, one per column."""

    layer: keras.Layer
    inputs: tf.Tensor
    cotangents: list

    @property
    def capture(self):
        return coverage(self.layer).capture(self.layer, self.inputs, self.cotangents)

    @property
    def shapes(self):
        return tuple(tuple(v.shape) for v in self.layer.trainable_variables)


def draw(case, rng, batch=3, columns=1, dtype="float64"):
    """Builds the layer with random variables, and draws inputs and cotangents."""
    layer = case.make(dtype=dtype)
    if case.vocabulary is None:
        inputs = tf.constant(rng.normal(size=(batch, *case.shape)), layer.compute_dtype)
    else:
        inputs = tf.constant(rng.integers(case.vocabulary, size=(batch, *case.shape)))
    shape = layer(inputs).shape
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return Sample(layer, inputs, [tf.constant(rng.normal(size=shape), layer.compute_dtype) for _ in range(columns)])


def automatic(sample):
    """`q_ij`, `[B, m, *shape]` per variable: the cotangent of one sample and column at a time through the layer."""
    layer, inputs, cotangents = sample
    variables = layer.trainable_variables
    values = [v.value for v in variables]
    with tf.GradientTape(persistent=True) as tape:
        output = layer(inputs, training=True)
    parts = [[] for _ in variables]
    for i in range(len(inputs)):
        mine = tf.reshape(tf.one_hot(i, len(inputs), dtype=output.dtype), [-1] + [1] * (len(output.shape) - 1))
        for c in cotangents:
            gradients = tape.gradient(output, values, output_gradients=mine * c)
            for part, gradient in zip(parts, gradients, strict=True):
                part.append(tf.convert_to_tensor(gradient).numpy())
    return [
        np.stack(part).reshape(len(inputs), len(cotangents), *v.shape) for part, v in zip(parts, variables, strict=True)
    ]


def flat(parts, lead=1):
    """Variables side by side behind `lead` leading axes."""
    parts = [np.asarray(part) for part in parts]
    return np.concatenate([part.reshape(*part.shape[:lead], -1) for part in parts], axis=-1)
