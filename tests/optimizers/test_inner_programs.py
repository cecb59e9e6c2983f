"""Programs that a person may write around an optimizer inside: callbacks, files, dtypes, classes of one's own."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row, thinned
from tests.optimizers.inside import MAKE, compiled, state, train, x, y
from tests.strategies.networks import labels, tokens

FIT = {"batch_size": 4, "shuffle": False, "verbose": 0}
OUTSIDE = {
    **{name: lambda name=name: btf.GTDDP(inner_optimizer=MAKE[name]()) for name in MAKE},
    "our momentum": lambda: btf.GTDDP(0.01, curvature="rmsprop", momentum=0.9, nesterov=True),
}
RESUMED = [name for name in ("adamw", "schedule free", "multi", "our momentum") if name in OUTSIDE]


def same(first, second):
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- classes of one's own


@keras.saving.register_keras_serializable("bellman_tf_tests")
class Lookahead(optimizers.Optimizer):
    """A user's optimizer around another one: every second step pulls slow weights after the fast ones."""

    def __init__(self, fast, **kwargs):
        super().__init__(1.0, **kwargs)
        self.fast = fast

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.fast.build(variables)
        self.slow = self.add_optimizer_variables(variables, "slow")
        for slow, variable in zip(self.slow, variables, strict=True):
            slow.assign(variable)

    def apply(self, grads, trainable_variables=None):
        self.fast.apply(grads, trainable_variables)
        self.iterations.assign_add(1)
        due = tf.equal(self.iterations.value % 2, 0)
        for slow, variable in zip(self.slow, self._trainable_variables, strict=True):
            slow.assign(tf.where(due, slow + 0.5 * (variable - slow), slow))
            variable.assign(tf.where(due, slow, variable))

    def get_config(self):
        return {"fast": keras.saving.serialize_keras_object(self.fast)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["fast"]))


@pytest.mark.parametrize("jit", [False, True])
def test_what_an_optimizer_holds_inside_itself_is_guarded(jit):
    model = compiled(btf.GTDDP(inner_optimizer=Lookahead(optimizers.Adam(0.01))), jit_compile=jit)
    train(model, 3)
    fast = model.optimizer.inner.fast
    before = [v.numpy() for v in fast.variables], state(model)
    assert int(fast.iterations) == 3
    bad = x.copy()
    bad[2, 3] = np.nan
    model.train_on_batch(bad, y)
    assert same(before[0], [v.numpy() for v in fast.variables])
    assert sum(not np.array_equal(a, b) for a, b in zip(before[1], state(model), strict=True)) == 2  # the counters


def test_what_an_optimizer_holds_inside_itself_is_copied():
    first = compiled(btf.GTDDP(inner_optimizer=Lookahead(optimizers.Adam(0.01))))
    train(first, 3)
    second = compiled(copy.deepcopy(first.optimizer))
    second.set_weights(first.get_weights())
    for model in (first, second):
        train(model, 2)
    assert same(state(first), state(second))
    assert same(*([v.numpy() for v in model.optimizer.inner.fast.variables] for model in (first, second)))


def test_gradients_changed_on_their_way_keep_the_metric_of_the_rule():
    class Centred(optimizers.Adam):
        def apply(self, grads, trainable_variables=None):
            super().apply([g - tf.reduce_mean(g) for g in grads], trainable_variables)

    model = compiled(btf.GTDDP(inner_optimizer=Centred(0.01)))
    losses = train(model, 5)
    assert losses[-1] < losses[0]
    assert {block.describe() for block in model.optimizer.blocks} == {"adam inside"}


# ---- chosen once, and by name or description too


def test_it_cannot_be_changed_later():
    for optimizer in (btf.GTDDP(inner_optimizer=MAKE["adam"]()), btf.GTDDP(0.1)):
        with pytest.raises(ValueError, match="`inner_optimizer` must be given to the constructor"):
            optimizer.inner_optimizer = MAKE["sgd"]()
    assert not hasattr(btf.GTDDP(0.1), "inner_optimizer")


@pytest.mark.parametrize("described", [{"class_name": "Adam", "config": {"learning_rate": 0.25}}, "adam"])
def test_a_description_is_enough(described):
    inner = btf.GTDDP(inner_optimizer=described).inner_optimizer
    assert type(inner) is optimizers.Adam


