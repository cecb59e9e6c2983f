"""The native step where something is missing: a good batch, a player with a Gram form, a first gradient."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.game.instrument import Notes, noting
from tests.zoo import ZOO
from tests.zoo.functional import SPARSE, VECTORS, labels
from tests.zoo.losses import Moving

BAD = np.full_like(VECTORS, np.nan)


def test_a_loss_with_state_survives_a_bad_batch():
    case, optimizer, loss = ZOO["moving_loss"], btf.GTDDP(1e-3, curvature="identity"), Moving()
    model = case._replace(loss=loss).compiled(btf.Model, optimizer, jit_compile=False)
    model.train_on_batch(BAD, case.y)
    model.train_on_batch(case.x, case.y)
    assert np.isfinite(float(loss.average))
    assert int(optimizer.rejected_batches) == 1


class Nested(keras.losses.Loss):
    """A running mean, held as `held` says."""

    def __init__(self, held=lambda v: v, find=lambda held: held, kind=keras.Variable):
        super().__init__()
        self.held, self.find = held(kind(1.0)), find

    def call(self, y_true, y_pred):
        average = self.find(self.held)
        error = keras.ops.mean(keras.ops.square(y_pred), axis=-1)
        average.assign(0.9 * average + 0.1 * keras.ops.mean(error))
        return error / keras.ops.stop_gradient(keras.ops.convert_to_tensor(average))


class Around(keras.losses.Loss):
    """A loss made of a loss, a metric and a layer with moving statistics."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = Nested(), keras.metrics.Mean()
        self.normal = layers.BatchNormalization()
        self.normal.build((None, 3))

    def call(self, y_true, y_pred):
        self.seen.update_state(y_pred)
        return 2 * self.inner.call(y_true, self.normal(y_pred, training=True))


STATEFUL = {
    "a list": (lambda: Nested(lambda v: [v], lambda held: held[0]), lambda loss: loss.held),
    "a dictionary": (lambda: Nested(lambda v: {"a": ({"b": v},)}, lambda held: held["a"][0]["b"]), None),
    "TensorFlow's": (lambda: Nested(kind=tf.Variable), None),
    "a loss, a metric and a layer": (
        Around,
        lambda loss: [loss.inner.held, *loss.seen.variables, *loss.normal.non_trainable_variables],
    ),
}


@pytest.mark.parametrize("place", STATEFUL)
def test_state_of_a_loss_survives_a_bad_batch_wherever_it_is(place):
    make, state_of = STATEFUL[place]
    case, optimizer, loss = ZOO["mlp"], btf.GTDDP(1e-3, curvature="identity"), make()
    state = [loss.find(loss.held)] if state_of is None else state_of(loss)
    model = case._replace(loss=loss).compiled(btf.Model, optimizer, jit_compile=False)
    model.train_on_batch(case.x, case.y)
    before = [v.numpy() for v in state]
    model.train_on_batch(BAD, case.y)
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(state, before, strict=True))
    model.train_on_batch(case.x, case.y)
    assert int(optimizer.rejected_batches) == 1
    assert all(np.any(v.numpy() != old) for v, old in zip(state, before, strict=True))


