"""Step control: the rule by itself, its numbers against the dense model, and what a refused step leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.training.context import Outcome
from bellman_tf.training.step_control import judge
from tests.helpers import assert_close
from verification.references import vanilla

LM = btf.LevenbergMarquardt()
FRESH = btf.LevenbergMarquardt(memory=0.0, missed_memory=0.0, boldness=1.0)


def state(damping=1.0, slope=0.0, own=0.0, curvature=0.0, missed=0.0, level=0.0, steps=0.0, measurements=0.0):
    return tf.constant([damping, slope, own, curvature, missed, level, steps, measurements])


def judged(actual=1.0, predicted=1.0, held_out=(1.0, 1.0, 1.0), control=FRESH, start=None, measured=True, loss=10.0):
    numbers = (tf.constant(x, tf.float32) for x in (predicted, actual, held_out))
    start = state() if start is None else start
    return judge(control, start, Outcome(*numbers), tf.constant(loss), tf.constant(measured))


def verdict(*args, **options):
    found = judged(*args, **options)
    return bool(found.taken), float(found.state[0])


def test_a_step_that_does_less_than_low_of_what_was_predicted_and_ends_high_is_refused():
    # the mean of the losses so far is half the loss of this batch
    high = {"start": state(level=5.0, steps=99.0, slope=1.0, own=1.0, curvature=1.0), "control": LM}
    assert verdict(0.26, **high)[0]
    assert verdict(0.24, **high) == (False, LM.refuse_factor)
    assert verdict(0.24)[0]  # no loss so far is lower
    assert verdict(-1.0) == (False, FRESH.refuse_factor)


@pytest.mark.parametrize("actual", [np.nan, -np.inf, np.inf])
def test_a_loss_that_is_not_finite_refuses_the_step_where_it_is_measured(actual):
    assert verdict(actual) == (False, FRESH.refuse_factor)
    assert verdict(actual, measured=False) == (True, 1.0)


def test_the_damping_goes_where_the_model_of_other_samples_is_least():
    """J falls by s tau - c tau^2 / 2 on other samples: damping c / s is best, downwards not in one leap."""
    assert verdict(held_out=(1.0, 1.0, 3.0)) == (True, pytest.approx(3.0))
    assert verdict(held_out=(2.0, 2.0, 0.01)) == (True, pytest.approx(1 / FRESH.lower_factor))
    bold = btf.LevenbergMarquardt(memory=0.0, boldness=2.0)
    assert verdict(held_out=(1.0, 1.0, 3.0), control=bold) == (True, pytest.approx(1.5))


def test_what_the_model_misses_counts_as_curvature():
    """J falls by s tau - (c / 2 + m) tau^2: best at tau = s / (c + 2 m)."""
    found = judged(0.6, held_out=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(found.state[0], 1.0 + 2 * 0.4, rtol=1e-6)
    assert verdict(1.4, held_out=(1.0, 1.0, 1.0)) == (True, 1.0)  # more than predicted is no reason for longer steps
    assert verdict(0.6, held_out=(1.0, 1.0, 1.0), measured=False) == (True, 1.0)


def test_a_step_far_beyond_the_best_is_refused():
    assert verdict(held_out=(1.0, 1.0, 1e5)) == (False, FRESH.refuse_factor)


def test_noise_cannot_take_the_slope_below_the_trusted_share_of_the_batchs_own():
    assert verdict(held_out=(-5.0, 1.0, 0.2)) == (True, pytest.approx(0.2 / FRESH.trust))


def test_of_a_batch_of_one_only_the_miss_is_known():
    """No sample is left to move: slope and curvature are zero, the slope is taken for its trusted share."""
    assert verdict(1.0, held_out=(0.0, 1.0, 0.0)) == (True, 1.0)
    assert verdict(0.9, held_out=(0.0, 1.0, 0.0)) == (True, pytest.approx(2.0))


def test_means_are_plain_at_first_and_follow_the_damping():
    control = btf.LevenbergMarquardt(boldness=1.0)
    first = judged(0.5, held_out=(2.0, 4.0, 3.0), control=control).state  # (3 + 2 * 0.5) / 2 = twice the damping
    np.testing.assert_allclose(first, [2.0, 1.0, 2.0, 0.75, 0.125, 10.0, 1.0, 1.0], rtol=1e-6)
    second = judged(1.0, held_out=(3.0, 4.0, 1.25), control=control, start=first, loss=5.0).state
    change = first[0] / second[0]
    means = [2 * change, 3 * change, change**2, 0.0625 * change**2, 7.5, 2.0, 2.0]
    np.testing.assert_allclose(second[1:], means, rtol=1e-5)


def test_a_measurement_that_overflows_is_forgotten():
    start = state(slope=1.0, own=1.0, curvature=1.0, steps=3.0)
    found = judged(held_out=(1.0, 1.0, np.inf), control=LM, start=start).state
    change = 1 / found[0]
    np.testing.assert_allclose(found[1:4], [change, change, change**2], rtol=1e-6)
    assert found[6] == 3 and found[7] == 0 and np.isfinite(found).all()


def test_a_decrease_below_the_rounding_of_the_loss_measures_nothing():
    assert verdict(-1e-6, predicted=1e-6, held_out=(1.0, 1.0, 1.0), loss=1.0) == (True, 1.0)
    assert not verdict(-1e-4, predicted=1e-6, held_out=(1.0, 1.0, 1.0), loss=1.0)[0]


def test_a_first_step_without_a_prediction_is_refused_where_it_raises_the_loss():
    """A metric made of gradients is not known at the first step, which is the baseline's."""
    assert verdict(-1.0, predicted=0.0, held_out=(0.0, 0.0, 0.0)) == (False, FRESH.refuse_factor)
    assert verdict(1.0, predicted=0.0, held_out=(0.0, 0.0, 0.0)) == (True, 1.0)


