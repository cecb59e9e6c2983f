"""What else goes with several replicas: saving, precision, memory, one device; and what does not, in words."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from tests.helpers import assert_close, slow_row
from tests.replicas.training import assert_mirrored, compiled, data, fit, mlp, state_of


def test_a_saved_model_goes_on_where_it_stood(tmp_path):
    x, y = data(8)
    model, strategy = compiled(2, lambda: btf.GTDDP(0.03, momentum=0.5), run_eagerly=True)
    fit(model, x, y, 8, 1)
    model.save(tmp_path / "model.keras")
    with strategy.scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    alone = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(alone.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    fit(model, x, y, 8, 1)
    loaded.run_eagerly = True
    fit(loaded, x, y, 8, 1)
    for (path, value), (_, reference) in zip(state_of(loaded), state_of(model), strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=path)
    assert_mirrored(loaded)


@pytest.mark.slow
def test_gram_matrices_in_blocks_are_the_same():
    """With `coupling="global"` the memory bounds what samples send: `test_global.py`."""
    x, y = data(16)
    weights = []
    for memory in (2**28, 64):
        make = lambda memory=memory: btf.GTDDP(0.01, curvature="adam", gram="exact", gram_memory=memory)
        model, _ = compiled(2, make, run_eagerly=True)
        fit(model, x, y, 16, 2)
        weights.append(model.get_weights())
    for value, reference in zip(*weights, strict=True):
        assert_close(value, reference, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("coupling", "group_size"), [("replica", 4), ("global", None)])
def test_half_precision(coupling, group_size):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    x, y = data(8)
    model, _ = compiled(2, lambda: btf.GTDDP(0.03, coupling=coupling), run_eagerly=True)
    history = fit(model, x, y, 8, 1)
    alone, _ = compiled(1, lambda: btf.GTDDP(0.03, group_size=group_size), run_eagerly=True)
    assert_close(history["loss"], fit(alone, x, y, 8, 1)["loss"], rtol=2e-2)
    assert_mirrored(model)


def test_one_device():
    x, y = data(8)
    plain, _ = compiled(1, lambda: btf.GTDDP(0.03), run_eagerly=True)
    fit(plain, x, y, 8)
    strategy = tf.distribute.OneDeviceStrategy("CPU:1")
    with strategy.scope():
        model, _ = compiled(1, lambda: btf.GTDDP(0.03), run_eagerly=True)
    fit(model, x, y, 8)
    assert "CPU:1" in model.trainable_variables[0].value.device
    for value, reference in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(value, reference)


def test_a_device_by_name():
    x, y = data(8)
    plain, _ = compiled(1, lambda: btf.GTDDP(0.03))
    fit(plain, x, y, 8)
    with tf.device("CPU:2"):
        model, _ = compiled(1, lambda: btf.GTDDP(0.03))
        fit(model, x, y, 8)
    for variable in (*model.variables, *model.optimizer.variables):
        assert "CPU:2" in variable.value.device, variable.path
    for (path, value), (_, reference) in zip(state_of(model), state_of(plain), strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=path)


class Interrupt(keras.callbacks.Callback):
    """Ends training in the first batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_callbacks_of_keras_see_one_model_and_bring_an_interrupted_run_back(tmp_path):
    x, y = data(8)

    def callbacks(*more):
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (epoch + 1))
        return [schedule, keras.callbacks.TerminateOnNaN(), btf.callbacks.GameMonitor(), *more]

    log, stopping = keras.callbacks.CSVLogger(tmp_path / "log.csv"), keras.callbacks.EarlyStopping("loss", patience=9)
    whole, _ = compiled(2, lambda: btf.GTDDP(0.03), run_eagerly=True)
    expected = fit(whole, x, y, 8, 2, callbacks=callbacks(stopping, log))
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 2
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    model, _ = compiled(2, lambda: btf.GTDDP(0.03), run_eagerly=True)
    with pytest.raises(KeyboardInterrupt):
        fit(model, x, y, 8, 2, callbacks=callbacks(backup, Interrupt(1)))
    again, _ = compiled(2, lambda: btf.GTDDP(0.03), run_eagerly=True)
    history = fit(again, x, y, 8, 2, callbacks=callbacks(backup))
    assert history["loss"] == expected["loss"][1:]
    for (path, value), (_, reference) in zip(state_of(again), state_of(whole), strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=path)
    assert_mirrored(again)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: btf.GTDDP(0.1, rollout="nonlinear"), "`model` must run on one replica: with rollout='nonlinear'"),
        (lambda: btf.GTDDP(0.1, value_hessian="outer_product"), "`model` must run on one replica: with rollout"),
        (lambda: btf.DDP(0.1), "`model` must run on one replica: DDP computes one step from all samples"),
        (lambda: btf.baselines.EMSA(0.1), "`model` must run on one replica: EMSA"),
        (lambda: btf.baselines.KWNG(0.1), "`model` must run on one replica: KWNG"),
    ],
)
def test_what_wants_one_replica_says_so(make, rule):
    with pytest.raises(ValueError, match=rule):
        compiled(2, make)


