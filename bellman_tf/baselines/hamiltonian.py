"""The augmented Hamiltonian of one player of a traced model, as a function of its own parameters.

A stage takes the state z_t at its cut to z_{t+1} = f_t(z_t, u) at the next one, the outputs behind the last. With the
co-states p_t = B dJ/dz_t of one backward pass, the player's Hamiltonian and E-MSA's augmentation of it are

    H(u)      = 1/B sum_i [ p_{t+1,i} . f_t(z_t, u)_i ] + l_t(z_t, u)
    H_rho(u)  = H(u) + rho/(2B) sum_i [ |f_t(z_t, u)_i - z_{t+1,i}|^2 + |B dH/dz_{t,i}(u) - p_{t,i}|^2 ]

l_t holds regularizers and what layers add to the loss. Other players of the stage stay as they are, so what they make
is left out: it is the same for every u. The second square has no part before the first player, where z_0 cannot move.

The squares are those of Li, Chen, Tai, E 2018, "Maximum principle based algorithms for deep learning", Lemma 2 and
Prop. 4; DGN Eq. 35 prints norms, with which no layer moves once rho >= 2 max |p| (claim DGN-E35).
"""

import dataclasses

import keras
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import StateMapping, Tensors
from bellman_tf.game.graph import Call, Replay, Slot
from bellman_tf.game.instrument import tapped
from bellman_tf.game.stages import Player, TracedGame
from bellman_tf.layers.coverage import PREACTIVATION
from bellman_tf.training.passes import Forward, copy_with_mask


@dataclasses.dataclass(frozen=True)
class Segment:
    """The part of the flat program between two cuts that depends on one player.

    Attributes:
        calls: the player's call and what it leads to, before the next cut.
        before: floating-point tensors of the state at the player's cut that these calls read.
        after: tensors of the next state that they make; the outputs behind the last player.
    """

    calls: tuple[Call, ...]
    before: tuple[Slot, ...]
    after: tuple[Slot, ...]


def segment_of(game: TracedGame, player: Player, forward: Forward) -> Segment:
    """Cuts a player's segment out of the program.

    Args:
        game: the traced game.
        player: of it, with one call at a known stage.
        forward: pass 1, with cuts.

    Returns:
        The segment.
    """
    t, depth = player.place, len(game.stages)
    stage = game.stages[t]
    following = game.stages[t + 1].before if t + 1 < depth else game.after
    state = game.stages[t + 1].state if t + 1 < depth else keras.tree.flatten(game.traced.outputs)
    calls, made, read = [], set(), {}
    for call in (*stage.calls, *following):
        if call is player.calls[0] or made & set(call.inputs):
            calls.append(call)
            made |= set(call.outputs)
            read.update(dict.fromkeys(slot for slot in call.inputs if slot in forward.cuts[t]))
    after = dict.fromkeys(slot for slot in state if slot in made and forward.values[slot].dtype.is_floating)
    return Segment(tuple(calls), tuple(read), tuple(after))


