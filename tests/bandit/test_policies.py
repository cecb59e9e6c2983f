"""The distributions the bandits draw from, against their definitions and against a float64 transcription."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bandit
from tests.bandit.states import BANDITS, states, to_state
from tests.helpers import assert_close
from verification.references import bandit as reference

EPS = np.finfo(np.float64).eps
names = pytest.mark.parametrize("one", BANDITS, ids=str)
exp3_plus_plus = st.sampled_from([one for one in BANDITS if isinstance(one, bandit.Exp3PlusPlus)])


def confidence_gaps(state):
    """Seldin and Lugosi 2017: what the confidence bounds of the mean losses leave of the gap, arm by arm."""
    k, M = int(state.rounds) + 1, state.arms
    bounds = []
    for pulls, reward in zip(state.pulls.numpy(), state.rewards.numpy(), strict=True):
        if pulls == 0:
            bounds.append((0.0, 1.0))
            continue
        radius = math.sqrt(3 * math.log(k * M ** (1 / 3)) / (2 * pulls))
        mean = (pulls - reward) / pulls
        bounds.append((max(0.0, mean - radius), min(1.0, mean + radius)))
    least_upper = min(upper for _, upper in bounds)
    return np.array([max(0.0, lower - least_upper) for lower, _ in bounds])


def exploration(one, state):
    """epsilon by the formula, for both analyses."""
    k, M = int(state.rounds) + 1, state.arms
    losses = state.losses.numpy().astype(np.float64)
    if one.analysis == "2014":
        return reference.exploration_rates(losses, k, constant=one.constant or 18.0, power=2)
    gaps = confidence_gaps(state)
    with np.errstate(divide="ignore", invalid="ignore"):
        xi = np.where(gaps > 0, (one.constant or 256.0) * math.log(k) / (k * gaps**2), np.inf)
    return np.minimum(min(1 / (2 * M), math.sqrt(math.log(M) / (k * M)) / 2), xi)


@names
@given(states())
def test_they_are_distributions(one, state):
    p = one.probabilities(state).numpy()
    assert (p >= 0).all()
    assert abs(p.sum() - 1) <= 4 * EPS * len(p)


@names
def test_the_first_round_is_uniform(one):
    for arms in (1, 2, 5):
        assert_close(one.probabilities(one.init(arms, dtype="float64")), np.full(arms, 1 / arms), rtol=4 * EPS)


@names
@given(states(), st.randoms(use_true_random=False))
def test_renaming_the_arms_renames_the_probabilities(one, state, random):
    order = list(range(state.arms))
    random.shuffle(order)
    renamed = to_state(int(state.rounds), *(x.numpy()[order] for x in (state.pulls, state.losses, state.rewards)))
    assert_close(one.probabilities(renamed), one.probabilities(state).numpy()[order], rtol=8 * EPS)


@names
@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_one_arm_is_always_played(one, rounds, loss):
    assert one.probabilities(to_state(rounds, [rounds], [loss], [0.5 * rounds])).numpy().tolist() == [1.0]


@given(exp3_plus_plus, states(least_arms=2))
def test_exp3_plus_plus_is_algorithm_3(one, state):
    """The reference's exponent has rounding eps * eta * (L - min L), which multiplies weights below its exponential."""
    k, losses = int(state.rounds) + 1, state.losses.numpy()
    epsilon = exploration(one, state)
    weights = np.exp(-reference.learning_rate(state.arms, k) * (losses - losses.min()))
    rho = weights / weights.sum()
    assert_close(one.exploration(state), epsilon, rtol=64 * EPS, label="epsilon")
    assert_close(one.probabilities(state), (1 - epsilon.sum()) * rho + epsilon, rtol=64 * EPS, label="rho~")
    if one.analysis == "2014":
        options = {"constant": one.constant or 18.0, "power": 2}
        assert_close(one.probabilities(state), reference.probabilities(losses, k, **options), rtol=64 * EPS)


@given(exp3_plus_plus, states())
def test_every_arm_keeps_its_exploration(one, state):
    epsilon, p = one.exploration(state).numpy(), one.probabilities(state).numpy()
    assert (epsilon >= 0).all()
    assert (p >= epsilon).all()
    assert epsilon.sum() <= 0.5 * (1 + 4 * EPS)
    assert epsilon.max() <= 1 / (2 * state.arms)


