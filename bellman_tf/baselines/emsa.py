"""E-MSA, the extended method of successive approximations: every layer minimises its augmented Hamiltonian.

    forward     states z_t at every cut
    backward    co-states p_t = B dJ/dz_t, one gradient call
    minimise    u_t* = argmin H_rho,t(u) by L-BFGS, every player by itself and all of them at once
    move        u_t + learning_rate (u_t* - u_t)

Source: Li, Chen, Tai, E 2018, Alg. 2; DGN App. E.1, Eqs. 35-36.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.baselines.base import Baseline
from bellman_tf.baselines.hamiltonian import PlayerHamiltonian, segment_of
from bellman_tf.game.graph import Slot
from bellman_tf.game.players import Players
from bellman_tf.game.stages import TracedGame, require_one_call
from bellman_tf.linalg.lbfgs import minimise
from bellman_tf.optimizers.keywords import LearningRate
from bellman_tf.training.passes import Forward
from bellman_tf.training.round import Round


@dataclasses.dataclass(frozen=True)
class EMSAOptions:
    """How the augmented Hamiltonian is made and minimised.

    Attributes:
        rho: weight of the squares.
        iterations: of L-BFGS in one training step.
        history: pairs that L-BFGS keeps.
    """

    rho: float = 1.0
    iterations: int = 10
    history: int = 10

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            ValueError: for a value outside its range.
        """
        _checks.check_real("rho", self.rho, least=0)
        _checks.check_integer("iterations", self.iterations, least=1)
        _checks.check_integer("history", self.history, least=1)


@keras.saving.register_keras_serializable("bellman_tf.baselines")
class EMSA(Baseline):
    """Extended method of successive approximations: each layer minimises its augmented Hamiltonian by L-BFGS.

    On every batch a forward pass gives the states z_t, a backward pass the co-states p_t, and each layer u the minimum,
    as far as a few steps of L-BFGS go, of

        mean_i [ p_{t+1} . f(z_t, u) + rho/2 |f(z_t, u) - z_{t+1}|^2 + rho/2 |p_t - dH/dz_t(u)|^2 ] + regularizers

    The squares are Li et al.'s (their proof bounds the error of a step by squares); DGN Eq. 35 prints norms, with which
    no layer moves once rho >= 2 max |p|. `rho` = 0 is the plain method, without a lower bound on a linear layer.
    Layers are minimised one beside the other. Residual networks are cut as for the papers' roll-out: the state holds
    every tensor that crosses the cut, and the players of one stage see each other as they were. The model must be one
    that its trace describes, with every trainable layer applied once; others are refused with the reason. L-BFGS is
    our own loop (`bellman_tf.linalg.lbfgs`), so a step is one graph and compiles with `jit_compile=True` as well;
    there a recurrent layer takes minutes to compile, and max pooling in float64 has no second derivative on a CPU.

    Args:
        learning_rate: share of the way to the minimum that a step goes, 1 in the papers; float, schedule or callable.
        rho: weight of the squares: the larger, the shorter the step; the four papers do not state it.
        iterations: of L-BFGS in one training step.
        history: pairs that L-BFGS keeps.
        weight_decay: decoupled, as in Keras.
        use_ema: as in Keras.
        ema_momentum: as in Keras.
        ema_overwrite_frequency: as in Keras.
        name: as in Keras.

    Raises:
        ValueError: for an option outside its range; at the first step for a model that cannot be split into layers.

    Example:
        >>> model = btf.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(btf.baselines.EMSA(rho=1.0), "mse")

    Source: Li, Chen, Tai, E 2018, "Maximum principle based algorithms for deep learning", Alg. 2; DGN Eqs. 35-36.
    """

    whole_states = True

    def __init__(
        self,
        learning_rate: LearningRate = 1.0,
        *,
        rho: float = 1.0,
        iterations: int = 10,
        history: int = 10,
        weight_decay: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        name: str | None = None,
    ) -> None:
        split = EMSAOptions(rho, iterations, history)
        super().__init__(
            learning_rate,
            rollout="nonlinear",
            weight_decay=weight_decay,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            name=name,
        )
        self.split = split

    @property
    def solver(self) -> Callable[[Round], None]:
        """One minimisation per player."""
        return functools.partial(emsa_step, options=self.split)

    def get_config(self) -> dict[str, Any]:
        """The options, for Keras serialisation."""
        return self.options_of_keras() | dataclasses.asdict(self.split)


