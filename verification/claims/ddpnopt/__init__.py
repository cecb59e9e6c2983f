"""Claims of the paper below; one module per theme."""

from verification.papers import DDPN as PAPER

__all__ = ["PAPER"]
