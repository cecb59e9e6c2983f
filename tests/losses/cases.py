"""One output: its logits or values, labels, weights, and two ways to its Hessian."""

from functools import partial

import hypothesis.strategies as st
import keras
import numpy as np
import tensorflow as tf

from bellman_tf import losses

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


@st.composite
def outputs(draw):
    """Shape `[B, C]` or `[B, T, C]`, logits of a drawn temper, class labels, weights with zeros among them."""
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    steps = draw(st.sampled_from([(), (1,), (3,)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (batch, *steps, classes)
    temper = draw(st.sampled_from(["moderate", "extreme", "identical", "confident"]))
    z = rng.normal(size=shape)
    if temper == "extreme":
        z = rng.uniform(-50, 50, size=shape)
    elif temper == "identical":
        z = np.full(shape, draw(st.floats(-5, 5)))
    labels = rng.integers(classes, size=shape[:-1])
    if temper == "confident":
        z = z + 30.0 * np.eye(classes)[labels]
    f = rng.uniform(0.1, 3.0, size=shape[:-1]) * rng.integers(0, 2, size=shape[:-1])
    return z, labels, f


def one_hot(labels, z):
    return np.eye(z.shape[-1])[labels]


def floats(labels, z):
    return np.sin(np.arange(z.size)).reshape(z.shape) * 1.5 + 0.1 * labels[..., None]


def bits(labels, z):
    return (np.arange(z.size).reshape(z.shape) % 3 == 0).astype(float)


def counts(labels, z):
    return labels[..., None] + bits(labels, z)


L = keras.losses
CLOSED = {
    "categorical": (L.CategoricalCrossentropy, "softmax", one_hot),
    "categorical, logits": (partial(L.CategoricalCrossentropy, from_logits=True), None, one_hot),
    "categorical, smoothed": (partial(L.CategoricalCrossentropy, label_smoothing=0.2), "softmax", one_hot),
    "sparse": (L.SparseCategoricalCrossentropy, "softmax", lambda c, z: c),
    "sparse, logits": (partial(L.SparseCategoricalCrossentropy, from_logits=True), None, lambda c, z: c),
    "sparse, column": (L.SparseCategoricalCrossentropy, "softmax", lambda c, z: c[..., None]),
    "sparse, ignoring": (
        partial(L.SparseCategoricalCrossentropy, from_logits=True, ignore_class=1),
        None,
        lambda c, z: c,
    ),
    "binary": (L.BinaryCrossentropy, "sigmoid", bits),
    "binary, logits": (partial(L.BinaryCrossentropy, from_logits=True), "linear", bits),
    "binary, smoothed": (partial(L.BinaryCrossentropy, label_smoothing=0.1), "sigmoid", bits),
    "square": (L.MeanSquaredError, None, floats),
    "huber": (partial(L.Huber, delta=0.7), None, floats),
    "log cosh": (L.LogCosh, None, floats),
    "poisson": (L.Poisson, None, counts),
}


def at_home(name, z):
    """Outputs that the loss of this name is made for: rates are positive."""
    return np.logaddexp(0.0, z) + 0.01 if name == "poisson" else z


def observed_head(loss, activation, z, y_true, f, *, automatic=False):
    """The head that a training step would build for sum f * loss.call(y_true, activation(z))."""
    z = tf.constant(z)
    through = activation not in {None, "linear"}
    y = keras.activations.get(activation)(z) if through else z
    end = losses.OutputEnd(y, z, activation) if through else losses.OutputEnd(y)
    y_true, f = tf.cast(y_true, loss.dtype), tf.cast(f, loss.dtype)
    with losses.record_loss([end]) as record:
        reached = y if y.dtype == loss.dtype else tf.cast(y, loss.dtype)  # as `Loss.__call__` does
        values = loss.call(y_true, reached)
        J = tf.reduce_sum(f * values)
    observation = losses.Observation(loss, y_true, y, values, reached)
    record.observed.append(observation)
    form = losses.recognise(loss, activation, z.shape.rank, observation.reached)
    if automatic or form.kind == "automatic":
        return losses.AutomaticHead(record.probe.curvature(J, 1.0, [0], [through]))
    assert form.before_activation == through
    [head] = losses.terminal_cost(record, J, 1.0, closed=True).heads([f])
    return head


def hessian_of_keras(loss, activation, z, y_true, f):
    """Second derivatives of sum f * loss.call(y_true, activation(z)), `[B, D, D]`; checks that samples are apart."""
    z = tf.constant(z)
    y_true, f = tf.cast(y_true, loss.dtype), tf.cast(f, loss.dtype)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            y = z if activation in {None, "linear"} else keras.activations.get(activation)(z)
            phi = tf.reduce_sum(f * loss.call(y_true, y))
        gradient = inner.gradient(phi, z)
    H = tape.jacobian(gradient, z, unconnected_gradients="zero", experimental_use_pfor=False).numpy()
    batch, size = z.shape[0], int(np.prod(z.shape[1:]))
    H = H.reshape(batch, size, batch, size)
    blocks = np.stack([H[i, :, i, :] for i in range(batch)])
    for i in range(batch):
        H[i, :, i, :] = 0.0
    assert not H.any()
    return gradient.numpy(), blocks


def dense(head, z):
    """`[B, D, D]` from products with unit vectors."""
    shape = (z.shape[0], -1) if isinstance(head, losses.AutomaticHead) else z.shape
    size = int(np.prod(z.shape[1:]))
    columns = []
    for k in range(size):
        unit = np.zeros((z.shape[0], size))
        unit[:, k] = 1.0
        columns.append(head.hessian_times(tf.constant(unit.reshape(shape), head_dtype(head))).numpy())
    return np.stack([c.reshape(z.shape[0], size) for c in columns], axis=2)


def head_dtype(head):
    return head.gradient().dtype


def outer(Z):
    return np.asarray(Z) @ np.swapaxes(np.asarray(Z), -1, -2)


class Wave(keras.losses.Loss):
    """Not convex, couples the entries of a sample."""

    def call(self, y_true, y_pred):
        return tf.sin(tf.reduce_sum(y_true * y_pred, axis=-1)) + tf.reduce_sum(y_pred**3, axis=-1)


def dense_model(loss, **options):
    model = keras.Sequential([keras.layers.Input([3]), keras.layers.Dense(4, activation="softmax")])
    model.compile(loss=loss, **options)
    return model
