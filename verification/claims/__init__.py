"""Every statement of the four papers, one package per paper, their baselines, and what we derived ourselves."""

import re

from verification.claim import Claim, Paper
from verification.claims import baselines, ddp, ddpnopt, dgnopt, gtddp, ours


def _place(name: str) -> list:
    """Order of the catalogue: by letters, then by number."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name) if part]


for _module in (gtddp, ddp, dgnopt, ddpnopt, baselines, ours):
    _module.PAPER.claims = dict(sorted(_module.PAPER.claims.items(), key=lambda item: _place(item[0])))

PAPERS: dict[str, Paper] = {module.PAPER.tag: module.PAPER for module in (gtddp, ddp, dgnopt, ddpnopt, baselines, ours)}
CLAIMS: dict[str, Claim] = {name: claim for paper in PAPERS.values() for name, claim in paper.claims.items()}


def find(name: str) -> Claim:
    """The claim of an identifier.

    Args:
        name: identifier.

    Returns:
        The claim.

    Raises:
        KeyError: if there is none.
    """
    return CLAIMS[name]
