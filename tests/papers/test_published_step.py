"""One step of the tables' published forms on their own networks is the recursion with every matrix written out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from keras_examples.papers import networks

SIDE, WIDTH, SAMPLES = 4, 2, 3
PLANE = SIDE * SIDE * WIDTH


def image(state, number=0):
    """A part of the states `[B, n]` as images."""
    return tf.reshape(state[:, number * PLANE : (number + 1) * PLANE], (-1, SIDE, SIDE, WIDTH))


def flat(x):
    """Images as states."""
    return tf.reshape(x, (len(x), -1))


def convolved(x, W, b):
    """A 3x3 convolution."""
    return tf.nn.conv2d(x, W, 1, "SAME") + b


# The stages of `networks.residual_blocks`; a state inside the block has the block's input before its own.
RESIDUAL = [
    lambda s, W, b: flat(tf.nn.relu(convolved(tf.reshape(s, (-1, SIDE, SIDE, 1)), W, b))),
    lambda s, W, b: tf.concat([s, flat(tf.nn.relu(convolved(image(s), W, b)))], 1),
    lambda s, W, b: tf.concat([s[:, :PLANE], flat(tf.nn.relu(convolved(image(s, 1), W, b)))], 1),
    lambda s, W, b: flat(tf.nn.relu(image(s) + convolved(image(s, 1), W, b))),
    lambda s, W, b: flat(tf.nn.avg_pool2d(image(s), 2, 2, "VALID")) @ W + b,
]
DENSE = [lambda s, W, b: tf.tanh(s @ W + b)] * 2 + [lambda s, W, b: s @ W + b]


def linearised(stages, parts, x):
    """States, and for every stage the Jacobians of every sample."""
    states, f_x, f_u = [x], [], []
    for f, (W, b) in zip(stages, parts, strict=True):
        s = tf.constant(states[-1])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([s, W, b])
            out = f(s, W, b)
        f_x.append(tape.batch_jacobian(out, s).numpy())
        by_part = [tape.jacobian(out, part).numpy().reshape(len(x), out.shape[1], -1) for part in (W, b)]
        f_u.append(np.concatenate(by_part, axis=2))
        states.append(out.numpy())
    return states, f_x, f_u


def step(stages, parts, x, labels, rate, outer):
    """What every layer's variables gain: V_x, V_xx of the mean loss, sample by sample; M = I / rate for Q_uu."""
    parts = [tuple(tf.constant(part, tf.float64) for part in pair) for pair in parts]
    states, f_x, f_u = linearised(stages, parts, x)
    p = tf.nn.softmax(states[-1]).numpy()
    V_x = (p - np.eye(p.shape[1])[labels]) / len(x)
    full = (p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None]) / len(x)
    V_xx = V_x[:, :, None] * V_x[:, None] if outer else full
    k, K = [], []
    for A, B in zip(f_x[::-1], f_u[::-1], strict=True):
        Q_ux = B.transpose(0, 2, 1) @ V_xx @ A
        k.insert(0, -rate * np.einsum("inm,in->m", B, V_x))
        K.insert(0, -rate * Q_ux)
        V_x = np.einsum("inm,in->im", A, V_x) + np.einsum("imn,m->in", Q_ux, k[0])
        V_xx = A.transpose(0, 2, 1) @ V_xx @ A - rate * Q_ux.transpose(0, 2, 1) @ Q_ux
        assert np.linalg.eigvalsh(V_xx).min() > -1e-12  # no clamp is met
    moved, new = [], tf.constant(x)
    for t, (f, (W, b)) in enumerate(zip(stages, parts, strict=True)):
        moved.append(k[t] + np.einsum("imn,in->m", K[t], new.numpy() - states[t]))
        size = int(np.prod(W.shape))
        new = f(new, W + moved[t][:size].reshape(W.shape), b + moved[t][size:])
    return moved, k


@pytest.mark.parametrize(
    ("name", "optimizer", "outer"),
    [
        ("residual", btf.GTDDP.as_published(0.2, curvature="identity"), True),
        ("dense", btf.DDPNOpt.as_published(0.2, paper="ddp", curvature="identity"), False),
    ],
)
def test_a_step_is_that_of_explicit_matrices(name, optimizer, outer):
    keras.utils.set_random_seed(0)
    shape = (SIDE, SIDE, 1)
    if name == "residual":
        model, stages = networks.residual_blocks(shape, WIDTH, 1, "relu"), RESIDUAL
    else:
        model, stages = networks.fully_connected(shape, (5, 5), "tanh"), DENSE
    rng = np.random.default_rng(0)
    x, labels = 2 * rng.normal(size=(SAMPLES, *shape)).astype("float32"), rng.integers(10, size=SAMPLES)
    before = [value.numpy() for value in model.trainable_variables]
    parts = list(zip(before[::2], before[1::2], strict=True))
    moved, open_loop = step(stages, parts, x.reshape(SAMPLES, -1).astype("float64"), labels, 0.2, outer)
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(x, labels)
    change = [value.numpy() - old for value, old in zip(model.trainable_variables, before, strict=True)]
    for t, expected in enumerate(moved):
        actual = np.concatenate([change[2 * t].ravel(), change[2 * t + 1].ravel()])
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    fed_back = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(moved, open_loop, strict=True)]
    assert max(fed_back) > 0.02  # feedback has a part in it
