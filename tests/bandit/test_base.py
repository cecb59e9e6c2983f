"""What a round does to the state: unbiased losses, exact counts, draws that a seed reproduces."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bandit
from tests.bandit.states import BANDITS, states
from tests.helpers import assert_close
from verification.references import bandit as reference

EPS = np.finfo(np.float64).eps
names = pytest.mark.parametrize("one", BANDITS, ids=str)


def gained(after, before, name="losses"):
    """What a sum grew by, to twice its precision: what rounding left out is in the carry."""
    new, old = (np.longdouble(getattr(state, name).numpy()) for state in (after, before))
    carries = (np.longdouble(getattr(state, f"{name}_carry").numpy()) for state in (after, before))
    return (new - old) + (next(carries) - next(carries))


@given(st.sampled_from(BANDITS), states(), st.integers(0, 2**32 - 1))
def test_the_estimated_loss_is_unbiased(one, state, seed):
    """Sum over the arms of p times what the update adds, exactly; arms that are never drawn can not be estimated."""
    rewards = np.random.default_rng(seed).uniform(size=state.arms)
    p = one.probabilities(state).numpy()
    mean = np.zeros(state.arms, np.longdouble)
    for m in np.flatnonzero(p):
        after = one.update(state, int(m), rewards[m], p[m])
        mean += p[m] * gained(after, state)
    assert_close(mean, (1 - rewards) * (p > 0), atol=64 * EPS)


@given(states(), st.data())
def test_only_the_arm_played_changes(state, data):
    arm = data.draw(st.integers(0, state.arms - 1))
    reward = data.draw(st.floats(0, 1))
    one = bandit.Exp3PlusPlus()
    after = one.update(state, arm, reward)
    others = np.arange(state.arms) != arm
    for before, now in zip(state[1:], after[1:], strict=True):
        assert (now.numpy()[others] == before.numpy()[others]).all()
        assert now.dtype == before.dtype
    assert int(after.rounds) == int(state.rounds) + 1
    assert after.pulls[arm] == state.pulls[arm] + 1
    assert_close(gained(after, state, "rewards")[arm], reward, atol=4 * EPS)
    expected = reference.update(state.losses.numpy(), int(state.rounds) + 1, arm, reward)
    assert_close(after.losses, expected, rtol=64 * EPS, atol=64 * EPS / one.probabilities(state)[arm])


def test_without_a_probability_it_is_the_bandits_own():
    one = bandit.Exp3()
    state = one.update(one.init(3), 1, 0.2)
    p = one.probabilities(state)
    for a, b in zip(one.update(state, 2, 0.5), one.update(state, 2, 0.5, p[2]), strict=True):
        assert_close(a, b)


@names
def test_a_seed_reproduces_a_run(one):
    def run(first):
        state, arms = one.init(3), []
        for k in range(30):
            arm = one.choose(state, [first, k])
            arms.append(int(arm))
            state = one.update(state, arm, 0.2 * float(arm))
        return arms, state

    arms, state = run(5)
    again, same = run(5)
    assert arms == again
    for a, b in zip(state, same, strict=True):
        assert (a.numpy() == b.numpy()).all()
    assert sum(state.pulls.numpy()) == 30
    assert [arms.count(m) for m in range(3)] == state.pulls.numpy().tolist()
    assert run(6)[0] != arms


@pytest.mark.parametrize("jit", [False, True])
def test_draws_have_the_frequencies_of_the_distribution(jit):
    """40000 independent draws: five standard deviations, 5 sqrt(p (1 - p) / n), are below 0.0125."""
    p = np.array([0.1, 0.0, 0.2, 0.7, 0.0], np.float32)
    many = tf.function(lambda seed: bandit.draw(tf.broadcast_to(p, [40000, 5]), seed), jit_compile=jit)
    arms = many(tf.constant([1, 2])).numpy()
    assert arms.dtype == np.int32
    assert_close(np.bincount(arms, minlength=5) / 40000, p, atol=0.0125)
    assert (many(tf.constant([1, 2])).numpy() == arms).all()
    assert (bandit.draw(tf.broadcast_to(p, [40000, 5]), [1, 2]).numpy() == arms).all()


@pytest.mark.parametrize("bits", [0, 2**63, 2**64 - 1], ids=["least", "half", "largest"])
def test_an_arm_of_probability_zero_is_never_drawn(monkeypatch, bits):
    def fixed(shape, seed, **options):
        return tf.fill(shape, tf.constant(bits, options["dtype"]))

    monkeypatch.setattr(tf.random, "stateless_uniform", fixed)
    for p in ([0.0, 1.0, 0.0], [0.0, 0.3, 0.0, 0.7 - 1e-7, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 2.0]):
        arm = int(bandit.draw(tf.constant(p), [0, 0]))
        assert p[arm] > 0
        assert arm == {0: np.flatnonzero(p)[0], 2**64 - 1: np.flatnonzero(p)[-1]}.get(bits, arm)
    assert int(bandit.draw(tf.constant([1e-30, 1.0, 1e-30]), [0, 0])) == 1


def test_bandits_side_by_side_do_not_meet():
    one = bandit.Exp3PlusPlus()
    state = one.init(3, shape=(2,))
    arms, rewards = tf.constant([0, 2]), tf.constant([0.3, 0.9])
    for _ in range(3):
        state = one.update(state, arms, rewards)
    p = one.probabilities(state)
    assert one.choose(state, [0, 0]).shape == [2]
    for i in range(2):
        single = one.init(3)
        for _ in range(3):
            single = one.update(single, arms[i], rewards[i])
        for a, b in zip(state, single, strict=True):
            assert_close(a[i], b, rtol=1e-6)
        assert_close(p[i], one.probabilities(single), rtol=1e-6)


def test_the_state_lives_in_a_compiled_loop():
    """10^6 rounds in float32: every round counts, though a reward of 0.01 is less than the rounding of its sum."""
    one, rounds = bandit.Exp3PlusPlus(), 10**6

    @tf.function(jit_compile=True)
    def play():
        def body(state):
            return (one.update(state, 1, 0.99, one.probabilities(state)[1]),)

        return tf.while_loop(lambda state: state.rounds < rounds, body, [one.init(2)])[0]

    state = play()
    assert int(state.rounds) == rounds
    assert state.pulls.numpy().tolist() == [0, rounds]
    assert_close(state.rewards, [0, 0.99 * rounds], rtol=1e-6)
    p = one.probabilities(state).numpy()
    assert np.isfinite(p).all()
    assert abs(p.sum() - 1) < 1e-6
    wide = reference.probabilities(state.losses.numpy().astype(np.float64), rounds + 1)
    assert_close(p, wide, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_the_state_lives_in_variables_and_the_arm_chooses_a_branch(jit):
    """As in a training step: arm 2 pays best, and the step is traced once."""
    one, traces = bandit.Exp3PlusPlus(), []
    variables = [tf.Variable(part) for part in one.init(3)]

    @tf.function(jit_compile=jit)
    def step(k):
        traces.append(1)
        state = bandit.State(*(variable.read_value() for variable in variables))
        p = one.probabilities(state)
        arm = one.choose(state, tf.stack([7, k]))
        reward = tf.switch_case(arm, [lambda m=m: tf.constant(m / 2) for m in range(3)])
        for variable, part in zip(variables, one.update(state, arm, reward, tf.gather(p, arm)), strict=True):
            variable.assign(part)

    for k in range(200):
        step(tf.constant(k))
    state = bandit.State(*variables)
    assert len(traces) == 1
    assert int(state.rounds) == 200
    assert np.argmax(state.pulls.numpy()) == 2
    assert bandit.mean_rewards(state).numpy().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_small_losses_on_a_large_sum_are_not_lost(mode):
    one = bandit.Exp3()
    start = state = one.init(2)._replace(losses=tf.constant([1e6, 0.0]), rewards=tf.constant([1e6, 0.0]))

    def play(state):
        return one.update(state, 0, tf.constant(0.99), 1.0)

    if mode != "eager":
        play = tf.function(play, jit_compile=mode == "xla")
    for _ in range(100):
        state = play(state)
    assert_close(gained(state, start), [1, 0], atol=1e-4)
    assert_close(gained(state, start, "rewards"), [99, 0], atol=1e-4)


def test_rewards_out_of_range():
    one = bandit.Uniform()
    state = one.init(2)
    for reward in (57.3, -0.1, float("inf")):
        with pytest.raises(ValueError, match=r"`reward` must lie in \[0, 1\]. Received: reward=.* `.*\.Rescaler`"):
            one.update(state, 0, reward)
    for reward, counted in ((57.3, 1), (-0.1, 0), (np.inf, 1), (-np.inf, 0), (np.nan, 0)):
        after = one.update(state, 0, tf.constant(reward, tf.float32))
        assert after.rewards.numpy().tolist() == [counted, 0]
        assert after.losses.numpy().tolist() == [2 * (1 - counted), 0]
    assert one.update(state, 0, float("nan")).losses.numpy().tolist() == [2, 0]
    assert np.isfinite(one.update(state, 0, 0.0, 0.0).losses.numpy()).all()


def test_mean_rewards():
    one = bandit.Uniform()
    state = one.update(one.update(one.init(3), 1, 0.5), 1, 1.0)
    assert bandit.mean_rewards(state).numpy().tolist() == [0.0, 0.75, 0.0]


def test_the_state_has_the_shapes_and_dtypes_it_says():
    state = bandit.UCB1().init(3, shape=(2, 5), dtype="float64")
    assert state.arms == 3
    assert state.rounds.shape == [2, 5]
    assert state.rounds.dtype == state.pulls.dtype == tf.int64
    for part in state[1:]:
        assert part.shape == [2, 5, 3]
    for part in state[2:]:
        assert part.dtype == tf.float64


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda one: one.init(0), "`arms` must be an integer >= 1. Received: arms=0"),
        (lambda one: one.init(2.0), "`arms` must be an integer >= 1. Received: arms=2.0"),
        (lambda one: one.init(2, dtype="float16"), "`state.dtype` must be one of ('float32', 'float64')"),
        (lambda one: one.update(one.init(2), 0.0, 0.5), "`arm` must hold integers. Received: arm='float32'"),
    ],
)
def test_bad_arguments_are_named(make, text):
    with pytest.raises(ValueError) as caught:
        make(bandit.Exp3())
    assert text in str(caught.value)
