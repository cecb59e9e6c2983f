"""Choosing the alignment by a bandit: Algorithms 2 and 3. Formulas in NumPy, the library's module comes later."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import at_most, measured, same
from verification.papers import DGN
from verification.problems.placements import Placed, placed
from verification.references import bandit


class Round(NamedTuple):
    """State of the bandit before round k."""

    losses: np.ndarray
    played: int
    reward: float
    options: dict


@st.composite
def rounds(draw):
    """States as they arise: few or many rounds, arms that were never played, ties, overwhelming losses."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    arms, played = draw(st.integers(2, 6), label="arms"), draw(st.integers(1, 10**5), label="k")
    losses = rng.exponential(10.0 ** draw(st.integers(-3, 1)), arms) * played * rng.integers(0, 2, arms)
    constant, power = draw(st.sampled_from([(18.0, 2), (256.0, 1), (1.0, 1)]), label="c and power of ln k")
    first = draw(st.booleans(), label="first round")
    options = {"constant": constant, "power": power}
    return Round(losses * (not first), 1 if first else played, float(rng.uniform()), options)


@DGN.exact(
    "A3",
    "Algorithm 3",
    "EXP3++: rho ~ exp(-eta_k L), rho~ = (1 - sum epsilon) rho + epsilon, epsilon_k(m) = min{1/(2M), 1/2 sqrt(ln"
    " M/(kM)), xi_k(m)}; the arm played adds (1 - r) / rho~ to its loss",
    assumes="eta_k = 1/2 sqrt(ln M / (k M)); xi = c (ln k)^2 / (k gap^2), c >= 18 (2014), or beta ln k / (k gap^2),"
    " beta = 256 (2017, with other gaps): both from the literature, the paper gives neither",
    remark="Exact: rho~ is a distribution, rho~ >= epsilon, sum epsilon <= 1/2, the loss estimate is unbiased, round 1"
    " is uniform; with the second form xi binds only if sqrt(k) / ln k > 2 beta sqrt(M / ln M) / gap^2, which is late:"
    " before that it is EXP3 with decaying uniform mixing. 'share, gap g': plays of the better of two arms in 5000"
    " rounds; catalogue 0.53 for a gap of 0.01 and 0.95 for 0.3. Rescale accuracies before feeding them.",
    over=rounds(),
    ranges={"share, gap 0.01": (0.5, 0.6), "share, gap 0.3": (0.9, 0.98)},
)
def exp3_plus_plus(state: Round):
    """The five properties at a drawn state; the shares from simulations."""
    losses, k, reward, options = state
    arms = len(losses)
    p, rates = bandit.probabilities(losses, k, **options), bandit.exploration_rates(losses, k, **options)
    yield same(p.sum(), 1.0, label="sum of rho~")
    yield at_most(rates, p, label="rho~ >= epsilon")
    yield at_most(rates.sum(), 0.5, label="sum of epsilon")
    yield at_most(0.0, rates, label="epsilon >= 0")
    rewards = np.linspace(0, reward, arms)
    estimates = [bandit.update(losses, k, m, rewards[m], **options) - losses for m in range(arms)]
    mean = sum(p_m * estimate for p_m, estimate in zip(p, estimates, strict=True))
    scale = np.linalg.norm(losses)  # the estimate is a difference of accumulated losses
    yield same(mean, 1 - rewards, scale=max(scale, 1.0), label="unbiased loss")
    yield same(bandit.probabilities(np.zeros(arms), 1, **options), np.full(arms, 1 / arms), label="round 1 is uniform")
    order = np.argsort(losses)
    if options["power"] == 1 and k > 1:
        gap = bandit.empirical_gaps(losses, k)[order[-1]]
        late = gap > 0 and np.sqrt(k) / np.log(k) > 2 * options["constant"] * np.sqrt(arms / np.log(arms)) / gap**2
        xi, other = bandit.exploration(losses, k, **options)[order[-1]], bandit.learning_rate(arms, k)
        yield same(float(xi < other), float(late), label="when xi binds")
    for gap, share in shares().items():
        yield measured(share, f"share, gap {gap:g}")


@functools.cache
def shares():
    """Mean share of the better arm in 5000 rounds over 40 runs, by gap; one simulation serves all problems."""
    return {
        gap: bandit.share_of_best([0.5 + gap / 2, 0.5 - gap / 2], 5000, 40, np.random.default_rng(0)).mean()
        for gap in (0.01, 0.3)
    }


@DGN.definition(
    "A2",
    "Algorithm 2",
    "a bandit draws an alignment m, DGNOpt makes one update with F of that alignment, the bandit gets the accuracy",
    remark="Alignments of one network have the same outputs and plain gradients: only the update depends on m.",
    over=st.tuples(placed(max_batch=2, max_log_condition=0), st.integers(0, 2**32 - 1)),
)
def wrapper(drawn):
    """The alignments of a block are one function with one gradient; only the arm played changes its loss."""
    problem, seed = drawn
    arms = problem.depth
    outputs, gradients = zip(*[outputs_and_gradients(problem, m) for m in range(arms)], strict=True)
    for m in range(1, arms):
        yield same(outputs[m], outputs[0], label="outputs")
        yield same(gradients[m], gradients[0], scale=1.0, label="plain gradients")
    rng, losses = np.random.default_rng(seed), np.zeros(arms)
    for k in range(1, 4):
        p = bandit.probabilities(losses, k) if arms > 1 else np.ones(1)
        m, reward = int(rng.choice(arms, p=p)), float(rng.uniform())
        after = bandit.update(losses, k, m, reward)
        others = np.arange(arms) != m
        yield same(after[others], losses[others], label="arms not played")
        yield same(after[m] - losses[m], (1 - reward) / p[m], scale=1 + after[m], label="arm played")
        losses = after
    yield same(bandit.probabilities(rng.exponential(size=1), 7), [1.0], label="one alignment is drawn always")


def outputs_and_gradients(problem: Placed, position):
    """Forward pass, and per-sample gradients of all players in a fixed order, by our expansion with V_xx = 0."""
    states, jacobians = problem.forward(position)
    V_x, rows = states[-1] - problem.targets, {}
    for f_x, players in reversed(jacobians):
        value = bellman.Value(tf.constant(V_x), tf.zeros((*V_x.shape, V_x.shape[1]), tf.float64))
        for player, f_u in players.items():
            expansion = bellman.expand(value, tf.constant(f_x), tf.constant(f_u))
            rows[player] = expansion.Q_u.numpy()
        V_x = expansion.Q_x.numpy()
    return states[-1], np.hstack([rows[player] for player in sorted(rows)])
