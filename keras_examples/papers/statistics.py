"""Intervals of means, differences and ratios of variances over few seeds."""

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 2000
LEVEL = 0.95


def interval(
    statistic: Callable[..., np.ndarray], *samples: Sequence[float], paired: bool = False
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic.

    Args:
        statistic: of arrays `[DRAWS, n]`, one per sample, row by row.
        *samples: numbers, one per seed.
        paired: whether the samples are drawn with the same seeds.

    Returns:
        Lower and upper end of the 95 % interval; both ends alike for one seed.
    """
    rng = np.random.default_rng(0)
    arrays = [np.asarray(sample, float) for sample in samples]
    drawn, indices = [], None
    for array in arrays:
        if indices is None or not paired:
            indices = rng.integers(len(array), size=(DRAWS, len(array)))
        drawn.append(array[indices])
    values = statistic(*drawn)
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def mean_interval(sample: Sequence[float]) -> tuple[float, float]:
    """Interval of a mean."""
    return interval(lambda drawn: drawn.mean(axis=1), sample)


def difference_interval(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean difference, seed by seed."""
    return interval(lambda a, b: (a - b).mean(axis=1), ours, base, paired=True)


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