def emsa_step(batch: Round, options: EMSAOptions) -> None:
    """Queues the new values of one step of E-MSA.

    Args:
        batch: the step.
        options: of E-MSA.

    Raises:
        ValueError: if the model cannot be split into layers.
    """
    game = _checked(batch.game)
    forward, costates = _passes(batch)
    for player in game.players:
        segment = segment_of(game, player, forward)
        behind = costates[player.place + 1]
        hamiltonian = PlayerHamiltonian(game, player, segment, forward, behind, batch.frozen, batch.total, options.rho)
        old = batch.values[player.index]
        best, slope = _minimised(hamiltonian, old, options, batch.dtype)
        batch.witnesses.append(slope)  # not finite where the minimisation could not begin
        rate = batch.step.learning_rate
        decreases = [rate * (tf.cast(now, batch.dtype) - new) for now, new in zip(old, best, strict=True)]
        for variable, value in zip(player.variables, batch.shifted(player, decreases), strict=True):
            batch.assignments.add(variable, value)


def _passes(batch: Round) -> tuple[Forward, list[dict[Slot, tf.Tensor]]]:
    """Pass 1 and the co-states of every cut by slot, the outputs' last."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        forward = batch.forward(tape, cuts=True)
        with batch.direct_use():
            batch.compute_loss()
    if batch.direct:
        raise _checks.error(
            "model", "have a loss of its outputs alone for E-MSA, whose co-states come from them",
            [variable.path for variable in batch.direct.values()],
            "Give such a variable a `regularizer`, or use another optimizer.",
        )  # fmt: skip
    last = forward.cuts[-1]
    ends = {slot: end for slot, (end, _) in forward.ends.items() if slot not in last}
    outputs = {slot: ends.get(slot, tensor) for slot, tensor in forward.outputs.items() if tensor.dtype.is_floating}
    points = [*forward.cuts, outputs]
    flat = [tensor for part in points for tensor in part.values()]
    gradients = iter(tape.gradient(batch.loss, flat, output_gradients=batch.seed(), unconnected_gradients="zero"))
    return forward, [{slot: tf.convert_to_tensor(next(gradients)) for slot in part} for part in points]


def _minimised(
    hamiltonian: PlayerHamiltonian, old: Tensors, options: EMSAOptions, dtype: tf.DType
) -> tuple[Tensors, tf.Tensor]:
    """The player's variables after L-BFGS, in the dtype of the recursion, and the gradient there."""
    sizes = [math.prod(value.shape) for value in old]

    def apart(vector: tf.Tensor) -> Tensors:
        parts = tf.split(vector, sizes)
        return [tf.reshape(part, value.shape) for part, value in zip(parts, old, strict=True)]

    def function(vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(vector)
            values = [tf.cast(part, value.dtype) for part, value in zip(apart(vector), old, strict=True)]
            result = hamiltonian(values)
        return result, tf.convert_to_tensor(tape.gradient(result, vector, unconnected_gradients="zero"))

    start = tf.concat([tf.cast(tf.reshape(value, [-1]), dtype) for value in old], axis=0)
    found = minimise(function, start, iterations=options.iterations, history=options.history)
    return apart(found.point), found.gradient


def _checked(game: Players) -> TracedGame:
    """The game, if every player has a stage of its own; others are refused."""
    if not isinstance(game, TracedGame):
        raise _checks.error("rollout", "be 'nonlinear' for E-MSA", type(game).__name__)
    require_one_call(game, "E-MSA", "Make a layer of its own for every use, or take SGD, EKFAC or GTDDP.")
    repeated = _repeated_generators(game)
    if repeated:
        raise _checks.error(
            "model", "use each layer that draws random numbers once for E-MSA, which draws them again", repeated,
            "Make a layer of its own for every use.",
        )  # fmt: skip
    return game


def _repeated_generators(game: TracedGame) -> list[str]:
    """Names of layers with a random generator that are called more than once."""
    seen: set[int] = set()
    found = []
    for call in game.traced.calls:
        generators = [v for v in getattr(call.operation, "variables", ()) if "seed_generator_state" in v.path]
        if any(id(v) in seen for v in generators):
            found.append(call.operation.name)
        seen.update(id(v) for v in generators)
    return found
