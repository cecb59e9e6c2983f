"""GameMonitor and AlignmentReward through `fit`."""

import csv

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import slow_row
from tests.strategies.networks import cross_entropy, labels, normal


def branches():
    keras.utils.set_random_seed(0)
    inputs = layers.Input((6,))
    x = layers.Dense(5, activation="tanh")(inputs)
    y = layers.Dense(5, activation="tanh")(layers.Dense(5, activation="tanh")(x))
    return btf.Model(inputs, layers.Dense(3)(layers.Add()([y, layers.Dense(5)(x)])))


def fit(optimizer, *callbacks, epochs=2, **keywords):
    model = branches()
    model.compile(optimizer, **cross_entropy())
    x, y = normal(24, 6), labels(24)
    return model, model.fit(
        x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks), **keywords
    )


def test_the_epoch_gets_the_means_over_its_steps(tmp_path):
    path = tmp_path / "deep" / "game.csv"
    model, history = fit(btf.GTDDP(0.3, curvature="identity"), btf.callbacks.GameMonitor(csv=str(path)))
    with path.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("predicted_reduction", "actual_reduction", "weight_spread", "leverage", "feedback_ratio/stage_2"):
        for epoch in range(2):
            mean = np.mean([row[name] for row in rows[3 * epoch : 3 * epoch + 3]])
            assert history.history[name][epoch] == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert history.history["reduction_ratio"][0] == pytest.approx(
        history.history["actual_reduction"][0] / history.history["predicted_reduction"][0]
    )
    assert history.history["damping"] == [1.0, 1.0]
    assert history.history["rejected_batches"] == [0, 0]


def test_the_actual_reduction_is_that_of_the_batch():
    model, x, y = branches(), normal(8, 6), labels(8)
    model.compile(btf.GTDDP(0.3, curvature="identity"), **cross_entropy())
    before = model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[btf.callbacks.GameMonitor()]).history
    assert history["actual_reduction"][0] == pytest.approx(before - model.evaluate(x, y, verbose=0), rel=1e-3)