class Counts(btf.Model):
    """Its own `compute_loss` keeps a mean, in a variable and in a metric."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed, self.head, self.seen = fixed, layers.Dense(3), keras.metrics.Mean()
        self.average = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, x):
        return self.head(tf.reshape(x, (6, 5)) if self.fixed else x)  # of a fixed size nobody knows what it writes

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        self.average.assign(0.9 * self.average + 0.1 * loss)
        self.seen.update_state(loss)
        return loss / keras.ops.stop_gradient(self.average)


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("fixed", [False, True])
def test_what_a_model_s_own_loss_writes_survives_a_bad_batch(fixed):
    model, optimizer = Counts(fixed), btf.GTDDP(1e-3, curvature="identity")
    model(VECTORS)
    model.compile(optimizer, SPARSE, jit_compile=False)
    model.fit(np.concatenate([VECTORS, BAD, VECTORS]), np.tile(labels(), 3), batch_size=6, shuffle=False, verbose=0)
    assert int(optimizer.rejected_batches) == 1
    assert np.isfinite(float(model.average))
    assert float(model.seen.count) == 2


class OneSize(btf.Model):
    """Runs on batches of six only, so made-up samples say nothing of it."""

    def __init__(self):
        super().__init__()
        self.inside, self.normal, self.head = layers.Dense(6), layers.BatchNormalization(), layers.Dense(3)

    def call(self, x, training=None):
        return self.head(self.normal(self.inside(tf.reshape(x, (6, 5))), training=training))


def test_statistics_of_a_model_that_cannot_be_surveyed_survive_a_bad_batch():
    model, optimizer = OneSize(), btf.GTDDP(1e-3, curvature="identity")
    model(VECTORS)
    model.compile(optimizer, SPARSE, jit_compile=False)
    with pytest.warns(UserWarning, match="open-loop"):
        model.train_on_batch(BAD, labels())
    assert model.game.reason
    assert int(optimizer.rejected_batches) == 1
    assert np.isfinite(model.normal.moving_mean.numpy()).all()


@pytest.mark.filterwarnings("ignore:.*open-loop")
def test_step_control_and_monitor_where_no_player_has_a_gram_form():
    x = keras.Input((6, 4))
    model, optimizer = btf.Model(x, layers.LSTM(3)(x)), btf.GTDDP(1e-2, step_control="levenberg_marquardt")
    model.compile(optimizer, SPARSE, jit_compile=False)
    data = np.random.default_rng(0).normal(size=(6, 6, 4)).astype("float32")
    model.fit(data, labels(), batch_size=6, verbose=0, callbacks=[btf.callbacks.GameMonitor()])
    assert int(optimizer.iterations) == 1
    assert model.game.coverage == 0


@pytest.mark.parametrize("terminal_hessian", ["matched", "full", 2])
@pytest.mark.parametrize(
    ("curvature", "reference"), [("adam", keras.optimizers.Adam), ("rmsprop", keras.optimizers.RMSprop)]
)
def test_the_first_step_of_a_metric_made_of_gradients_is_the_baselines(curvature, reference, terminal_hessian):
    case, rate = ZOO["mlp"], 1e-3
    expected = case.step(keras.Model, reference(rate))
    actual = case.step(btf.Model, btf.GTDDP(rate, curvature=curvature, terminal_hessian=terminal_hessian))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def penalised_shift(base):
    """A shift that BatchNormalization takes away, and that the loss reads itself."""

    class Penalised(base):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
            return loss + 3.0 * keras.ops.sum(keras.ops.square(self.get_layer("in_front").bias - 1.0))

    inputs = keras.Input((5,))
    x = layers.BatchNormalization()(layers.Dense(4, name="in_front")(inputs))
    return Penalised(inputs, layers.Dense(3)(layers.ReLU()(x)))


def test_a_shift_without_effect_on_the_outputs_follows_a_loss_that_reads_it():
    steps, rate = [], 1e-3
    for base, optimizer in (
        (keras.Model, keras.optimizers.SGD(rate)),
        (btf.Model, btf.GTDDP(rate, curvature="identity")),
    ):
        keras.utils.set_random_seed(0)
        model = penalised_shift(base)
        model.compile(optimizer, SPARSE, jit_compile=False)
        model.train_on_batch(VECTORS, labels())
        steps.append(model.get_layer("in_front").bias.numpy())
    assert any(player.null for player in model.game.players)
    np.testing.assert_allclose(steps[0], 6 * rate, rtol=1e-4)
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-4)


def wide_and_narrow(base):
    """Samples mix on the way to one number beside 40,000 of their own."""
    x = keras.Input((5,))
    h = layers.Dense(6, activation="tanh", name="h")(x)
    mixed = layers.Dense(1, name="narrow")(h - keras.ops.mean(h, axis=0, keepdims=True))
    return base(x, [layers.Dense(40000, name="wide")(h), mixed])


def test_a_wide_output_does_not_hide_that_samples_mix_on_the_way_to_another():
    model = wide_and_narrow(btf.Model)
    [player] = [player for player in model.game.players if player.name == "h"]
    assert not player.covered


@pytest.mark.parametrize("information", ["open", "cooperative"])
def test_a_bound_of_zero_clips_nothing(information):
    case = ZOO["mlp"]
    step = case.step(
        btf.Model, btf.GTDDP(1e-3, curvature="identity", information=information, global_clipnorm=0), jit_compile=False
    )
    assert all(np.abs(part).max() > 1e-5 for part in step)


class Calls(layers.Layer):
    """Counts its calls in a variable of TensorFlow's own."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


