"""Small tensors of one shape taken as one: TensorFlow's price of a variable, a branch's result, a choice is per tensor.

A step reads, compares, chooses between and assigns the state of every player; tracing it costs by operations. Tensors
of equal shape and dtype are stacked for these, up to a size above which a copy costs more than it saves.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import StateSpec

SMALL = 2**14  # entries of a tensor


class Stacks:
    """Which tensors of a list go together.

    Attributes:
        groups: places in the list, those of one stack together.
    """

    def __init__(self, shapes: Sequence[Iterable[int]], kinds: Sequence[Hashable]) -> None:
        """Groups the tensors.

        Args:
            shapes: static ones, of all tensors.
            kinds: of all tensors; only those of one kind go together.
        """
        alike: dict[Hashable, list[int]] = {}
        for place, (shape, kind) in enumerate(zip(shapes, kinds, strict=True)):
            small = tf.TensorShape(shape).num_elements() <= SMALL
            alike.setdefault((tuple(shape), kind) if small else place, []).append(place)
        self.groups = list(alike.values())

    def pack(self, tensors: Tensors) -> Tensors:
        """Stacks the tensors.

        Args:
            tensors: all of them.

        Returns:
            One `[n, ...]` for every group of n, the tensor itself for a group of one.
        """
        parts = [[tensors[place] for place in group] for group in self.groups]
        return [part[0] if len(part) == 1 else tf.stack(part) for part in parts]

    def unpack(self, stacks: Tensors) -> Tensors:
        """Inverse of `pack`.

        Args:
            stacks: one per group.

        Returns:
            All tensors, in their order.
        """
        found: dict[int, tf.Tensor] = {}
        for group, stack in zip(self.groups, stacks, strict=True):
            found.update(zip(group, [stack] if len(group) == 1 else tf.unstack(stack, len(group)), strict=True))
        return [found[place] for place in range(len(found))]


class StateStore:
    """The variables that hold the state of all players, and of their couplings.

    Attributes:
        variables: one per stack of state of one name, shape and dtype.
        names: what each of them is, and whose.
    """

    def __init__(
        self, owners: Sequence[tuple[str, list[StateSpec], str]], add_variable: Callable[..., keras.Variable]
    ) -> None:
        """Makes the variables.

        Args:
            owners: name, state and dtype of every player, then of every coupling.
            add_variable: as that of a Keras optimizer.
        """
        entries = [(name, spec, dtype) for name, specs, dtype in owners for spec in specs]
        self._counts = [len(specs) for _, specs, _ in owners]
        kinds = [(spec.name, spec.initial, dtype) for _, spec, dtype in entries]
        self._stacks = Stacks([spec.shape for _, spec, _ in entries], kinds)
        self.variables: list[keras.Variable] = []
        self.names: list[str] = []
        for group in self._stacks.groups:
            owner, spec, dtype = entries[group[0]]
            more = f"_and_{len(group) - 1}_more" if len(group) > 1 else ""
            shape = (len(group), *spec.shape) if more else spec.shape
            initial = _identities if spec.initial == "identity" else spec.initial
            self.names.append(f"{owner}{more}_{spec.name}")
            self.variables.append(add_variable(shape, initializer=initial, dtype=dtype, name=self.names[-1]))

    def read(self, beside: Sequence[Tensors] = ()) -> "StoredState":
        """Reads the variables.

        Args:
            beside: what else belongs to the first owners, appended to theirs.

        Returns:
            The state of every player, then of every coupling.
        """
        state = StoredState(tf.convert_to_tensor(v) for v in self.variables)
        remaining = iter(self._stacks.unpack(state.stacks))
        state += [[next(remaining) for _ in range(count)] for count in self._counts]
        for own, more in zip(state, beside, strict=False):
            own += more
        return state

    def changed(
        self, old: "StoredState", new: dict[tuple[int, int], tf.Tensor]
    ) -> list[tuple[keras.Variable, tf.Tensor, tf.Tensor]]:
        """What to assign for new state.

        Args:
            old: what `read` gave.
            new: state that has changed, by owner and position.

        Returns:
            (variable, new value, old value) of every variable with a part that has changed.
        """
        places = [(k, j) for k, count in enumerate(self._counts) for j in range(count)]
        touched = [any(places[place] in new for place in group) for group in self._stacks.groups]
        tensors = [new[k, j] if (k, j) in new else old[k][j] for k, j in places]
        parts = zip(self.variables, self._stacks.pack(tensors), old.stacks, touched, strict=True)
        return [(variable, value, before) for variable, value, before, is_touched in parts if is_touched]


class StoredState(list[Tensors]):
    """The state of every owner, `list[Tensors]`.

    Attributes:
        stacks: the values of the variables that hold it.
    """

    def __init__(self, stacks: Iterable[tf.Tensor]) -> None:
        super().__init__()
        self.stacks = list(stacks)


def _identities(shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
    """The identity, for every matrix of a stack."""
    return tf.broadcast_to(tf.eye(shape[-1], dtype=dtype), shape)