@pytest.mark.parametrize("inside", [False, True])
def test_an_optimizer_from_outside_the_scope_is_refused(inside):
    outside = keras.optimizers.AdamW() if inside else btf.GTDDP(0.1)
    with pytest.raises(ValueError, match="`optimizer` must be made inside the scope of the model's strategy"):
        compiled(2, lambda: btf.GTDDP(inner_optimizer=outside) if inside else outside)


def test_xla_is_for_one_device():
    with pytest.raises(ValueError, match=r"`jit_compile` must be False on several replicas.*tensorflow#56423"):
        compiled(2, lambda: btf.GTDDP(0.1), jit_compile=True)


@pytest.mark.slow
def test_xla_does_not_take_the_replicas_of_keras_either():
    """The reason of the refusal; where this trains it can go."""
    model, _ = compiled(2, lambda: keras.optimizers.SGD(0.1), jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Trying to access resource .* located in device .*CPU:1"):
        fit(model, *data(8), 8, 1)


def test_a_step_outside_the_replicas_is_refused():
    model, strategy = compiled(2, lambda: btf.GTDDP(0.1))
    with strategy.scope(), pytest.raises(ValueError, match="`train_step` must run inside the replicas"):
        model.train_step(data(8))


@pytest.mark.slow
def test_several_steps_per_execution():
    # On two replicas Keras's own SGD fails as well: TensorFlow numbers no collective operation inside a loop.
    x, y = data(32)
    model, _ = compiled(4, lambda: btf.GTDDP(0.03), mlp, steps_per_execution=2)
    single, _ = compiled(4, lambda: btf.GTDDP(0.03), mlp)
    fit(model, x, y, 8)
    fit(single, x, y, 8)
    for value, reference in zip(model.get_weights(), single.get_weights(), strict=True):
        assert_close(value, reference, atol=1e-6)


def test_a_synchronised_normalisation_wants_the_loss_measured_at_every_step():
    def make():
        normalisation = keras.layers.BatchNormalization(synchronized=True)
        return btf.Sequential([keras.Input((4,)), keras.layers.Dense(5), normalisation, keras.layers.Dense(3)])

    with pytest.raises(ValueError, match="`step_control.every` must be 1 with a synchronised BatchNormalization"):
        compiled(2, lambda: btf.GTDDP(0.1, step_control=btf.LevenbergMarquardt(every=2)), make)


class Tokens(btf.Model):
    """A subclassed model, built by `fit`."""

    def __init__(self):
        super().__init__()
        self.table, self.head = keras.layers.Embedding(300, 4), keras.layers.Dense(3)

    def call(self, x):
        return self.head(keras.ops.mean(self.table(x), axis=1))


def layered():
    pooling = keras.layers.GlobalAveragePooling1D()
    parts = [keras.layers.Embedding(300, 4), pooling, keras.layers.Dense(3)]
    return btf.Sequential([keras.Input((3,), dtype="int32"), *parts])


@pytest.mark.parametrize("make", [slow_row(layered), Tokens])
def test_tokens_are_no_floats(make):
    """Before the first step Keras averages the replicas' batches, which makes floats of integers."""
    x = np.random.default_rng(0).integers(0, 300, (8, 3))
    model, _ = compiled(2, lambda: btf.GTDDP(0.01, curvature="adam"), make, run_eagerly=True)
    fit(model, x, data(8)[1], 8, 1)
    assert not model.game.open_loop_players
    assert_mirrored(model)
