"""Results as a table in the terminal and as JSON."""

import platform
from collections.abc import Iterable

import hypothesis
import keras
import numpy as np
import scipy
import tensorflow as tf

from verification.claim import Claim, Paper, Verdict
from verification.run import Result

WIDTHS = (14, 46, 13, 26, 8, 7)
HEAD = ("ID", "what", "verdict", "worst error", "examples", "s")


def environment(profile: str, seed: int) -> dict[str, str]:
    """What the figures depend on.

    Args:
        profile: of the run.
        seed: of Hypothesis.

    Returns:
        Name to version or value.
    """
    return {
        "profile": profile,
        "seed": str(seed),
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "Hypothesis": hypothesis.__version__,
        "machine": platform.platform(),
    }


def found(claim: Claim, result: Result) -> str:
    """The figure of one result: its sizes if the claim is an approximation, else its worst error.

    Args:
        claim: the claim.
        result: its result.

    Returns:
        A few words.
    """
    if claim.verdict == Verdict.EMPIRICAL:
        return claim.tested_by if claim.tested_by == "open" else "see its example"
    if claim.ranges:
        label = next(iter(claim.ranges))
        if label in result.sizes:
            low, middle, high = np.quantile(result.sizes[label], [0.25, 0.5, 0.75])
            return f"{middle:.2g} [{low:.2g}, {high:.2g}]"
    worst = result.worst
    return "" if worst is None else f"{worst.error:.1e} (may be {worst.tolerance:.0e})"


def _line(cells: Iterable[str]) -> str:
    cut = [cell if len(cell) <= width else cell[: width - 3] + "..." for cell, width in zip(cells, WIDTHS, strict=True)]
    return "  ".join(cell.ljust(width) for cell, width in zip(cut, WIDTHS, strict=True)).rstrip()


def table(paper: Paper, results: dict[str, Result]) -> str:
    """The table of one paper.

    Args:
        paper: the paper.
        results: identifier to result; claims without one are left out.

    Returns:
        Text of several lines.
    """
    lines = [f"{paper.tag}: {paper.title} ({paper.authors})", _line(HEAD)]
    for name, claim in paper.claims.items():
        if name in results:
            result = results[name]
            cells = (
                name,
                f"{claim.place}: {claim.statement}",
                str(claim.verdict),
                found(claim, result),
                str(result.examples),
                f"{result.seconds:.2f}",
            )
            lines.append(_line(cells))
            if result.contradiction:
                lines.append(f"    CONTRADICTED: {result.contradiction}")
    return "\n".join(lines)


def summary(claims: dict[str, Claim], results: dict[str, Result], seconds: float) -> str:
    """One line: how many claims of each verdict, how many contradicted, and which error is nearest its tolerance.

    Args:
        claims: identifier to claim.
        results: identifier to result.
        seconds: the run took.

    Returns:
        The line.
    """
    counts = {verdict: sum(claims[name].verdict == verdict for name in results) for verdict in Verdict}
    parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    wrong = sum(bool(result.contradiction) for result in results.values())
    problems = sum(result.examples for result in results.values())
    nearest = max(results.values(), key=lambda result: result.margin)
    margin = f"largest error / tolerance {nearest.margin:.2g} ({nearest.id})"
    return f"{len(results)} claims ({parts}), {problems} problems, {wrong} contradicted, {margin}, {seconds:.0f} s"


def _number(value: float) -> float | str:
    """A number as standard JSON can hold it: "inf" and "nan" in words."""
    value = float(value)
    return value if np.isfinite(value) else str(value)


def as_json(claims: dict[str, Claim], results: dict[str, Result], settings: dict[str, str]) -> dict:
    """Everything measured, for another program.

    Args:
        claims: identifier to claim.
        results: identifier to result.
        settings: from `environment`.

    Returns:
        A dictionary that `json` can write.
    """
    entries = {}
    for name, result in results.items():
        claim, worst = claims[name], result.worst
        entries[name] = {
            "place": claim.place,
            "statement": claim.statement,
            "assumes": claim.assumes,
            "verdict": str(claim.verdict),
            "remark": claim.remark,
            "tested_by": claim.tested_by,
            "examples": result.examples,
            "seconds": round(result.seconds, 3),
            "contradiction": result.contradiction,
            "worst": None
            if worst is None
            else {"error": _number(worst.error), "tolerance": _number(worst.tolerance), "label": worst.label},
            "sizes": {
                label: dict(zip(("q25", "median", "q75"), map(_number, quartiles), strict=True))
                for label, quartiles in ((x, np.quantile(y, [0.25, 0.5, 0.75])) for x, y in result.sizes.items())
            },
        }
    return {"environment": settings, "claims": entries}
