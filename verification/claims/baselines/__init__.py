"""Claims of the papers below; one module per method."""

from verification.claims.baselines import emsa, kwng
from verification.papers import BASE as PAPER

__all__ = ["PAPER"]
