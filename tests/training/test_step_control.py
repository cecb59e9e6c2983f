"""Step control: the rule by itself, its numbers against the dense model, and what a refused step leaves."""

import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from bellman_tf.training.context import Outcome
from bellman_tf.training.step_control import judge

LM = btf.LevenbergMarquardt()
FRESH = btf.LevenbergMarquardt(memory=0.0, missed_memory=0.0, boldness=1.0)


def state(damping=1.0, slope=0.0, own=0.0, curvature=0.0, missed=0.0, level=0.0, steps=0.0, measurements=0.0):
    return tf.constant([damping, slope, own, curvature, missed, level, steps, measurements])


def judged(
    actual=1.0,
    predicted=1.0,
    held_out=(1.0, 1.0, 1.0),
    control=FRESH,
    start=None,
    measured=True,
    loss=10.0,
    first=False,
):
    numbers = (tf.constant(x, tf.float32) for x in (predicted, actual, held_out))
    start = state() if start is None else start
    return judge(control, start, Outcome(*numbers), tf.constant(loss), tf.constant(measured), tf.constant(first))


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


def test_the_first_step_has_to_do_what_was_predicted_even_where_it_lowers_the_loss():
    assert verdict(0.26, first=True)[0]
    assert verdict(0.24, first=True) == (False, FRESH.refuse_factor)
    assert verdict(0.24, first=True, measured=False)[0]
    refused = state(steps=19.0, level=10.0)
    assert not verdict(0.24, first=True, start=refused)[0]
    assert verdict(0.24, first=True, start=state(steps=20.0, level=10.0))[0]  # not for ever: the model may be wrong


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


def test_one_step_cannot_fill_the_means():
    """A sample left out can have a curvature of any size: that refuses the step, and is then to be forgotten."""
    control = btf.LevenbergMarquardt()
    start = state(slope=1.0, own=1.0, curvature=0.8, level=10.0, steps=99.0, measurements=99.0)
    found = judged(1.0, held_out=(-1e3, 1.0, 1e6), control=control, start=start).state
    kept, new = control.memory, 1 - control.memory
    wanted = [4.0, (kept - new) / 4, 1 / 4, (kept * 0.8 + new * 16) / 16]  # damping, slope, own slope, curvature
    np.testing.assert_allclose(found[:4], wanted, rtol=1e-5)


def test_one_sample_left_out_cannot_promise_more_than_the_batch_gains():
    """A slope of a hundred times the batch's own lengthened steps until the loss rose, fifty steps after it."""
    control = btf.LevenbergMarquardt()
    start = state(slope=1.0, own=1.0, curvature=0.8, level=10.0, steps=99.0, measurements=99.0)
    modest, huge = (judged(1.0, held_out=(slope, 1.0, 0.8), control=control, start=start) for slope in (1.0, 100.0))
    assert huge.taken
    np.testing.assert_array_equal(huge.state, modest.state)


def test_one_batch_weighs_at_most_a_fixed_multiple_of_the_mean_one():
    """A batch of huge inputs had a slope that set the damping for the next two hundred steps."""
    control = btf.LevenbergMarquardt()
    start = state(slope=1.0, own=1.0, curvature=0.8, missed=0.1, level=10.0, steps=99.0, measurements=99.0)
    huge, more = (judged(-size, size, (0.5 * size, size, size), control, start, loss=size).state for size in (1e4, 1e8))
    np.testing.assert_allclose(huge, more, rtol=1e-5)
    kept, limit = control.memory, control.refuse_factor**2
    np.testing.assert_allclose(huge[2] * control.refuse_factor, kept + (1 - kept) * limit, rtol=1e-5)  # own slope
    np.testing.assert_allclose(huge[5], kept * 10 + (1 - kept) * (1 + limit) * 10, rtol=1e-5)  # mean of the losses


def test_a_first_step_of_which_the_gram_matrix_says_nothing_is_not_remembered():
    """Adam's first step has no metric: a slope of 1e-33 was the mean that the next hundred steps were measured by."""
    first = judged(0.7, 0.16, (1e-33, 1e-33, 0.0), control=LM, first=True)
    assert first.taken and not np.any(first.state[1:4]) and first.state[6] == 0
    second = judged(1.0, 1.0, (1.0, 1.0, 1.0), control=LM, start=first.state)
    np.testing.assert_allclose(second.state[1:4], 1 / second.state[0] ** np.array([1, 1, 2]), rtol=1e-6)


def test_layers_without_a_gram_matrix_may_do_nearly_all_of_every_step():
    found = judged(1.0, 1.0, (1e-4, 1e-4, 1e-4), control=LM, start=state(slope=1e-4, own=1e-4, steps=9.0)).state
    assert found[6] == 10 and found[7] == 1  # remembered


@pytest.mark.parametrize("zero", ["own", "level"])
def test_a_mean_of_zero_does_not_stay_zero(zero):
    numbers = {"own": 1.0, "level": 10.0} | {zero: 0.0}
    found = judged(start=state(slope=1.0, curvature=0.8, steps=99.0, measurements=99.0, **numbers), control=LM).state
    assert found[{"own": 2, "level": 5}[zero]] > 0


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