@pytest.mark.parametrize("eager", [False, True])
def test_the_look_at_the_new_loss_writes_nothing(eager):
    x, calls = keras.Input((5,)), Calls()
    model = btf.Model(x, layers.Dense(3)(calls(layers.Dense(6)(x))))
    optimizer = btf.GTDDP(1e-3, curvature="identity", step_control="levenberg_marquardt")
    model.compile(optimizer, SPARSE, jit_compile=False, run_eagerly=eager)
    before = float(calls.count)
    for _ in range(2):
        model.train_on_batch(VECTORS, labels())
    assert float(calls.count) == before + 2
    model.train_on_batch(BAD, labels())
    assert float(calls.count) == before + 2


def test_another_thread_that_calls_a_tapped_layer_is_not_noted():
    inside, outside = threading.Event(), threading.Event()

    def activation(h):
        if threading.current_thread() is not threading.main_thread():
            return keras.ops.tanh(h)
        inside.set()
        outside.wait(20)
        return keras.ops.tanh(h)

    layer = layers.Dense(6, activation=activation)
    tapped, strange = [], []

    def beside():
        inside.wait(20)
        with noting(Notes([layer], (), strange.append)):
            layer(VECTORS[:2])
        outside.set()

    layer.build((None, 5))
    thread = threading.Thread(target=beside)
    thread.start()
    with noting(Notes([layer], (), tapped.append)):
        layer(VECTORS)
    thread.join()
    assert [len(h) for h in tapped] == [len(VECTORS)]
    assert [len(h) for h in strange] == [2]
    assert layer.activation is activation


class Mixed(layers.Layer):
    """Samples mixed with others at random, as mixup does with hidden states."""

    def __init__(self, seed):
        super().__init__()
        self.seed = keras.random.SeedGenerator(seed)

    def call(self, x, training=None):
        return 0.7 * x + 0.3 * keras.random.shuffle(x, axis=0, seed=self.seed) if training else x


@pytest.mark.parametrize("seed", range(12))
def test_a_shuffle_that_happens_to_move_nothing_proves_nothing(seed):
    x = keras.Input((5,))
    model = btf.Model(x, layers.Dense(3)(Mixed(seed)(layers.Dense(6, activation="tanh", name="h")(x))))
    [player] = [player for player in model.game.players if player.name == "h"]
    assert not player.covered


class Positions(btf.Model):
    """A table that is shorter than what is made up for a size that is not known."""

    def __init__(self):
        super().__init__()
        self.token, self.position, self.head = layers.Embedding(20, 6), layers.Embedding(12, 6), layers.Dense(3)

    def call(self, x):
        h = self.token(x) + self.position(keras.ops.arange(keras.ops.shape(x)[1]))
        return self.head(keras.ops.mean(keras.ops.tanh(h), axis=1))