def test_the_confidence_gaps_by_hand():
    """k = 100, two arms of 49 and 50 pulls and one never played; loss 0 and 1, radius sqrt(ln(1e6 * 3) / 100)."""
    state = to_state(99, [49, 50, 0], [0.0, 0.0, 0.0], [49.0, 0.0, 0.0])
    radii = np.sqrt(np.log(3e6) / (2 * np.array([49, 50])))
    gaps = bandit.Exp3PlusPlus("2017").gaps(state).numpy()
    assert_close(gaps, [0.0, 1 - radii[1] - radii[0], 0.0], rtol=8 * EPS)
    assert gaps[1] > 0.2


def test_the_empirical_gaps_by_hand():
    gaps = bandit.Exp3PlusPlus().gaps(to_state(9, [3, 3, 3], [1.0, 3.0, 50.0], [0.0, 0.0, 0.0]))
    assert_close(gaps, [0.0, 0.2, 1.0], rtol=4 * EPS)


def test_both_analyses_bind_in_the_end():
    """xi < the 1 / sqrt(k) cap: late, and exactly where the catalogue's inequality says for a power of one."""
    for one, rounds in ((bandit.Exp3PlusPlus(), 10**9), (bandit.Exp3PlusPlus("2017"), 10**9)):
        bad = rounds // 2
        state = to_state(rounds, [rounds - bad, bad], [0.0, float(rounds)], [rounds - bad, 0.0])
        free, capped = one.exploration(state).numpy()[::-1]
        assert free < capped
    one = bandit.Exp3PlusPlus("2017", 1.0)
    for rounds in (10, 100, 1000, 10**4, 10**5):
        k, bad = rounds + 1, rounds // 2
        state = to_state(rounds, [rounds - bad, bad], [0.0, float(rounds)], [rounds - bad, 0.0])
        gap = one.gaps(state).numpy()[1]
        if gap > 0:
            binds = math.sqrt(k) / math.log(k) > 2 * math.sqrt(2 / math.log(2)) / gap**2
            assert (one.exploration(state).numpy()[1] < one.exploration(state).numpy()[0]) == binds


def test_a_smaller_constant_explores_less():
    state = to_state(10**4, [5000, 5000], [0.0, 5000.0], [5000.0, 0.0])
    for analysis in ("2014", "2017"):
        rates = [bandit.Exp3PlusPlus(analysis, c).exploration(state).numpy()[1] for c in (1e-4, 1e-2, 1.0)]
        assert rates[0] < rates[1] <= rates[2]
        default = {"2014": 18.0, "2017": 256.0}[analysis]
        late = to_state(10**9, [5 * 10**8] * 2, [0.0, 5e8], [5e8, 0.0])
        explicit = bandit.Exp3PlusPlus(analysis, default).exploration(late)
        assert_close(bandit.Exp3PlusPlus(analysis).exploration(late), explicit)


@given(states(least_arms=2), st.floats(0.1, 3))
def test_exp3_is_exponential_weights(state, rate):
    k, losses = int(state.rounds) + 1, state.losses.numpy()
    weights = np.exp(-2 * rate * reference.learning_rate(state.arms, k) * (losses - losses.min()))
    assert_close(bandit.Exp3(rate).probabilities(state), weights / weights.sum(), rtol=64 * EPS)


@given(states())
def test_ucb1_plays_what_its_bound_says(state):
    p, pulls = bandit.UCB1().probabilities(state).numpy(), state.pulls.numpy()
    assert len(set(p[p > 0])) == 1  # uniform over the candidates
    if (pulls == 0).any():
        assert ((p > 0) == (pulls == 0)).all()
        return
    bounds = state.rewards.numpy() / pulls + np.sqrt(2 * math.log(int(state.rounds)) / pulls)
    assert (bounds[p > 0] >= bounds.max() - 1e-12 * abs(bounds.max())).all()
    assert (p > 0)[bounds == bounds.max()].all()


def test_ucb1_counts_the_rounds_so_far():
    """Pulls 1 and 2: the bonuses differ by 0.434 after 3 rounds, would differ by 0.488 after 4; the means by 0.46."""
    state = to_state(3, [1, 2], [0.0, 0.0], [0.0, 0.92])
    assert bandit.UCB1().probabilities(state).numpy().tolist() == [0, 1]
    assert bandit.UCB1(2.8).probabilities(state).numpy().tolist() == [1, 0]


