"""The native step on every kind of model: at a vanishing rate it is Keras's own gradient step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf import keras_access
from bellman_tf.training.native_step import NativeStep
from tests.helpers import assert_close, round_of, slow_row
from tests.strategies.networks import cross_entropy, labels, mlp, normal, residual_cnn
from tests.zoo import ZOO, sgd_step
from tests.zoo.rows import GRAPHS

RATE = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore:.*open-loop")  # many of these models have such layers


def close_to_gradient_step(actual, expected, rate):
    """The weights differ from 1/B by the leverage, which is of the order of the rate."""
    size = max(np.abs(step).max() for step in expected)
    for a, b in zip(actual, expected, strict=True):
        rounding = 2e-7  # of a weight of size 1
        np.testing.assert_allclose(a, b, rtol=0, atol=60 * rate * size + rounding)


@pytest.mark.parametrize("name", ZOO)
def test_a_vanishing_step_is_the_gradient_step(name):
    case = ZOO[name]
    step = case.step(btf.Model, btf.GTDDP(RATE, curvature="identity"), jit_compile=False)
    close_to_gradient_step(step, sgd_step(case, RATE), RATE)


@pytest.mark.parametrize("name", ZOO)
def test_coverage_is_what_is_known_of_the_model(name):
    case = ZOO[name]
    model = case.compiled(btf.Model, btf.GTDDP(RATE, curvature="identity"))
    if case.covered is not None:
        assert model.game.coverage == pytest.approx(case.covered)
    trained = {id(v) for player in model.game.players for v in player.variables}
    assert trained == {id(v) for v in model.trainable_variables}


def test_a_batch_of_graphs_trains_open_loop():
    """Rows of nodes are not rows of graphs; the sizes of the two differ from batch to batch."""
    step = GRAPHS.step(btf.Model, btf.GTDDP(RATE, curvature="identity"))
    close_to_gradient_step(step, sgd_step(GRAPHS, RATE), RATE)


class Given:
    """A policy with weights that a test has chosen."""

    def __init__(self, weights):
        self.mean_weights = [weights]

    def weights(self, player):
        return self.mean_weights[0]


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["batch_normalization", "user_residual", "regularized", "variational", "two_outputs", "reversed", "contrast"],
)
def test_the_gradient_is_that_of_the_weighted_loss(name, columns):
    """For any weights, through normalisations, added losses, regularizers and mixed samples."""
    case = ZOO[name]
    options = {} if columns == 1 else {"terminal_hessian": columns - 1}
    model = case.compiled(btf.Model, btf.GTDDP(RATE, curvature="identity", **options))
    model.optimizer.build(model.trainable_variables)
    to_tensors = lambda data: keras.tree.map_structure(tf.constant, data)
    x, y = to_tensors(case.x), to_tensors(case.y)
    seeds = [(v, v.numpy()) for v in model.non_trainable_variables] + [(v, v.numpy()) for v in model.seed_variables()]
    step = NativeStep(round_of(model, (x, y)))
    step.run_forward()
    step.run_backward(curved=True)
    [objective] = step.objectives
    random = np.random.default_rng(5)
    weights = tf.constant(random.normal(size=(6, columns)), tf.float32)
    step.policy = Given(weights)
    found = step._gradients()
    for variable, value in seeds:
        variable.assign(value)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x, y, y_pred, training=True)
        leaves = keras.tree.flatten(y_pred)
        z = [leaf if keras_access.logits_of(leaf) is None else keras_access.logits_of(leaf) for leaf in leaves]
        order = [next(k for k, own in enumerate(z) if own.shape == of.shape) for of in objective.cost.z]
        moved = [
            tf.reduce_sum(
                tf.stop_gradient(tf.cast(seed, z[k].dtype)) * z[k] * _rows(weights[:, j] - (j == 0) / 6, z[k])
            )
            for j, seeds_of in enumerate(objective.columns_at_z)
            for k, seed in zip(order, seeds_of, strict=True)
        ]
        weighted = loss + tf.add_n(moved)
    variables = [v for player in model.game.players for v in player.variables]
    expected = tape.gradient(weighted, variables)
    size = max(float(tf.norm(tf.convert_to_tensor(g))) for g in expected)
    for got, want in zip([part for parts in found for part in parts], expected, strict=True):
        assert_close(got, want, atol=2e-5 * size)


def _rows(weights, like):
    return tf.cast(tf.reshape(weights, [-1] + [1] * (like.shape.rank - 1)), like.dtype)


@pytest.mark.parametrize(
    "curvature",
    ["identity", "kfac", *(slow_row(c) for c in ("adam", "rmsprop", "ekfac", "full"))],
)
def test_a_bias_without_effect_changes_nothing(curvature):
    """In front of a normalisation: neither the other layers' step, nor under XLA against the graph."""
    kernels = []
    for bias, jit in ((True, False), (False, False), (True, True)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6, 6, 2))
        x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
        x = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, padding="same", use_bias=bias)(x))
        model = btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))
        model.compile(btf.GTDDP(0.01, curvature=curvature), **cross_entropy(), jit_compile=jit)
        for _ in range(3):
            model.train_on_batch(normal(16, 6, 6, 2), labels(16))
        kernels.append([model.layers[k].get_weights()[0] for k in (1, 2)])
    for plain, compiled, first in zip(kernels[1], kernels[2], kernels[0], strict=True):
        assert_close(first, plain, rtol=1e-6)
        assert_close(compiled, first, rtol=1e-4 if curvature in {"ekfac", "full"} else 1e-5)


