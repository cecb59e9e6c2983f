"""Regret against theory, and the plays of the better arm that the claims state, over many runs at once."""

import math

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import bandit
from tests.helpers import assert_close
from verification.references import bandit as reference

RUNS = 60


def arms_played(one, means, seed=0):
    """[rounds, RUNS] from mean rewards [rounds, M], paid as 0 or 1."""
    means = np.asarray(means, np.float32)
    rounds, arms = means.shape
    luck = tf.constant(np.random.default_rng(seed).random((rounds, RUNS)), tf.float32)

    @tf.function
    def play(table):
        state, played = one.init(arms, shape=(RUNS,)), tf.TensorArray(tf.int32, rounds, element_shape=[RUNS])
        for k in tf.range(rounds):
            arm = one.choose(state, tf.stack([seed, k]))
            state = one.update(state, arm, tf.cast(luck[k] < tf.gather(table[k], arm), tf.float32))
            played = played.write(k, arm)
        return played.stack()

    return play(tf.constant(means)).numpy()


def regret(means, arms):
    best = np.cumsum(means, axis=0).max(axis=1)
    return (best[:, None] - np.cumsum(np.take_along_axis(means, arms, axis=1), axis=0)).mean(axis=1)


def constant(gap, rounds=1000, arms=4):
    means = np.full((rounds, arms), 0.5 - gap / 2)
    means[:, 1] += gap
    return means


def switching(rounds=1000):
    """Arm 0 pays for a third of the time, then it never does and arm 2 always."""
    means = np.zeros((rounds, 4))
    means[: rounds // 3, 0] = means[rounds // 3 :, 2] = 1
    return means


def test_random_arms_are_learned():
    """Half the regret of a uniform choice, and below the bounds of Auer et al. 2002 and Seldin and Slivkins 2014."""
    means = constant(0.4)
    k = np.arange(1, len(means) + 1)
    root = np.sqrt(4 * k * math.log(4))
    logarithmic = 3 * (8 * np.log(k) / 0.4 + (1 + math.pi**2 / 3) * 0.4)
    bounds = {"exp3++": 4 * root, "exp3": 2 * root, "ucb1": logarithmic}
    uniform = regret(means, arms_played(bandit.get("uniform"), means))
    assert_close(uniform[-1], 0.75 * 0.4 * len(means), rtol=0.03)
    for name, bound in bounds.items():
        curve = regret(means, arms_played(bandit.get(name), means))
        assert (curve <= bound).all(), name
        assert curve[-1] < 0.5 * uniform[-1], name
        assert curve[-1] - curve[500] < 0.8 * curve[500], f"{name} does not flatten"


@pytest.mark.parametrize("name, factor", [("exp3++", 4), ("exp3", 2)])
def test_switching_arms_cost_no_more_than_the_bound(name, factor):
    means = switching()
    k = np.arange(1, len(means) + 1)
    curve = regret(means, arms_played(bandit.get(name), means))
    assert (curve <= factor * np.sqrt(4 * k * math.log(4))).all()
    assert curve[-1] < 0.5 * regret(means, arms_played(bandit.get("uniform"), means))[-1]


@pytest.mark.parametrize("gap, share", [(0.3, 0.95), (0.01, 0.53)])
def test_the_better_of_two_arms_is_played_as_often_as_claimed(gap, share):
    """Claim DGN-A3, 5000 rounds: rewards that differ by 0.01 are as good as equal, so rescale them."""
    means = constant(gap, 5000, 2)
    found = (arms_played(bandit.Exp3PlusPlus(), means) == 1).mean(axis=0)
    twin = reference.share_of_best([0.5 + gap / 2, 0.5 - gap / 2], 5000, RUNS, np.random.default_rng(0))
    error = math.hypot(found.std(), twin.std()) / math.sqrt(RUNS)
    assert abs(found.mean() - twin.mean()) < 4 * error
    assert abs(found.mean() - share) < 0.02 + 4 * error