def test_the_baselines_say_that_they_have_a_curvature():
    with pytest.raises(ValueError, match="`curvature` must be left out with an inner optimizer"):
        btf.KFAC(inner_optimizer=MAKE["sgd"]())
    with pytest.raises(ValueError, match="`nesterov` must be left out with an inner optimizer"):
        btf.GTDDP(inner_optimizer=MAKE["sgd"](), nesterov=True)


# ---- states that were there before, and go on afterwards


def test_a_state_from_training_without_us_goes_on_and_back():
    inner = optimizers.Adam(0.01)
    model = compiled(inner)
    train(model, 3)
    known = [v.numpy() for v in inner.variables]
    model.compile(btf.GTDDP(inner_optimizer=inner), model.loss, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    assert same(known, [v.numpy() for v in inner.variables])
    cold = compiled(btf.GTDDP(inner_optimizer=optimizers.Adam(0.01)))
    cold.set_weights(model.get_weights())
    for each in (model, cold):
        train(each, 1)
    assert not same(model.get_weights(), cold.get_weights())
    assert (int(inner.iterations), int(model.optimizer.iterations)) == (4, 1)
    model.compile(inner, model.loss, jit_compile=False)
    train(model, 1)
    assert int(inner.iterations) == 5


# ---- files and callbacks


@pytest.mark.parametrize("name", RESUMED)
def test_weights_files_hold_everything_once_the_state_is_built(name, tmp_path):
    first = compiled(OUTSIDE[name]())
    train(first, 3)
    first.save_weights(tmp_path / "model.weights.h5")
    second = compiled(OUTSIDE[name]())
    second.set_weights([w + 1 for w in second.get_weights()])
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "model.weights.h5")
    for model in (first, second):
        train(model, 3)
    assert same(state(first), state(second))


def test_a_state_that_is_not_built_is_skipped_with_a_way_out(tmp_path):
    first = compiled(OUTSIDE["our momentum"]())
    train(first, 1)
    first.save_weights(tmp_path / "model.weights.h5")
    second = compiled(OUTSIDE["our momentum"]())
    with pytest.warns(UserWarning, match=r"call `model.optimizer.build\(model.trainable_variables\)` before loading"):
        second.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("name", [RESUMED[0], *(slow_row(name) for name in RESUMED[1:])])
def test_an_interrupted_run_goes_on_from_its_backup(name, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    whole, cut, again = (compiled(OUTSIDE[name]()) for _ in range(3))
    backup = lambda: keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    whole.fit(x, y, epochs=3, **FIT)
    with pytest.raises(InterruptedError):
        cut.fit(x, y, epochs=3, callbacks=[backup(), Stop()], **FIT)
    again.fit(x, y, epochs=3, callbacks=[backup()], **FIT)
    assert same(state(whole), state(again))


def test_a_checkpoint_of_tensorflow_holds_it(tmp_path):
    first, second = (compiled(OUTSIDE["adamw"]()) for _ in range(2))
    train(first, 3)
    second.optimizer.build(second.trainable_variables)
    path = tf.train.Checkpoint(model=first, optimizer=first.optimizer).write(tmp_path / "state")
    tf.train.Checkpoint(model=second, optimizer=second.optimizer).read(path).assert_consumed()
    for model in (first, second):
        train(model, 2)
    assert same(state(first), state(second))


def test_a_callback_schedules_the_rate():
    halved = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model = compiled(btf.GTDDP(inner_optimizer=optimizers.SGD(0.5)))
    assert model.fit(x, y, epochs=3, callbacks=[halved], **FIT).history["learning_rate"] == [0.25, 0.125, 0.0625]
    assert float(model.optimizer.inner.learning_rate) == 0.0625
    ours = compiled(btf.GTDDP(0.5, momentum=0.5, curvature="identity"))
    ours.fit(x, y, epochs=3, callbacks=[halved], **FIT)
    assert float(ours.optimizer.learning_rate) == 0.0625
    with pytest.raises(TypeError, match="hence its learning rate is not settable"):
        compiled(btf.GTDDP(inner_optimizer=MAKE["schedule"]())).fit(x, y, callbacks=[halved], **FIT)


def test_a_callback_swaps_its_averages():
    model = compiled(btf.GTDDP(inner_optimizer=optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.5)))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(x, y, epochs=2, validation_data=(x, y), callbacks=[swap], **FIT)
    assert same([v.numpy() for v in model.optimizer.inner._model_variables_moving_average], model.get_weights())


