"""Claims of the paper below; one module per theme."""

from verification.papers import DDP1 as PAPER

__all__ = ["PAPER"]
