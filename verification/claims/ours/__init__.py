"""Claims of the paper below; one module per theme."""

from verification.claims.ours import (
    bryson_denham,
    collinear,
    core,
    fisher,
    gram,
    mixtures,
    momentum,
    players,
    policy,
    readings,
    rollout,
    sample_space,
)
from verification.papers import OURS as PAPER

__all__ = ["PAPER"]
