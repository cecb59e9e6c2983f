"""Differential dynamic programming for a general optimal control problem; knows no layers."""

from bellman_tf.trajectory.box import BoxStep, solve_box
from bellman_tf.trajectory.constraints import Inequalities
from bellman_tf.trajectory.given_derivatives import CostDerivatives, Derivatives, DynamicsDerivatives
from bellman_tf.trajectory.options import AugmentedLagrangian, LineSearch, Regularization
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.solution import History, Solution, Status
from bellman_tf.trajectory.solver import solve

__all__ = [
    "AugmentedLagrangian",
    "BoxStep",
    "CostDerivatives",
    "Derivatives",
    "DynamicsDerivatives",
    "History",
    "Inequalities",
    "LineSearch",
    "Problem",
    "Regularization",
    "Solution",
    "Status",
    "solve",
    "solve_box",
]
