"""Bellman recursions on tensors: the value of a game and the policies of its players. Knows no layers.

`sample_space` is what training runs, `outer_product` and `per_sample` are the papers' own forms, and the rest is the
reference with every matrix written out.
"""

# One stage, dense, and the stacked batch.
# The papers' rank-one recursion and the exact one in the space of samples.
from bellman_tf.bellman import outer_product, own_costs, per_sample, rollout, sample_space
from bellman_tf.bellman.augment import augment_batch, augment_value
from bellman_tf.bellman.dense import (
    Expansion,
    Gains,
    StageDerivatives,
    Value,
    backward_dense,
    expand,
    gains,
    value_update,
)
from bellman_tf.bellman.groups import from_groups, to_groups
from bellman_tf.bellman.outer_product import OuterValue
from bellman_tf.bellman.per_sample import MatrixValue

# Several players in one stage.
from bellman_tf.bellman.players import (
    JointExpansion,
    cooperative_gains,
    cooperative_update,
    expand_players,
    feedback_nash,
)

# Identity shortcuts.
from bellman_tf.bellman.residual import JointValue, backward_block, enter_block, leave_block

# The step that a value's policy makes, without a second forward pass; `rollout.predicted_reduction` is of any weights.
from bellman_tf.bellman.rollout import cooperative_weights, roll_out
from bellman_tf.bellman.sample_space import (
    SampleValue,
    backward,
    backward_all,
    init,
    predicted_reduction,
    weights,
)

__all__ = [
    "Expansion",
    "Gains",
    "JointExpansion",
    "JointValue",
    "MatrixValue",
    "OuterValue",
    "SampleValue",
    "StageDerivatives",
    "Value",
    "augment_batch",
    "augment_value",
    "backward",
    "backward_all",
    "backward_block",
    "backward_dense",
    "cooperative_gains",
    "cooperative_update",
    "cooperative_weights",
    "enter_block",
    "expand",
    "expand_players",
    "feedback_nash",
    "from_groups",
    "gains",
    "init",
    "leave_block",
    "outer_product",
    "own_costs",
    "per_sample",
    "predicted_reduction",
    "roll_out",
    "rollout",
    "sample_space",
    "to_groups",
    "value_update",
    "weights",
]