class PlayerHamiltonian:
    """H_rho of one player.

    Attributes:
        segment: the calls that it runs again.
    """

    def __init__(
        self,
        game: TracedGame,
        player: Player,
        segment: Segment,
        forward: Forward,
        costates: dict[Slot, tf.Tensor],
        frozen: StateMapping,
        total: tf.Tensor,
        rho: float,
    ) -> None:
        """Evaluates the stage at the values that the player's variables have.

        Args:
            game: the traced game.
            player: of it.
            segment: its segment.
            forward: pass 1, with cuts.
            costates: p_{t+1} of every slot of `segment.after`.
            frozen: (variable, value) of what is not trained, as before pass 1.
            total: B, scalar in the dtype of the recursion.
            rho: weight of the squares.
        """
        self.segment, self._game, self._player, self._forward = segment, game, player, forward
        self._costates, self._frozen, self._total, self._rho = costates, frozen, total, rho
        self._nominal: tuple[Tensors, Tensors] | None = None
        if rho:
            current = [tf.convert_to_tensor(v) for v in player.variables]
            _, made, slope = self._differentiated(current)
            self._nominal = made, slope

    def __call__(self, values: Tensors) -> tf.Tensor:
        """H_rho at some values of the player's variables.

        Args:
            values: in the shapes of the variables.

        Returns:
            Scalar in the dtype of the recursion.
        """
        hamiltonian, made, slope = self._differentiated(values)
        if self._nominal is not None:
            pairs = [*zip(made, self._nominal[0], strict=True), *zip(slope, self._nominal[1], strict=True)]
            squares = [tf.reduce_sum(tf.square(self._cast(new - old))) for new, old in pairs]
            hamiltonian += self._rho / 2 * self._sum(squares)
        own = [
            self._cast(variable.regularizer(value))
            for variable, value in zip(self._player.variables, values, strict=True)
            if variable.regularizer is not None
        ]
        return hamiltonian / self._total + self._sum(own)

    def _differentiated(self, values: Tensors) -> tuple[tf.Tensor, Tensors, Tensors]:
        """B H without regularizers, f_t, and B dH/dz_t."""
        z = {slot: copy_with_mask(self._forward.cuts[self._player.place][slot]) for slot in self.segment.before}
        if not self._rho or not z:
            hamiltonian, made = self._hamiltonian(values, z)
            return hamiltonian, made, []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(z.values()))
            hamiltonian, made = self._hamiltonian(values, z)
        slope = tape.gradient(hamiltonian, list(z.values()), unconnected_gradients="zero")
        return hamiltonian, made, [tf.convert_to_tensor(part) for part in slope]

    def _hamiltonian(self, values: Tensors, z: dict[Slot, tf.Tensor]) -> tuple[tf.Tensor, Tensors]:
        made, losses = self._run(values, z)
        products = [
            tf.reduce_sum(self._cast(self._costates[slot]) * self._cast(f))
            for slot, f in zip(self.segment.after, made, strict=True)
        ]
        return self._sum(products) + self._total * self._sum([self._cast(tf.reduce_sum(l)) for l in losses]), made

    def _run(self, values: Tensors, z: dict[Slot, tf.Tensor]) -> tuple[Tensors, Tensors]:
        """The segment from the state z: its part of the next state, and what its layers add to the loss."""
        graph = self._game.traced
        program = Replay(graph, [self._forward.values[slot] for slot in graph.inputs])
        program.values.update(self._forward.values)
        program.values.update(self._forward.cuts[self._player.place])
        program.values.update(z)
        variables = zip(self._player.variables, values, strict=True)
        mapping, before = [*self._frozen, *variables], {}
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True, initialize_variables=False) as scope:
            for call in self.segment.calls:
                before |= self._call(program, call)
        return [before.get(slot, program.values[slot]) for slot in self.segment.after], scope.losses

    def _call(self, program: Replay, call: Call) -> dict[Slot, tf.Tensor]:
        """Runs a call; returns what stands before a last softmax or sigmoid, as pass 1 took it, by its slot."""
        args, kwargs = program.arguments(call)
        layer = call.operation if isinstance(call.operation, keras.Layer) else None
        if layer is not None and keras_access.takes_training(layer):
            kwargs["training"] = True
        last = self._forward.cuts[-1]  # an output that crosses it has its co-state there, behind the softmax
        ending = [s for s in call.outputs if s in self._forward.ends and s in self.segment.after and s not in last]
        caught: Tensors = []
        player = self._game.player_of.get(id(call))
        inside = player is not None and player.covered and player.covering.site == PREACTIVATION
        if ending and layer is not None and (inside or hasattr(layer, "units")):
            with tapped(layer, caught.append):
                program.store(call, call.operation(*args, **kwargs))
        else:
            program.store(call, call.operation(*args, **kwargs))
            caught = [leaf for leaf in keras.tree.flatten(args) if tf.is_tensor(leaf)]
        return dict.fromkeys(ending, caught[0]) if ending else {}

    def _cast(self, tensor: tf.Tensor) -> tf.Tensor:
        return tf.cast(tensor, self._total.dtype)

    def _sum(self, terms: Tensors) -> tf.Tensor:
        return tf.add_n(terms) if terms else tf.zeros([], self._total.dtype)
