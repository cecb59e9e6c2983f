"""Optimizers of other papers that the four papers compare with: E-MSA and KWNG. EKFAC as cited is an option of ours."""

from bellman_tf.baselines.emsa import EMSA
from bellman_tf.baselines.kwng import KWNG

__all__ = ["EMSA", "KWNG"]
