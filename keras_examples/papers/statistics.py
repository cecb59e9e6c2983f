"""Intervals of means, differences and ratios of variances over few seeds."""

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def mean_interval(sample: Sequence[float]) -> tuple[float, float]:
    """Student's interval of a mean, for normal samples.

    A bootstrap interval of three seeds is hardly wider than their range, which holds the mean in three cases of four
    only.

    Args:
        sample: numbers, one per seed.

    Returns:
        Ends of the 95 % interval; both ends alike for one seed.
    """
    from scipy.stats import t

    mean, count = float(np.mean(sample)), len(sample)
    if count < 2:
        return mean, mean
    half = float(t.ppf((1 + LEVEL) / 2, count - 1) * np.std(sample, ddof=1) / np.sqrt(count))
    return mean - half, mean + half


def difference_interval(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean difference, seed by seed, likewise."""
    return mean_interval(np.subtract(ours, base))


def variance_change(ours: Sequence[float], base: Sequence[float]) -> float:
    """(Var ours - Var base) / Var base in per cent; nan where the base does not vary."""
    below = float(np.var(base, ddof=1)) if len(base) > 1 else 0.0
    return 100 * (float(np.var(ours, ddof=1)) / below - 1) if below > 0 else float("nan")


def variance_interval(change: float, ours: int, base: int) -> tuple[float, float]:
    """Interval of a change of variance that the numbers of seeds allow, for normal samples: the F distribution's.

    Args:
        change: in per cent, of `variance_change`.
        ours: seeds of ours.
        base: seeds of the baseline.

    Returns:
        Ends of the 95 % interval, in per cent.
    """
    from scipy.stats import f

    ratio = 1 + change / 100
    low, high = f.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], ours - 1, base - 1)
    return float(100 * (ratio / high - 1)), float(100 * (ratio / low - 1))
