"""Claims of DDPNOpt; one module per theme. What it repeats of the first paper shares that paper's checks."""

from verification.claims.ddpnopt import control, layers, outer_product, update
from verification.papers import DDPN as PAPER

__all__ = ["PAPER"]
