"""`python -m verification.errata` writes `docs/errata.md`: what is misprinted in the four papers, and why.

`--check` writes nothing and ends with 1 when the file is not what the claims say.
"""

import argparse
import pathlib
import sys

from verification.claim import Claim, Paper, Verdict
from verification.claims import PAPERS
from verification.report import numbers

PATH = pathlib.Path(__file__).parents[1] / "docs" / "errata.md"
READINGS = ("21", "22", "23")  # claims of ours
HEAD = """# Misprints in the four papers

Written by `python -m verification.errata` from `verification/claims`; every correction is checked there on random
problems, and every counterexample is evaluated. "Origin" is our guess: *paper* when the text repeats or derives the
printed form, *OCR* when it is probably a reading error of the stored text.
"""


def _entry(claim: Claim) -> str:
    example = claim.counterexample()
    lines = [
        f"### {claim.id} ({claim.place})",
        claim.statement[:1].upper() + claim.statement[1:] + ".",
        f"- Printed: `{claim.printed}`",
        f"- Correct: `{claim.corrected}`",
        f"- Origin: {claim.origin}",
    ]
    if claim.assumes:
        lines.append(f"- Assumes: {claim.assumes}")
    lines += [
        "",
        claim.derivation,
        "",
        f"Counterexample: {example.setting.rstrip('.')}. Printed `{numbers(example.printed)}`, corrected "
        f"`{numbers(example.corrected)}`, truth `{numbers(example.truth)}`.",
    ]
    return "\n".join([*lines[:1], "", lines[1], "", *lines[2:]])


def _section(paper: Paper) -> str:
    entries = [_entry(claim) for claim in paper.claims.values() if claim.verdict == Verdict.MISPRINT]
    return "\n\n".join([f"## {paper.title}", f"{paper.authors}.", *entries]) if entries else ""


def _readings() -> str:
    """What the papers leave open about the scale of their recursion."""
    lines = [
        "## The scale of the papers' recursion",
        "",
        "Not a misprint: no paper says what the terminal value is divided by, and the readings are different methods.",
    ]
    for key in READINGS:
        claim = PAPERS["OURS"].claims[f"OURS-{key}"]
        statement = claim.statement[:1].upper() + claim.statement[1:]
        lines += ["", f"### {claim.id} ({claim.place})", "", f"{statement}.", "", claim.remark]
        lines += ["", f"Tested by `{claim.tested_by}`."] if claim.tested_by else []
    return "\n".join(lines)


def errata() -> str:
    """The document.

    Returns:
        Markdown.
    """
    return "\n\n".join([HEAD.rstrip(), *filter(None, map(_section, PAPERS.values())), _readings()]) + "\n"


def main() -> int:
    """Command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        return int(not PATH.exists() or PATH.read_text() != errata())
    PATH.write_text(errata())
    print(f"{PATH} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
