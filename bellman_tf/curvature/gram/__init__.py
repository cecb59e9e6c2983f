"""Gram matrices of players, in several forms."""

from bellman_tf.curvature.gram.compute import gram
from bellman_tf.curvature.gram.plan import FORMS, GramLimits, Plan
