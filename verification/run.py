"""Runs claims: draws problems, collects measurements, compares them with the verdict."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

import hypothesis
import numpy as np

from verification.claim import EPS, SAFETY, Claim, Counterexample, Measurement, Verdict

PROFILES = ("fast", "default", "thorough")
FAILS, HOLDS = 1e-3, 100 * SAFETY * EPS  # relative errors of the printed and the corrected form at a counterexample


def problems(claim: Claim, profile: str) -> int:
    """How many problems a profile draws for a claim.

    A multiple of the claim's own number, so that slow claims are drawn more often too where there is time: the whole
    catalogue takes about 30 s of processor time with `fast`, 140 s with `default` and five times that with `thorough`.

    Args:
        claim: the claim.
        profile: one of `PROFILES`.

    Returns:
        40 with `default`, or the claim's own number where that is less; at most 6 with `fast`; five times as many as
        with `default` with `thorough`.
    """
    usual = min(40, claim.examples or 40)
    return {"fast": min(6, usual), "default": usual, "thorough": 5 * usual}[profile]


class Contradiction(AssertionError):
    """A measurement outside its tolerance."""


@dataclass
class Result:
    """What running a claim found.

    Attributes:
        id: of the claim.
        measurements: all of them, problem after problem.
        examples: number of problems drawn.
        seconds: it took.
        contradiction: why the verdict cannot stand, empty if it can.
        counterexample: of a misprint, evaluated.
    """

    id: str
    measurements: list[Measurement] = field(default_factory=list)
    examples: int = 0
    seconds: float = 0.0
    contradiction: str = ""
    counterexample: Counterexample | None = None

    @property
    def worst(self) -> Measurement | None:
        """The comparison nearest to, or furthest beyond, its tolerance."""
        compared = [m for m in self.measurements if np.isfinite(m.tolerance)]
        return max(compared, key=lambda m: m.error / m.tolerance, default=None)

    @property
    def margin(self) -> float:
        """Error over tolerance where that is largest, 0 without a comparison."""
        return 0.0 if self.worst is None else float(self.worst.error / self.worst.tolerance)

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """Reported sizes, label to values."""
        labels = dict.fromkeys(m.label for m in self.measurements if not np.isfinite(m.tolerance))
        return {label: np.array([m.error for m in self.measurements if m.label == label]) for label in labels}


def run(claim: Claim, profile: str = "default", seed: int = 0) -> Result:
    """Runs one claim.

    Args:
        claim: the claim.
        profile: one of `PROFILES`.
        seed: of Hypothesis.

    Returns:
        The result.
    """
    result, start = Result(claim.id), time.perf_counter()
    if claim.check is not None:
        _draw(claim, profile, seed, result)
    if claim.counterexample is not None and not result.contradiction:
        result.counterexample = claim.counterexample()
        result.contradiction = _judge_counterexample(result.counterexample)
    if not result.contradiction:
        result.contradiction = _judge_sizes(claim, result)
    result.seconds = time.perf_counter() - start
    return result


def _draw(claim: Claim, profile: str, seed: int, result: Result) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=problems(claim, profile),
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(claim.over)
    def check(problem):
        found = list(claim.check(problem))
        if not found:
            raise Contradiction("the check compared nothing")
        result.examples += 1
        result.measurements += found
        for m in found:
            if not m.error <= m.tolerance:
                raise Contradiction(f"{m.label or 'comparison'}: error {m.error:.2e} > tolerance {m.tolerance:.2e}")

    try:
        check()
    except Contradiction as contradiction:  # Hypothesis raises that of the smallest problem it found
        result.contradiction = str(contradiction)


def _judge_counterexample(example: Counterexample) -> str:
    if not example.failure > FAILS:
        return f"the printed form is right at the counterexample (error {example.failure:.1e})"
    if not example.remainder <= HOLDS:
        return f"the corrected form fails at the counterexample (error {example.remainder:.1e})"
    return ""


def _judge_sizes(claim: Claim, result: Result) -> str:
    for label, (low, high) in claim.ranges.items():
        if label not in result.sizes:
            return f"{label!r} was never measured"
        median = float(np.median(result.sizes[label]))
        if not low <= median <= high:
            return f"median of {label} is {median:.3g}, outside [{low:g}, {high:g}]"
    if claim.verdict == Verdict.APPROXIMATION and not result.sizes:
        return "the check of an approximation measured nothing"
    return ""


def run_all(ids: Iterable[str], find: Callable[[str], Claim], profile: str, seed: int, jobs: int) -> Iterator[Result]:
    """Runs claims, in this process or in several.

    Args:
        ids: of the claims.
        find: identifier to claim; importable, because the workers call it.
        profile: one of `PROFILES`.
        seed: of Hypothesis.
        jobs: number of processes; 1 is this one.

    Yields:
        Results as they come.
    """
    if jobs == 1:
        for name in ids:
            yield run(find(name), profile, seed)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_run_by_id, name, find, profile, seed) for name in ids]
        for future in as_completed(futures):
            yield future.result()


def _run_by_id(name: str, find: Callable[[str], Claim], profile: str, seed: int) -> Result:
    return run(find(name), profile, seed)
