"""Every statement of the four papers, one package per paper, and what we derived ourselves."""

from verification.claim import Claim, Paper
from verification.claims import ddp, ddpnopt, dgnopt, gtddp, ours

PAPERS: dict[str, Paper] = {module.PAPER.tag: module.PAPER for module in (gtddp, ddp, dgnopt, ddpnopt, ours)}
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