def test_several_steps_in_one_execution_are_the_same_steps():
    one, two = (compiled(OUTSIDE["adamw"](), steps_per_execution=count) for count in (1, 2))
    for model in (one, two):
        model.fit(x, y, epochs=2, **FIT)
    assert same(state(one), state(two))


def test_eager_steps_are_guarded_too():
    model = compiled(OUTSIDE["adamw"](), run_eagerly=True, jit_compile="auto")
    train(model, 2)
    before = state(model)
    model.train_on_batch(np.full_like(x, np.inf), y)
    assert sum(not np.array_equal(a, b) for a, b in zip(before, state(model), strict=True)) == 2


# ---- dtypes and sparse gradients


@pytest.mark.parametrize(
    ("name", "policy"), thinned(["momentum", "adamw", "multi"], ["mixed_bfloat16", "mixed_float16"])
)
def test_in_mixed_precision_the_open_loop_is_keras(name, policy):
    if name not in MAKE:
        pytest.skip("needs a newer Keras")
    keras.mixed_precision.set_global_policy(policy)
    plain = compiled(MAKE[name](), auto_scale_loss=False)
    ours = compiled(btf.GTDDP(inner_optimizer=MAKE[name](), information="open"), auto_scale_loss=False)
    for model in (plain, ours):
        train(model, 4)
    assert same(plain.get_weights(), ours.get_weights())


MIXED = [("adamw", True), ("our momentum", False), slow_row("our momentum", True)]


@pytest.mark.parametrize(("name", "jit"), MIXED)
def test_it_trains_in_mixed_precision(name, jit):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = compiled(OUTSIDE[name](), jit_compile=jit)
    losses = train(model, 6)
    assert losses[-1] < losses[0]
    assert int(model.optimizer.rejected_batches) == 0
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


@pytest.mark.parametrize("make", [OUTSIDE["adamw"], OUTSIDE["our momentum"]])
def test_dynamic_loss_scaling_is_refused_in_words(make):
    with pytest.raises(ValueError, match="must not be wrapped in dynamic loss scaling.*'mixed_bfloat16', or compile"):
        compiled(optimizers.LossScaleOptimizer(make()))
    keras.mixed_precision.set_global_policy("mixed_float16")
    with pytest.raises(ValueError, match="must not be wrapped in dynamic loss scaling.*auto_scale_loss=False"):
        compiled(make())


@pytest.mark.parametrize("name", ["momentum", "adam", "adagrad"])
def test_rows_of_a_table_that_are_used_twice_count_once_with_their_sum(name):
    """Keras's Adam family squares the slices of a sparse gradient before it adds them up; a dense one has no slices."""

    def table():
        inputs = keras.Input((5,), dtype="int32")
        return btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(inputs))))

    data = tokens(8), labels(8)
    ours = compiled(btf.GTDDP(inner_optimizer=MAKE[name](), information="open"), table)
    plain = compiled(MAKE[name](), table)
    weights, optimizer = plain.trainable_variables, plain.optimizer
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = plain.compute_loss(data[0], data[1], plain(data[0], training=True))
        optimizer.apply([tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in weights])], weights)
    train(ours, 3, data)
    for expected, actual in zip(plain.get_weights(), ours.get_weights(), strict=True):
        assert_close(actual, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:GTDDP trains these layers open-loop")
def test_a_layer_that_is_not_used_any_more_does_not_stop_it():
    class Switched(btf.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = (layers.Dense(k, activation="tanh") for k in (5, 5, 3))

        def call(self, inputs, training=None):
            both = self.first(inputs), self.second(inputs)
            return self.head(both[0] if training else both[0] + both[1])

    model = compiled(btf.GTDDP(inner_optimizer=optimizers.Adam(0.01)), lambda: _called(Switched()))
    before = model.second.get_weights()
    losses = train(model, 3)
    assert losses[-1] < losses[0]
    assert same(before, model.second.get_weights())


def _called(model):
    model(x)
    return model
