"""Claims of the paper below; one module per theme."""

from verification.papers import OURS as PAPER

__all__ = ["PAPER"]
