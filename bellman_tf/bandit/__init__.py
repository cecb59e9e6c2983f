"""Multi-armed bandits on tensors: which of M choices to try next, from the rewards of those tried. Knows no layers."""

from bellman_tf.bandit.base import Bandit, State, draw, mean_rewards
from bellman_tf.bandit.policies import UCB1, Exp3, Exp3PlusPlus, Uniform, get
from bellman_tf.bandit.rescaler import Rescaler, RescalerState

__all__ = [
    "Bandit",
    "Exp3",
    "Exp3PlusPlus",
    "Rescaler",
    "RescalerState",
    "State",
    "UCB1",
    "Uniform",
    "draw",
    "get",
    "mean_rewards",
]
