"""Claims of GT-DDP; one module per theme."""

from verification.claims.gtddp import (
    control,
    cooperation,
    curvature,
    degeneration,
    identical,
    joint_state,
    kronecker_rules,
    placement,
    players,
    practice,
    rank_one,
    rank_one_residual,
    residual,
    theorem_3,
)
from verification.papers import GTDDP as PAPER

__all__ = ["PAPER"]