def test_ucb1_tries_every_arm_first():
    one = bandit.UCB1()
    state, seen = one.init(4), []
    for k in range(4):
        arm = int(one.choose(state, [0, k]))
        seen.append(arm)
        state = one.update(state, arm, 1.0)
    assert sorted(seen) == [0, 1, 2, 3]


@names
@given(states(dtype=np.float32))
def test_float32_follows_float64(one, state):
    """Errors grow with the exponent eta (L - min L); UCB1 is compared where its choice is not a near tie."""
    wide = to_state(int(state.rounds), *(x.numpy() for x in (state.pulls, state.losses, state.rewards)))
    narrow, p = one.probabilities(state).numpy(), one.probabilities(wide).numpy()
    assert narrow.dtype == np.float32
    if isinstance(one, bandit.UCB1):
        pulls = np.maximum(state.pulls.numpy(), 1)
        bounds = wide.rewards.numpy() / pulls + np.sqrt(2 * math.log(max(1, int(state.rounds))) / pulls)
        runner_up, best = np.sort([-np.inf, *bounds])[-2:]
        if best - runner_up < 1e-5 * best:
            return
    assert_close(narrow, p, atol=2e-6)


@names
def test_graph_and_xla_agree_with_eager(one, rng):
    pulls = rng.multinomial(500, [0.1, 0.2, 0.3, 0.4])
    state = to_state(500, pulls, 500 * rng.uniform(size=4), pulls * rng.uniform(size=4), np.float32)

    def play(state, seed):
        p = one.probabilities(state)
        arm = one.choose(state, seed)
        return p, arm, one.update(state, arm, 0.3, tf.gather(p, arm))

    seed = tf.constant([3, 4])
    p, arm, after = play(state, seed)
    for jit in (False, True):
        q, other, state_after = tf.function(play, jit_compile=jit)(state, seed)
        assert_close(q, p, rtol=1e-6)
        assert int(other) == int(arm)
        for one_part, part in zip(state_after, after, strict=True):
            assert one_part.dtype == part.dtype
            assert_close(one_part, part, rtol=1e-6)


@names
def test_serialisation_is_a_round_trip(one):
    config = keras.saving.serialize_keras_object(one)
    assert config["registered_name"] == f"bellman_tf.bandit>{type(one).__name__}"
    assert keras.saving.deserialize_keras_object(config) == one
    assert bandit.get(config) == one
    assert hash(one) == hash(type(one).from_config(one.get_config()))


def test_get_resolves_names_and_objects():
    expected = {
        "exp3++": bandit.Exp3PlusPlus(), "exp3": bandit.Exp3(), "ucb1": bandit.UCB1(), "uniform": bandit.Uniform(),
    }  # fmt: skip
    for name, one in expected.items():
        assert bandit.get(name) == one
        assert bandit.get(one) is one
    for wrong in ("exp4", None, 3, bandit.UCB1):
        with pytest.raises(ValueError, match=r"`bandit` must be one of 'exp3\+\+', 'exp3', 'ucb1', 'uniform' or"):
            bandit.get(wrong)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: bandit.Exp3PlusPlus("2015"), "`analysis` must be one of '2014', '2017'. Received: analysis='2015'"),
        (lambda: bandit.Exp3PlusPlus(constant=0), "`constant` must be a finite number > 0. Received: constant=0"),
        (lambda: bandit.Exp3(-1.0), "`rate` must be a finite number > 0. Received: rate=-1.0"),
        (lambda: bandit.UCB1(float("nan")), "`exploration` must be a finite number > 0. Received: exploration=nan"),
    ],
)
def test_bad_options_are_named(make, text):
    with pytest.raises(ValueError) as caught:
        make()
    assert text in str(caught.value)


def test_a_bandit_of_ones_own_needs_probabilities_only():
    class Last(bandit.Bandit):
        def probabilities(self, state):
            return tf.one_hot(state.arms - 1, state.arms, dtype=state.losses.dtype)

    one = Last()
    assert int(one.choose(one.init(3), [0, 0])) == 2
    assert bandit.get(one) is one
    with pytest.raises(NotImplementedError, match="Bandit must define `probabilities`"):
        bandit.Bandit().probabilities(one.init(3))
