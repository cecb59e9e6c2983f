"""What every test module may use: comparisons that say where two arrays part."""

import itertools

import numpy as np
import pytest

from bellman_tf.training.round import Round


def assert_close(actual, expected, *, rtol=0.0, atol=0.0, label=""):
    """Asserts closeness relative to the largest entry of `expected`; prints the worst entries.

    The bound is `atol + rtol * max|expected|`: error bounds of linear algebra are norm-wise, so entries
    that cancel to nearly zero are not judged by their own size.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{label} shape {actual.shape} != {expected.shape}"
    if expected.size == 0:
        return
    assert np.isfinite(actual).all(), (
        f"{label} has {np.count_nonzero(~np.isfinite(actual))} entries that are not finite"
    )
    gap = np.abs(actual - expected)
    bound = atol + rtol * np.max(np.abs(expected))
    if np.max(gap) <= bound:
        return
    worst = np.argsort(gap, axis=None)[::-1][:5]
    rows = []
    for i in worst:
        index = tuple(int(k) for k in np.unravel_index(i, gap.shape))
        rows.append(f"  {index}: {actual.flat[i]!r} against {expected.flat[i]!r}, gap {gap.flat[i]:.3e}")
    count = np.count_nonzero(gap > bound)
    raise AssertionError(f"{label} {count} of {gap.size} entries off by more than {bound:.3e}:\n" + "\n".join(rows))


def slow_row(*values):
    """A row of a parametrised test that is in the slow suite alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


def some_slow(cases, *slow):
    """Rows of a parametrised test, some of which repeat what others show and run in the slow suite only."""
    return [slow_row(case) if case in slow else case for case in cases]


def thinned(*axes, every=2):
    """All combinations of the values of `axes` as rows of a parametrised test, most of them for the slow suite.

    One in `every` is usual: those whose places along the axes sum to a multiple of it. So every value is met, and two
    axes meet in a Latin square. A value that is a tuple fills as many arguments as it has entries.
    """
    rows = []
    for combination in itertools.product(*(list(enumerate(axis)) for axis in axes)):
        values = [value if isinstance(value, tuple) else (value,) for _, value in combination]
        often = sum(place for place, _ in combination) % every == 0
        name = "-".join(str(getattr(value, "__name__", value)) for value in itertools.chain(*values))
        rows.append(pytest.param(*itertools.chain(*values), id=name, marks=[] if often else pytest.mark.slow))
    return rows


def relative_error(actual, expected):
    """Norm-wise relative error, 0 for two zero arrays."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    scale = np.linalg.norm(expected)
    gap = np.linalg.norm(actual - expected)
    return gap if scale == 0 else gap / scale


def round_of(model, data):
    """One step of a compiled model, not taken yet."""
    optimizer = model.optimizer
    return Round(model, model.game, optimizer.settings(), optimizer.context(), data)