def test_a_rise_below_the_mean_of_the_losses_is_let_pass():
    above = state(slope=1.0, own=1.0, curvature=1.0, level=12.0, steps=99.0)
    slow = btf.LevenbergMarquardt(boldness=1.0)
    assert verdict(-0.5, held_out=(1.0, 1.0, 1.0), start=above, control=slow)[0]
    assert not verdict(-2.5, held_out=(1.0, 1.0, 1.0), start=above, control=slow)[0]


def test_a_stationary_point_changes_nothing():
    start = state(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    found = judged(0.0, predicted=0.0, held_out=(0.0, 0.0, 0.0), start=start)
    assert found.taken
    np.testing.assert_array_equal(found.state, start)


@pytest.mark.parametrize(
    "option",
    [{"low": 1.0}, {"lower_factor": 0.5}, {"memory": 1.0}, {"missed_memory": -1.0}, {"most": 0.0}],
)
def test_numbers_outside_their_range_are_refused(option):
    with pytest.raises(ValueError, match="must be a finite number .* Received"):
        btf.LevenbergMarquardt(**option)


@pytest.mark.parametrize(
    "options", [{"information": "open"}, {"value_hessian": "block_diagonal"}, {"group_size": 2}, {"step_control": "x"}]
)
def test_combinations_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match="`step_control` must"):
        btf.GTDDP(**{"step_control": "levenberg_marquardt", **options})


# ---- in a model


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
    assert float(optimizer.damping) >= LM.refuse_factor


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


class Counted(layers.Layer):
    """Counts its calls in Python, where the model runs eagerly."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


def test_the_loss_after_the_step_costs_a_pass_every_so_many_steps(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    runs = {}
    for every in (1, 3):
        keras.utils.set_random_seed(1)
        counted = Counted()
        model = btf.Sequential([layers.Input((3,)), layers.Dense(4), counted, layers.Dense(3)])
        control = btf.LevenbergMarquardt(every=every)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(btf.GTDDP(1e-3, curvature="identity", step_control=control), loss, run_eagerly=True)
        model.train_on_batch(x, y)  # builds
        before = counted.calls
        for _ in range(6):
            model.train_on_batch(x, y)
        assert int(model.optimizer.iterations) == 7
        runs[every] = counted.calls - before
    assert runs[1] - runs[3] == 6 - 2  # measured at iterations 1 to 6, and at 3 and 6


def test_a_monitor_changes_no_step(rng):
    x, y = rng.normal(size=(32, 3)).astype("float32"), rng.integers(0, 3, 32)
    finals = []
    for callbacks in ([], [btf.callbacks.GameMonitor()]):
        model = chain()
        control = btf.LevenbergMarquardt(every=3)
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


def test_momentum_that_the_policy_knows_trains_under_step_control(rng):
    x = rng.normal(size=(64, 3)).astype("float32")
    model = chain()
    options = {"curvature": "identity", "momentum": 0.9, "step_control": "levenberg_marquardt"}
    model.compile(btf.GTDDP(1e-3, **options), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, np.argmax(x, axis=1), batch_size=16, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]


def test_adams_mean_of_gradients_is_refused():
    with pytest.raises(ValueError, match="`step_control` must be None with Adam's mean"):
        btf.GTDDP(curvature="adam", step_control="levenberg_marquardt")


def test_momentum_outside_the_policy_is_refused():
    with pytest.raises(ValueError, match="`momentum_in_policy` must be True with step control"):
        btf.GTDDP(momentum=0.9, momentum_in_policy=False, step_control="levenberg_marquardt")


def test_a_saved_run_goes_on_exactly(rng, tmp_path):
    batches = [(rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 3, 8)) for _ in range(6)]
    model = chain()
    control = btf.LevenbergMarquardt(every=2, boldness=1.5)
    optimizer = btf.GTDDP(0.3, curvature="kfac", momentum=0.5, step_control=control)
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
        control = btf.LevenbergMarquardt(every=2)
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
