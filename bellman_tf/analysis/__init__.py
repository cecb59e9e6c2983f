"""Looking into a game: feedback policies, value Hessians and gains of a trained model, and an ablation."""

from bellman_tf.analysis.ablation import STRUCTURES, Ablation, information_ablation
from bellman_tf.analysis.feedback import feedback_maps, feedback_spectrum
from bellman_tf.analysis.value import Gains, gains, value_hessian

__all__ = [
    "STRUCTURES",
    "Ablation",
    "Gains",
    "feedback_maps",
    "feedback_spectrum",
    "gains",
    "information_ablation",
    "value_hessian",
]
