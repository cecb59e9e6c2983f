"""Keras optimizers: one class with every option, and its named settings."""

from bellman_tf.optimizers.ddp import DDP
from bellman_tf.optimizers.dgnopt import DGNOpt
from bellman_tf.optimizers.family import EKFAC, KFAC, DDPNOpt
from bellman_tf.optimizers.gtddp import GTDDP
