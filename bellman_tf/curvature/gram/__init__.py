"""Gram matrices of players, in several forms: `plan` says which there are and which one runs."""

from bellman_tf.curvature.gram.compute import condense, gram
from bellman_tf.curvature.gram.plan import FORMS, GramForm, GramLimits, Plan
