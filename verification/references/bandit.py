"""EXP3++ of Seldin and Slivkins (2014), as DGN's Algorithm 3 prints it, in float64."""

import numpy as np


def learning_rate(arms, played):
    """eta_k = sqrt(ln M / (k M)) / 2, k = 1 in the first round."""
    return np.sqrt(np.log(arms) / (played * arms)) / 2


def empirical_gaps(losses, played):
    """Gap of each arm to the best, min{1, (L(m) - min L) / k} (2014)."""
    return np.minimum(1.0, (losses - losses.min(axis=-1, keepdims=True)) / played)


def exploration(losses, played, constant=18.0, power=2):
    """xi_k(m) = c (ln k)^power / (k gap^2), infinite where the gap is zero; power 2 is the analysis of 2014."""
    gaps = empirical_gaps(losses, played)
    amount = np.full(gaps.shape, np.inf)
    np.divide(constant * np.log(played) ** power, played * gaps**2, out=amount, where=gaps > 0)
    return amount


def exploration_rates(losses, played, **options):
    """epsilon_k(m) = min{1 / (2 M), sqrt(ln M / (k M)) / 2, xi_k(m)}."""
    arms = losses.shape[-1]
    return np.minimum(min(1 / (2 * arms), learning_rate(arms, played)), exploration(losses, played, **options))


def probabilities(losses, played, **options):
    """rho~ = (1 - sum epsilon) rho + epsilon with rho proportional to exp(-eta_k L).

    Args:
        losses: `[..., M]`, the accumulated estimates L_k.
        played: the number k of this round, from 1.
        **options: of `exploration`.

    Returns:
        `[..., M]`.
    """
    rates = exploration_rates(losses, played, **options)
    weights = np.exp(-learning_rate(losses.shape[-1], played) * (losses - losses.min(axis=-1, keepdims=True)))
    rho = weights / weights.sum(axis=-1, keepdims=True)
    return (1 - rates.sum(axis=-1, keepdims=True)) * rho + rates


def update(losses, played, arm, reward, **options):
    """L_{k+1}: the arm played adds (1 - r) / rho~, the others nothing.

    Args:
        losses: `[M]`.
        played: the number k of the round.
        arm: the one played.
        reward: in [0, 1].
        **options: of `exploration`.

    Returns:
        `[M]`.
    """
    after = np.array(losses, np.float64)
    after[arm] += (1 - reward) / probabilities(losses, played, **options)[arm]
    return after


def share_of_best(means, rounds, runs, rng, **options):
    """Plays of the first arm, as a share, over independent runs with Bernoulli rewards of these means.

    Args:
        means: `[M]`, probability that an arm pays 1.
        rounds: of each run.
        runs: how many at once.
        rng: NumPy generator.
        **options: of `exploration`.

    Returns:
        `[runs]`.
    """
    losses, best, every = np.zeros((runs, len(means))), np.zeros(runs), np.arange(runs)
    for k in range(1, rounds + 1):
        p = probabilities(losses, k, **options)
        arm = np.minimum((rng.random((runs, 1)) > np.cumsum(p, axis=1)).sum(axis=1), len(means) - 1)
        losses[every, arm] += (rng.random(runs) >= np.asarray(means)[arm]) / p[every, arm]
        best += arm == 0
    return best / rounds
