"""Claims of the paper below; one module per theme."""

from verification.papers import DGN as PAPER

__all__ = ["PAPER"]
