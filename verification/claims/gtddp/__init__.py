"""Claims of GT-DDP; one module per theme."""

from verification.claims.gtddp import control
from verification.papers import GTDDP as PAPER

__all__ = ["PAPER"]
