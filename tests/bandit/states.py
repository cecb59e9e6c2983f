"""States of bandits as they arise, and as no play would make them."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bandit

BANDITS = (
    bandit.Exp3PlusPlus(),
    bandit.Exp3PlusPlus(constant=0.01),
    bandit.Exp3PlusPlus("2017"),
    bandit.Exp3PlusPlus("2017", 1e-3),
    bandit.Exp3(),
    bandit.Exp3(0.5),
    bandit.UCB1(),
    bandit.Uniform(),
)


def to_state(rounds, pulls, losses, rewards, dtype=np.float64):
    losses, rewards = tf.constant(losses, dtype), tf.constant(rewards, dtype)
    zeros = tf.zeros_like(losses)
    return bandit.State(tf.constant(rounds, tf.int64), tf.constant(pulls, tf.int64), losses, rewards, zeros, zeros)


@st.composite
def states(draw, least_arms=1, dtype=np.float64):
    """Few or many rounds; arms never played, ties, and losses so large that the weights underflow."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    arms = draw(st.integers(least_arms, 7), label="arms")
    rounds = draw(st.sampled_from([0, 1, 2, 10, 1000, 10**6]), label="rounds")
    pulls = rng.multinomial(rounds, rng.dirichlet(np.full(arms, 0.3)))
    scale = 10.0 ** draw(st.integers(-9, 3), label="size of the losses")
    losses = rounds * scale * rng.exponential(size=arms) * (pulls > 0)
    rewards = pulls * rng.choice([0.0, 0.3, 1.0, rng.uniform()], arms)
    if draw(st.booleans(), label="ties"):
        losses, rewards, pulls = (np.repeat(x[:1], arms) for x in (losses, rewards, pulls))
        rounds = int(pulls.sum())
    return to_state(rounds, pulls, losses, rewards, dtype)
