"""What a claim is: a statement of a paper, our verdict on it, and a check that the verdict is true.

A check is a generator over one problem that a Hypothesis strategy has drawn. It yields `Measurement`s:

    same(ours, truth, condition)     two arrays agree to a tolerance from the conditioning
    at_most(left, right, scale)      an inequality
    measured(value)                  a size that is reported: of an approximation's error, say

A misprint also has a `Counterexample`: the smallest problem on which the printed form fails and the corrected holds.
"""

import enum
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from hypothesis.strategies import SearchStrategy

EPS = np.finfo(np.float64).eps
SAFETY = 1e3  # a product of some matrices of size up to 50 loses up to sqrt(n) n units each; measured: below 100


class Verdict(enum.StrEnum):
    """What we found."""

    EXACT = "exact"  # an identity, or exact under the assumptions stated
    APPROXIMATION = "approximation"  # its error is measured
    MISPRINT = "misprint"  # false as printed; the corrected form is checked
    EMPIRICAL = "empirical"  # needs an experiment
    DEFINITION = "definition"  # nothing to be right or wrong; the check is that ours is the same thing


class Measurement(NamedTuple):
    """One number of a check.

    Attributes:
        error: relative, not negative.
        tolerance: what it may be; infinite when the number is only reported.
        label: what was compared.
    """

    error: float
    tolerance: float
    label: str = ""


class Counterexample(NamedTuple):
    """The smallest problem on which the printed form fails.

    Attributes:
        setting: the problem, in words and numbers.
        printed: what the printed form gives there.
        corrected: what the corrected form gives there.
        truth: what is true there.
    """

    setting: str
    printed: np.ndarray
    corrected: np.ndarray
    truth: np.ndarray

    @property
    def failure(self) -> float:
        """Relative error of the printed form; infinite if it does not even have the right shape."""
        return relative_error(self.printed, self.truth)

    @property
    def remainder(self) -> float:
        """Relative error of the corrected form."""
        return relative_error(self.corrected, self.truth)


def relative_error(ours, truth) -> float:
    """Frobenius norm of the difference, relative to the truth unless that is zero.

    Args:
        ours: array.
        truth: array.

    Returns:
        The error; infinite when the shapes differ or an entry of ours is not finite.
    """
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    if ours.shape != truth.shape or not np.isfinite(ours).all():
        return float("inf")
    scale = np.linalg.norm(truth)
    return float(np.linalg.norm(ours - truth) / (scale or 1.0))


def same(ours, truth, *, condition: float = 1.0, scale: float = 0.0, label: str = "") -> Measurement:
    """Two arrays agree: the backward-stable bound SAFETY * eps * condition.

    Args:
        ours: array.
        truth: array of the same shape.
        condition: of the problem, at least 1.
        scale: norm of what cancels to make `truth`, when that is larger than `truth` itself.
        label: what is compared.

    Returns:
        The measurement.
    """
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    if ours.shape != truth.shape or not np.isfinite(ours).all():
        return Measurement(float("inf"), float(SAFETY * EPS * condition), label)
    unit = max(np.linalg.norm(truth), scale) or 1.0
    return Measurement(float(np.linalg.norm(ours - truth) / unit), float(SAFETY * EPS * condition), label)


def at_most(left, right, *, scale: float = 1.0, condition: float = 1.0, label: str = "") -> Measurement:
    """An inequality, entry by entry, up to rounding.

    Args:
        left: array or number.
        right: array or number; `left <= right` is claimed.
        scale: size of the numbers compared; 0, where all of them vanish, counts as 1.
        condition: of the problem, at least 1.
        label: what is compared.

    Returns:
        The measurement: by how much the inequality is violated, relative to `scale`.
    """
    excess = np.max(np.asarray(left, np.float64) - np.asarray(right, np.float64))
    error = float("inf") if not np.isfinite(excess) else max(float(excess), 0.0) / (scale or 1.0)
    return Measurement(error, float(SAFETY * EPS * condition), label)


