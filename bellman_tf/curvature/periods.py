"""What is renewed every so many steps only, in a branch of the graph."""

from collections.abc import Callable, Hashable, Sequence

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.stacks import Stacks
from bellman_tf.linalg.constants import constant


def when(period: int, iteration: tf.Tensor, allowed: tf.Tensor | None = None) -> tf.Tensor | None:
    """Whether a step is one of every `period`.

    Args:
        period: steps from one to the next.
        iteration: integer scalar.
        allowed: whether it may be one at all, boolean scalar; `None` for always.

    Returns:
        Boolean scalar; `None` for every step.
    """
    if period == 1:
        return allowed
    due = tf.equal(iteration % constant(period, iteration.dtype), constant(0, iteration.dtype))
    return due if allowed is None else due & allowed


def every(
    period: int,
    iteration: tf.Tensor,
    refresh: Callable[[], Tensors],
    keep: Tensors,
    allowed: tf.Tensor | None = None,
    roles: Sequence[Hashable] | None = None,
) -> Tensors:
    """Runs `refresh` on iterations divisible by `period`, returns `keep` on the others.

    Args:
        period: steps between refreshes.
        iteration: integer scalar.
        refresh: function of no arguments returning tensors like `keep`.
        keep: what stands otherwise, of static shapes.
        allowed: whether `refresh` may run at all, boolean scalar; `None` for always.
        roles: of the tensors; those of one role and shape are chosen as one, as they are stored. `None` for one role.

    Returns:
        The chosen tensors.
    """
    due = when(period, iteration, allowed)
    if due is None:
        return refresh()
    kinds = [part.dtype for part in keep]
    stacks = Stacks([part.shape for part in keep], kinds if roles is None else list(zip(kinds, roles, strict=True)))
    kept = stacks.pack(keep)
    chosen = tf.cond(due, lambda: stacks.pack(refresh()), lambda: [tf.identity(part) for part in kept])
    return stacks.unpack(chosen)
