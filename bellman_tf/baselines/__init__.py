"""Optimizers of other papers that the four papers compare with: E-MSA and KWNG. EKFAC as cited is an option of ours."""

from bellman_tf.baselines.emsa import EMSA

__all__ = ["EMSA"]
