"""Claims of the paper below; one module per theme."""

from verification.claims.dgnopt import (
    bandit,
    definitions,
    derivation,
    equivalence,
    experiments,
    fisher,
    kronecker,
    lemmas,
    open_loop,
    own_costs,
    principles,
    updates,
)
from verification.papers import DGN as PAPER

__all__ = ["PAPER"]
