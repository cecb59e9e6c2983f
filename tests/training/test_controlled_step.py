"""Steps of a model under step control: what is measured, refused, saved, and left alone."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from verification.references import vanilla


def chain(regularizer=None):
    keras.utils.set_random_seed(1)
    hidden = [layers.Dense(4, activation="tanh", kernel_regularizer=regularizer), layers.Dense(3, activation="tanh")]
    return btf.Sequential([layers.Input((3,)), *hidden, layers.Dense(3)])


def compiled(rate, regularizer=None, **options):
    model = chain(regularizer)
    optimizer = btf.GTDDP(rate, curvature="identity", step_control="levenberg_marquardt", **options)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    return model


def observed(model, x, y):
    """The outcomes of one step."""
    outcomes = []
    model.optimizer.observe = lambda outcome, accepted: outcomes.append(outcome)
    model.train_on_batch(x, y)
    return outcomes[0]


@pytest.mark.usefixtures("_float64")
def test_the_predicted_reduction_is_that_of_the_dense_model(rng):
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    model = compiled(0.4, terminal_hessian="full")
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.layers]
    logits = vanilla.forward(x, weights)[0][-1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    H = np.einsum("bi,ij->bij", p, np.eye(3)) - np.einsum("bi,bj->bij", p, p)
    _, decrease = vanilla.step(x, weights, p - np.eye(3)[y], H, 0.4, second_order=False)
    assert_close(float(observed(model, x, y).predicted), decrease, rtol=1e-10)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_the_actual_reduction_is_that_of_evaluating_again(rng, regularizer):
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    model = compiled(0.4, regularizer)
    before = model.evaluate(x, y, batch_size=5, verbose=0)
    actual = float(observed(model, x, y).actual)
    assert_close(actual, before - model.evaluate(x, y, batch_size=5, verbose=0), rtol=1e-9, atol=1e-12)


def test_a_refused_step_leaves_everything_but_the_damping(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    model = compiled(1e6)
    before = model.get_weights()
    model.train_on_batch(x, y)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    optimizer = model.optimizer
    assert int(optimizer.refused_steps) == 1 and int(optimizer.iterations) == int(optimizer.rejected_batches) == 0
    assert float(optimizer.damping) >= btf.LevenbergMarquardt().refuse_factor


def test_a_first_step_that_falls_far_short_of_its_prediction_is_refused(rng):
    """One such step leaves a transformer where 200 more learn little (keras_examples/README.md, Step control)."""
    x, y = np.tile(rng.normal(size=(6, 3)), (4, 1)).astype("float32"), np.tile(rng.integers(0, 3, 6), 4)
    model = compiled(1.0)
    model.set_weights([10 * value if value.shape == (3, 3) else value for value in model.get_weights()])
    before = model.get_weights()
    outcome = observed(model, x, y)
    assert 0 < float(outcome.actual) < 0.25 * float(outcome.predicted)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    for _ in range(6):
        model.train_on_batch(x, y)
    assert int(model.optimizer.iterations) > 0  # the damping has found a step that does what it promises


def test_a_bad_batch_leaves_the_damping_too(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    model = compiled(0.1)
    model.train_on_batch(x, y)
    damping = float(model.optimizer.damping)
    x[0, 0] = np.nan
    model.train_on_batch(x, y)
    assert int(model.optimizer.rejected_batches) == 1 and int(model.optimizer.refused_steps) == 0
    assert float(model.optimizer.damping) == damping


@pytest.mark.parametrize("rate", [1e-3, 1e3])
def test_a_bad_learning_rate_is_mended(rng, rate):
    x = rng.normal(size=(64, 3)).astype("float32")
    y = np.argmax(x, axis=1)
    model = chain()
    model.compile(
        btf.GTDDP(rate, curvature="identity", step_control="levenberg_marquardt"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(x, y, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]


def test_one_confident_sample_does_not_stop_the_training():
    """Left out of its step it had a curvature of 1e5, and the damping went to 2e4 in seven refusals."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(512, 8)).astype("float32")
    y = np.argmax(x[:, :4], axis=1)
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(16, activation="relu"), layers.BatchNormalization()]
    model = btf.Sequential([layers.Input((8,)), *hidden, layers.Dense(4)])
    optimizer = btf.GTDDP(1.0, step_control="levenberg_marquardt")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    outcomes = []
    optimizer.observe = lambda outcome, accepted: outcomes.append(outcome.held_out.numpy())
    for start in range(0, 512, 32):
        model.train_on_batch(x[start : start + 32], y[start : start + 32])
    assert max(curvature / own for _, own, curvature in outcomes) > 1e3  # the case is still there
    assert float(optimizer.damping) < 100


@pytest.mark.parametrize("curvature", ["identity", "kfac"])
def test_one_batch_of_huge_inputs_does_not_spoil_the_training(curvature):
    """The loss of 2e3 and the slope of one batch filled the means, and the next two hundred steps were too long."""
    steps = 150
    generator = np.random.default_rng(0)
    x = generator.normal(size=(steps, 32, 8)).astype("float32")
    y = np.argmax(x[..., :4], axis=-1)
    final = []
    for size in (1.0, 1e4):
        keras.utils.set_random_seed(0)
        model = btf.Sequential([layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(4)])
        optimizer = btf.GTDDP(1.0, curvature=curvature, step_control="levenberg_marquardt")
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        scales = np.where(np.arange(steps) == 3, size, 1.0)[:, None, None].astype("float32")
        losses = [model.train_on_batch(*batch) for batch in zip(x * scales, y, strict=True)]
        final.append(np.mean(losses[-20:]))
    assert final[1] < 1.5 * final[0]