def test_an_epoch_that_is_not_finite_does_not_spoil_the_next():
    class Poison(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.model.optimizer.monitor.assign(np.full(self.model.optimizer.monitor.shape, np.nan))

    _, history = fit(btf.GTDDP(0.03), Poison(), btf.callbacks.GameMonitor())
    told = history.history
    assert np.isfinite(told["leverage"][-1])
    assert np.isfinite(told["damping"][-1])


def test_the_latest_values_outlive_the_epoch():
    monitor = btf.callbacks.GameMonitor()
    model, _ = fit(btf.GTDDP(0.03), monitor, epochs=1)
    before = model.optimizer.monitor.numpy()
    assert before[1].any()
    monitor.on_epoch_begin(1)
    after = model.optimizer.monitor.numpy()
    assert not after[0].any()
    np.testing.assert_array_equal(after[1], before[1])


def test_watching_changes_no_step():
    watched, _ = fit(btf.GTDDP(0.03), btf.callbacks.GameMonitor())
    plain, _ = fit(btf.GTDDP(0.03))
    for a, b in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_afterwards_nothing_is_watched():
    model, _ = fit(btf.GTDDP(0.03), btf.callbacks.GameMonitor())
    before = model.optimizer.monitor.numpy()
    history = model.fit(normal(8, 6), labels(8), verbose=0).history
    np.testing.assert_array_equal(before, model.optimizer.monitor.numpy())
    assert "damping" not in history


@pytest.mark.parametrize(
    "make",
    [
        lambda: btf.GTDDP(0.03, step_control="levenberg_marquardt"),
        lambda: btf.GTDDP(0.1, curvature="identity", value_hessian="block_diagonal"),
        lambda: btf.GTDDP.as_published(0.03),
        lambda: btf.DGNOpt(0.1, curvature="identity", alignment="adaptive"),
        lambda: btf.KFAC(),
        lambda: btf.DDP(0.1),
    ],
)
def test_it_watches_every_optimizer(make):
    _, history = fit(make(), btf.callbacks.GameMonitor(), epochs=1)
    predicted = "predicted_reduction" in history.history
    assert predicted == ("reduction_ratio" in history.history)
    told = history.history
    assert all(np.isfinite(values).all() for values in told.values()), told
    name = type(make()).__name__
    assert ("actual_reduction" in told) == (name not in {"KFAC", "DDP"})
    assert any(key.startswith("alignment_probability") for key in told) == (name == "DGNOpt")


def test_tensorboard_summaries_are_written(tmp_path):
    fit(btf.GTDDP(0.03), btf.callbacks.GameMonitor(tensorboard=str(tmp_path), every=2), epochs=1)
    [file] = tmp_path.iterdir()
    assert b"feedback_ratio/stage_1" in file.read_bytes()


def test_a_keras_optimizer_is_refused():
    with pytest.raises(ValueError, match="`optimizer` must be of this package"):
        fit(keras.optimizers.SGD(), btf.callbacks.GameMonitor())


def test_held_out_accuracy_moves_the_bandit():
    optimizer = btf.DGNOpt(0.1, curvature="identity", alignment="adaptive", reward="held_out")
    model, _ = fit(optimizer, btf.callbacks.AlignmentReward(normal(16, 6), labels(16), every=2), epochs=2)
    assert int(optimizer.pulls.numpy().sum()) == 3


def test_tensorboard_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`tensorboard` must .* pip install tensorboard"):
        btf.callbacks.GameMonitor(tensorboard="logs")


FOREIGN = {
    "sgd inside": {"inner_optimizer": lambda: keras.optimizers.SGD(1e-3, momentum=0.9)},
    "adamw inside": {"inner_optimizer": lambda: keras.optimizers.AdamW(1e-3)},
    "momentum": {"learning_rate": 1e-3, "curvature": "identity", "momentum": 0.9, "nesterov": True},
    "kfac": {"learning_rate": 1e-4, "momentum": 0.5, "weight_decay": 0.1},
    "feedback": {"learning_rate": 1e-3, "curvature": "identity", "momentum": 0.9, "information": "feedback"},
}


SLOW_FOREIGN = [("sgd inside", False), ("adamw inside", True), ("momentum", False)]


@pytest.mark.parametrize(
    ("case", "jit"),
    [("adamw inside", False), ("kfac", False), ("feedback", False)] + [slow_row(*row) for row in SLOW_FOREIGN],
)
def test_of_moves_that_the_recursion_does_not_choose_the_end_of_the_network_says_the_decrease(case, jit):
    """Short moves: slope and curvature at the end say what J does, and the ratio is one."""
    options = {key: value() if callable(value) else value for key, value in FOREIGN[case].items()}
    model, x, y = branches(), normal(8, 6), labels(8)
    model.compile(btf.GTDDP(**options), **cross_entropy(), jit_compile=jit)
    told = model.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[btf.callbacks.GameMonitor()]).history
    np.testing.assert_allclose(told["actual_reduction"][:3], -np.diff(told["loss"]), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(told["reduction_ratio"], 1, atol=0.01)  # third derivatives, times moves of 1e-3
    assert np.all(np.array(told["leverage"][1:]) != 0)  # Adam has no metric before its first step
    assert all(np.isfinite(values).all() for values in told.values())


def test_watching_changes_no_step_of_an_inner_optimizer():
    make = lambda: btf.GTDDP(inner_optimizer=keras.optimizers.Adam(0.01))
    for a, b in zip(*(fit(make(), *c)[0].get_weights() for c in ([btf.callbacks.GameMonitor()], [])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_bad_batch_of_an_inner_optimizer_is_not_in_the_means():
    model, x, y = branches(), normal(24, 6), labels(24)
    x[3, 1] = np.inf
    model.compile(btf.GTDDP(inner_optimizer="adam"), **cross_entropy())
    told = model.fit(x, y, batch_size=8, verbose=0, callbacks=[btf.callbacks.GameMonitor()]).history
    assert told["rejected_batches"] == [1]
    assert np.isfinite([told["actual_reduction"], told["predicted_reduction"]]).all()


def test_of_dense_ddp_there_are_only_counts(tmp_path):
    model = btf.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(2)])
    model.compile(btf.DDP(0.1), "mse")
    x, y = np.ones((8, 4), "float32"), np.zeros((8, 2), "float32")
    monitor = btf.callbacks.GameMonitor(csv=str(tmp_path / "steps.csv"))
    history = model.fit(x, y, batch_size=4, verbose=0, callbacks=[monitor]).history
    assert history["rejected_batches"] == [0.0]
    assert (tmp_path / "steps.csv").read_text().split() == ["step,rejected_batches", "1,0.0", "2,0.0"]