def measured(value: float, label: str = "") -> Measurement:
    """A size that is reported with its spread, and compared with the range its claim states.

    Args:
        value: the number.
        label: what it is.

    Returns:
        The measurement.
    """
    return Measurement(float(value), float("inf"), label)


Check = Callable[[object], Iterator[Measurement]]


@dataclass(frozen=True)
class Claim:
    """One statement of a paper.

    Attributes:
        id: of this catalogue, for example "GTDDP-E9".
        place: where the paper says it, for example "Eq. 9".
        statement: what it says, in our symbols.
        verdict: what we found.
        assumes: under which assumptions.
        remark: numbers, caveats, disagreement.
        check: generator of measurements over one problem; none for an empirical claim.
        over: strategy that draws the problem.
        printed, corrected, derivation, origin: of a misprint, for the errata.
        counterexample: of a misprint.
        ranges: label of a measured size to the range in which its median must lie.
        tested_by: of an empirical claim: the command that tests it, or "open".
        examples: problems of the profile `default`, where 40 are too many: for a check that is slow or has nothing
            random.
    """

    id: str
    place: str
    statement: str
    verdict: Verdict
    assumes: str = ""
    remark: str = ""
    check: Check | None = None
    over: SearchStrategy | None = None
    printed: str = ""
    corrected: str = ""
    derivation: str = ""
    origin: str = ""
    counterexample: Callable[[], Counterexample] | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    tested_by: str = ""
    examples: int | None = None

    def __post_init__(self) -> None:
        """Refuses a claim that says too little for its verdict."""
        needs = {
            Verdict.EXACT: ("check", "over"),
            Verdict.APPROXIMATION: ("check", "over", "ranges"),
            Verdict.MISPRINT: ("check", "over", "printed", "corrected", "derivation", "origin", "counterexample"),
            Verdict.EMPIRICAL: ("tested_by",),
            Verdict.DEFINITION: ("check", "over"),
        }[self.verdict]
        missing = [name for name in needs if getattr(self, name) in (None, "", {})]
        if missing:
            raise ValueError(f"claim {self.id} with verdict {self.verdict} lacks {', '.join(missing)}")


@dataclass
class Paper:
    """A paper and its claims, in the order in which they were declared.

    Attributes:
        tag: first part of the identifiers.
        title: of the paper.
        authors: of the paper.
        claims: identifier to claim.
    """

    tag: str
    title: str
    authors: str
    claims: dict[str, Claim] = field(default_factory=dict)

    def claim(self, key: str, place: str, statement: str, *, verdict: Verdict, **details) -> Callable[[Check], Check]:
        """Declares a claim whose check is the decorated function.

        Args:
            key: identifier without the tag.
            place: where the paper says it.
            statement: what it says.
            verdict: what we found.
            **details: other fields of `Claim`.

        Returns:
            The decorator, which returns the check as it is.
        """

        def declare(check: Check | None) -> Check | None:
            name = f"{self.tag}-{key}"
            if name in self.claims:
                raise ValueError(f"claim {name} is declared twice")
            self.claims[name] = Claim(name, place, statement, verdict, check=check, **details)
            return check

        return declare

    # One decorator per verdict; `Claim` says which further fields each of them needs.
    exact = functools.partialmethod(claim, verdict=Verdict.EXACT)
    approximation = functools.partialmethod(claim, verdict=Verdict.APPROXIMATION)
    misprint = functools.partialmethod(claim, verdict=Verdict.MISPRINT)
    definition = functools.partialmethod(claim, verdict=Verdict.DEFINITION)

    def empirical(self, key: str, place: str, statement: str, tested_by: str, remark: str = "") -> None:
        """Declares a statement that only an experiment can test.

        Args:
            key: identifier without the tag.
            place: where the paper says it.
            statement: what it says.
            tested_by: the command that tests it, or "open".
            remark: what to look out for.
        """
        self.claim(key, place, statement, verdict=Verdict.EMPIRICAL, tested_by=tested_by, remark=remark)(None)