def test_a_bad_batch_leaves_the_models_own_state_alone():
    case = ZOO["stateful_rnn"]
    with pytest.warns(UserWarning, match="open-loop"):
        model = case.compiled(btf.Model, btf.GTDDP(RATE))
        model.train_on_batch(case.x, case.y)
    rnn = model.layers[1]
    before = [state.numpy() for state in rnn.states]
    model.train_on_batch(np.full_like(case.x, np.nan), case.y)
    assert int(model.optimizer.rejected_batches) == 1
    assert all(np.array_equal(state.numpy(), old) for state, old in zip(rnn.states, before, strict=True))
    model.train_on_batch(case.x, case.y)
    assert any(not np.array_equal(state.numpy(), old) for state, old in zip(rnn.states, before, strict=True))


def test_a_bad_batch_does_not_count():
    """Whole numbers that a model writes itself, too."""

    class Counting(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)
            self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls")

        def call(self, x):
            self.calls.assign_add(1)
            return self.head(x)

    model = Counting()
    model.compile(btf.GTDDP(RATE), **cross_entropy())
    x, y = normal(4, 6), labels(4)
    model.train_on_batch(x, y)
    before = int(model.calls)
    model.train_on_batch(np.full_like(x, np.nan), y)
    assert int(model.calls) == before
    model.train_on_batch(x, y)
    assert int(model.calls) == before + 1


def test_frozen_variables_are_neither_copied_nor_assigned():
    inputs = keras.Input((6,))
    base = keras.Sequential([layers.Dense(5, activation="relu"), layers.BatchNormalization()])
    base.trainable = False
    model = btf.Model(inputs, layers.Dense(3)(base(inputs)))
    model.compile(btf.GTDDP(0.1), **cross_entropy())
    x, y = tf.constant(normal(4, 6)), tf.constant(labels(4))
    model.optimizer.build(model.trainable_variables)
    graph = tf.function(model.train_step, autograph=False).get_concrete_function((x, y)).graph
    inside = {id(outer): inner.name for outer, inner in graph.captures}
    handles = {inside[id(v.value.handle)] for v in base.variables if id(v.value.handle) in inside}
    assert handles
    touching = [op.type for op in graph.get_operations() if any(source.name in handles for source in op.inputs)]
    assert set(touching) == {"ReadVariableOp"}


@pytest.mark.parametrize("make", [mlp, residual_cnn])
def test_ten_steps_are_traced_once(make):
    model = make()
    model.compile(btf.GTDDP(0.01), **cross_entropy())
    x, y = (normal(4, 6), labels(4)) if make is mlp else (normal(4, 6, 6, 2), labels(4))
    traced = []
    inner = model.optimizer.context
    model.optimizer.context = lambda: (traced.append(1), inner())[1]
    model.fit(np.concatenate([x] * 10), np.concatenate([y] * 10), batch_size=4, epochs=2, verbose=0)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("curvature", "reference"), [("adam", keras.optimizers.Adam), ("identity", keras.optimizers.SGD)]
)
@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_what_a_model_writes_into_its_own_weights_stays_written(curvature, reference, weight_decay):
    """SpectralNormalization normalises the kernel itself, in every call."""
    case, rate = ZOO["spectral_normalization"], 1e-4
    expected = case.compiled(keras.Model, reference(rate, weight_decay=weight_decay))
    optimizer = btf.GTDDP(rate, curvature=curvature, information="open", weight_decay=weight_decay)
    actual = case.compiled(btf.Model, optimizer, jit_compile=False)
    for model in (expected, actual):
        for _ in range(3):
            model.train_on_batch(case.x, case.y)
    for a, b in zip(actual.trainable_variables, expected.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6)