class Counted(layers.Layer):
    """Counts its calls in Python, where the model runs eagerly."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


def test_the_loss_after_the_step_costs_a_pass_every_so_many_steps(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    runs = {}
    for every, settling in ((1, 0), (3, 0), (3, 5)):
        keras.utils.set_random_seed(1)
        counted = Counted()
        model = btf.Sequential([layers.Input((3,)), layers.Dense(4), counted, layers.Dense(3)])
        control = btf.LevenbergMarquardt(every=every, settling=settling)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(btf.GTDDP(1e-3, curvature="identity", step_control=control), loss, run_eagerly=True)
        model.train_on_batch(x, y)  # builds
        before = counted.calls
        for _ in range(6):
            model.train_on_batch(x, y)
        assert int(model.optimizer.iterations) == 7
        runs[every, settling] = counted.calls - before
    assert runs[1, 0] - runs[3, 0] == 6 - 2  # measured at iterations 1 to 6, and at 3 and 6
    assert runs[1, 0] - runs[3, 5] == 6 - 5  # and at 1 to 4 and 6


def test_a_monitor_changes_no_step(rng):
    x, y = rng.normal(size=(32, 3)).astype("float32"), rng.integers(0, 3, 32)
    finals = []
    for callbacks in ([], [btf.callbacks.GameMonitor()]):
        model = chain()
        control = btf.LevenbergMarquardt(every=3, settling=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(btf.GTDDP(0.3, curvature="identity", step_control=control), loss)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        finals.append(model.optimizer.control_state.numpy())
    assert_close(finals[0], finals[1], rtol=1e-5)


@pytest.mark.parametrize("curvature", ["identity", "rmsprop", btf.curvature.Adam(beta_1=0.0), "kfac", "ekfac"])
def test_one_sample_at_a_time_trains_with_every_curvature(rng, curvature):
    x = rng.normal(size=(16, 3)).astype("float32")
    model = chain()
    model.layers[1].trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(btf.GTDDP(1e-3, curvature=curvature, step_control="levenberg_marquardt"), loss)
    frozen = model.layers[1].kernel.numpy()
    history = model.fit(x, np.argmax(x, axis=1), batch_size=1, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    np.testing.assert_array_equal(model.layers[1].kernel.numpy(), frozen)


def test_zero_gradients_change_nothing(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), np.zeros((6, 3), "float32")
    model = chain()
    model.layers[-1].kernel.assign(np.zeros((3, 3)))
    model.compile(btf.GTDDP(0.1, curvature="identity", step_control="levenberg_marquardt"), "mse")
    before, state = model.get_weights(), model.optimizer
    model.train_on_batch(x, y)
    assert float(state.damping) == 1.0 and int(state.iterations) == 1
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("argument", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_is_refused(argument):
    """A step clipped to a hundredth was refused 14 times, and the damping of 1e5 then held the network still."""
    with pytest.raises(ValueError, match=f"`{argument}` must be None with step control.*leave one"):
        btf.GTDDP(1.0, step_control="levenberg_marquardt", **{argument: 0.01})
    btf.GTDDP(1.0, step_control="levenberg_marquardt", **{argument: 0.0})  # Keras clips nothing then


def test_adams_mean_of_gradients_is_refused():
    with pytest.raises(ValueError, match="`step_control` must be None with Adam's mean"):
        btf.GTDDP(curvature="adam", step_control="levenberg_marquardt")


@pytest.mark.parametrize("in_policy", [True, False])
def test_momentum_is_refused(in_policy):
    with pytest.raises(ValueError, match="`momentum` must be 0 with step control"):
        btf.GTDDP(momentum=0.9, momentum_in_policy=in_policy, step_control="levenberg_marquardt")


def test_a_saved_run_goes_on_exactly(rng, tmp_path):
    batches = [(rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 3, 8)) for _ in range(6)]
    model = chain()
    control = btf.LevenbergMarquardt(every=2, settling=3, boldness=1.5)
    optimizer = btf.GTDDP(0.3, curvature="kfac", step_control=control)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for batch in batches[:3]:
        model.train_on_batch(*batch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.step_control == control
    for each in (model, loaded):
        for batch in batches[3:]:
            each.train_on_batch(*batch)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(model.optimizer.control_state, loaded.optimizer.control_state)
    assert float(model.optimizer.damping) != 1.0


def test_eager_compiled_and_xla_steps_agree(rng):
    x, y = rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 3, 8)
    states = []
    for options in ({"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}):
        model = chain()
        control = btf.LevenbergMarquardt(every=2, settling=1)
        optimizer = btf.GTDDP(0.1, curvature="identity", step_control=control)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
        for _ in range(4):
            model.train_on_batch(x, y)
        states.append(optimizer.control_state.numpy())
    assert_close(states[1], states[0], rtol=1e-4)
    assert_close(states[2], states[0], rtol=1e-4)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("terminal_hessian", ["matched", "full"])
@pytest.mark.parametrize("information", ["feedback", "cooperative_open", "cooperative"])
def test_both_roll_outs_leave_the_same_samples_out(rng, information, terminal_hessian):
    """What samples without a part in the step see depends on Gram matrices alone."""
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    options = {"information": information, "terminal_hessian": terminal_hessian}
    seen = [
        observed(compiled(0.4, "l2", rollout=rollout, **options), x, y).held_out for rollout in ("linear", "nonlinear")
    ]
    assert_close(seen[0], seen[1], rtol=1e-8)