@pytest.mark.filterwarnings("ignore:.*open-loop")
def test_batches_of_several_lengths_leave_the_players_as_they_are():
    model, random = Positions(), np.random.default_rng(0)
    model.compile(btf.GTDDP(1e-3), SPARSE, jit_compile=False)
    for length in (8, 10, 9):
        model.train_on_batch(random.integers(0, 20, (6, length)), labels())
    assert not model.game.reason
    assert model.game.coverage > 0.5


class Skipping(btf.Model):
    """Leaves a layer out when told to."""

    def __init__(self):
        super().__init__()
        self.skip = False
        self.left, self.right = layers.Dense(6, activation="tanh"), layers.Dense(6, activation="tanh")
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(self.left(x) if self.skip else self.left(x) + self.right(x))


@pytest.mark.parametrize("cooperative", ["exact", "published"])
def test_a_coupling_of_which_one_layer_is_not_called(cooperative):
    model = Skipping()
    model(VECTORS)
    model.compile(btf.GTDDP(1e-3, curvature=btf.curvature.KFAC(cooperative=cooperative)), SPARSE, run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(VECTORS, labels())
    assert model.optimizer.couplings
    model.skip, before = True, model.right.kernel.numpy()
    model.train_on_batch(VECTORS, labels())
    assert int(model.optimizer.iterations) == 3
    np.testing.assert_array_equal(model.right.kernel.numpy(), before)


@pytest.mark.parametrize("curvature", ["adam", "rmsprop"])
def test_what_occurs_for_the_first_time_leaves_its_sample_its_weight(curvature):
    """Where the second moment is 0 its inverse is no curvature: a new token must not silence its sample."""
    x = keras.Input((4,), dtype="int32")
    model = btf.Model(x, layers.Dense(3)(layers.Flatten()(layers.Embedding(50, 6)(x))))
    optimizer = btf.GTDDP(1e-3, curvature=curvature)
    model.compile(optimizer, SPARSE, jit_compile=False)
    tokens = np.random.default_rng(0).integers(0, 10, (6, 4))
    for _ in range(5):
        model.train_on_batch(tokens, labels())
    embedding = next(k for k, player in enumerate(optimizer.players) if player.covered and "embedding" in player.name)
    state = [tf.convert_to_tensor(v) for v in optimizer.state[embedding]]
    step = StepScalars(tf.convert_to_tensor(optimizer.iterations), tf.constant(1e-3))
    [rows] = optimizer.blocks[embedding].standing(state, step).solve([tf.ones([50, 6])])
    known = np.unique(tokens)
    assert (rows.numpy()[known] > 0).all()
    assert rows.numpy()[40].max() < 1e-6 * rows.numpy()[known].min()


@pytest.mark.parametrize("information", ["cooperative", "cooperative_open", "feedback"])
def test_the_predicted_decrease_counts_own_costs_and_the_metric(information):
    """One linear layer, squared error: the loss is its own quadratic model, so the prediction is known exactly."""
    rate, strength = 0.3, 0.2
    inputs = keras.Input((3,))
    layer = layers.Dense(2, kernel_regularizer=keras.regularizers.L2(strength))
    model = btf.Model(inputs, layer(inputs))
    options = {"terminal_hessian": "full", "information": information, "step_control": "levenberg_marquardt"}
    model.compile(btf.GTDDP(rate, curvature="identity", **options), "mse", run_eagerly=True)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)).astype("float32"), random.normal(size=(6, 2)).astype("float32")
    error = lambda: float(np.mean((model.predict(x, verbose=0) - y) ** 2))
    seen = []
    model.optimizer.observe = lambda outcome, accepted: seen.append(float(outcome.predicted))
    before, kernel = error(), layer.kernel.numpy()
    old = [v.numpy() for v in model.trainable_variables]
    model.train_on_batch(x, y)
    moved = [v.numpy() - w for v, w in zip(model.trainable_variables, old, strict=True)]
    own = np.sum(2 * strength * kernel * moved[0])
    metric = sum(np.sum(step**2) for step in moved) / (2 * rate)
    assert seen[0] == pytest.approx(before - error() - own - metric, rel=1e-4)
