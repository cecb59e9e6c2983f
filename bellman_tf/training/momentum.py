"""Momentum for our own curvatures, known to the policy.

With a velocity v and direction s = M^{-1} g the step is Keras's SGD with s in the place of `rate * g`:

    v' = beta v - s,    du = v'                        = beta v   - s
    Nesterov            du = beta v' - s               = beta^2 v - (1 + beta) s

The part D of du that v alone causes is known before the step. It is a deviation like any other: the end of the network
will move by d = <q, D> on top of what the weights decide, so the policy feeds back on it,

    w = a + S <q, du>,    (I + S Gamma) w = a - S (lambda - d),

Gamma and lambda times 1 + beta with Nesterov's momentum. Source: claim OURS-20.
Checked against: `verification/references/momentum.py`.
"""

import dataclasses

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors


@dataclasses.dataclass(frozen=True)
class Momentum:
    """How much of the last displacement the next one keeps.

    Attributes:
        beta: the share, in [0, 1); 0 is no momentum.
        nesterov: look one step of momentum ahead, as Keras's SGD.
        in_policy: whether the policy feeds back on the displacement that momentum will cause.
    """

    beta: float = 0.0
    nesterov: bool = False
    in_policy: bool = True

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            ValueError: for a value outside its range.
        """
        _checks.check_real("momentum", self.beta, least=0, below=1)
        _checks.check_flag("nesterov", self.nesterov)
        _checks.check_flag("momentum_in_policy", self.in_policy)

    @property
    def known(self) -> bool:
        """Whether the policy feeds back on the displacement that momentum causes."""
        return bool(self.beta) and self.in_policy

    @property
    def direct(self) -> float:
        """How many times a direction is in its own step."""
        return 1 + self.beta if self.nesterov else 1.0

    def ahead(self, velocity: Tensors) -> Tensors:
        """D, the displacement that momentum will cause.

        Args:
            velocity: of a player's variables.

        Returns:
            One tensor per variable.
        """
        kept = self.beta**2 if self.nesterov else self.beta
        return [kept * v for v in velocity]

    def applied(self, velocity: Tensors, directions: Tensors) -> tuple[Tensors, Tensors]:
        """The step of a player.

        Args:
            velocity: of its variables.
            directions: `M^{-1} g`.

        Returns:
            The new velocity, and what to subtract from the variables.
        """
        new = [self.beta * v - tf.cast(s, v.dtype) for v, s in zip(velocity, directions, strict=True)]
        if not self.nesterov:
            return new, [-v for v in new]
        return new, [tf.cast(s, v.dtype) - self.beta * v for v, s in zip(new, directions, strict=True)]
