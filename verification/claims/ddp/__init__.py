"""Claims of the first paper on DDP for feed-forward networks; one module per theme."""

from verification.claims.ddp import (
    batch,
    batch_end,
    batch_pmp,
    degenerate,
    feedback,
    layers,
    optimality,
    practice,
    recursion,
)
from verification.papers import DDP1 as PAPER

__all__ = ["PAPER"]
