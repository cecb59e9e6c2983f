"""One player's metric from its activations and cotangents; the config objects are the public part."""

from bellman_tf.curvature.config import EKFAC, KFAC, Adam, Config, Full, Identity, RMSprop
from bellman_tf.curvature.gram.plan import GramLimits

__all__ = ["Adam", "Config", "EKFAC", "Full", "GramLimits", "Identity", "KFAC", "RMSprop"]
