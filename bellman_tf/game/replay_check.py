"""Runs a model and the replay of its trace on the same made-up samples, and finds where they differ.

Both runs see random weights, because a trace that has turned a variable into a constant gives the right outputs at the
weights it was made with. In the replay every variable has two values that are equal: one for the layers that own it,
one for every other use, so that the gradients of the two are apart.

A third run checks the rows. A recursion over samples needs row i of every tensor at a cut to belong to sample i:

    the gradient of sum_i r_i phi_i in that tensor  is  r_i times row i of the gradient of sum_i phi_i

for random r, phi_i a number made of row i of the outputs. Normalisations over the batch are left out of it, as in
`survey`.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Nested, SomeTensors, Tensors
from bellman_tf.game.execution import recorded
from bellman_tf.game.graph import Call, Replay, Slot
from bellman_tf.game.players import Program
from bellman_tf.game.synthetic_samples import ConstantMoments, before_activation, mixes, synthetic_weights
from bellman_tf.game.trial import WriteRecorder
from bellman_tf.layers.tensors import HALF


def kept_variables(model: keras.Model) -> list[keras.Variable]:
    """Lists what a step of two passes puts back between them.

    Args:
        model: a built model.

    Returns:
        The variables of its layers that are not trained, states of random generators among them.
    """
    found = [v for layer in keras_access.layers_of(model) for v in keras_access.own_non_trainable_variables(layer)]
    return list({id(v): v for v in [*found, *model.non_trainable_variables]}.values())


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Results of one run; gradients are those of random multiples of the outputs, plus the losses.

    Attributes:
        outputs: flat.
        masks: of the outputs, `None` where there is none.
        losses: what the layers have added themselves, their sum.
        written: (variable, value) of every Keras variable that was written, by `id`.
        gradients: of the trainable variables where their own layers use them (everywhere, in the model's own run), by
            `id`.
        elsewhere: of the trainable variables where anything else uses them, by `id`.
    """

    outputs: list[tf.Tensor]
    masks: SomeTensors
    losses: tf.Tensor
    written: dict[int, tuple[keras.Variable, tf.Tensor]]
    gradients: dict[int, np.ndarray]
    elsewhere: dict[int, np.ndarray]

    @property
    def finite(self) -> bool:
        """Whether outputs, losses and gradients are."""
        tensors = [*(t for t in self.outputs if t.dtype.is_floating), self.losses, *self.gradients.values()]
        return all(bool(np.isfinite(to_array(t)).all()) for t in tensors)


class ComparedRuns:
    """The runs of one model on one batch of made-up samples with one draw of weights."""

    def __init__(self, game: Program, model: keras.Model, inputs: Nested, fixed: bool) -> None:
        """Draws weights.

        Args:
            game: the model's traced game.
            model: the model.
            inputs: made-up samples, as the model takes them.
            fixed: whether the floating variables that are not trained keep their values.
        """
        self.game, self.model, self.inputs = game, model, inputs
        self._random = np.random.default_rng(2)
        self.trained = {id(v): v for v in model.trainable_variables}
        others = [] if fixed else [v for v in kept_variables(model) if keras.backend.is_float_dtype(v.dtype)]
        self._values = {key: synthetic_weights(v, self._random) for key, v in self.trained.items()}
        self._mapping = [(v, self._values[key]) for key, v in self.trained.items()]
        self._mapping += [(v, synthetic_weights(v, self._random)) for v in others if id(v) not in self.trained]
        self._own = {id(v) for player in game.players if player.calls for v in player.variables}
        self._seeds: list[tf.Tensor] | None = None

    def as_it_is(self) -> RunResult:
        """Runs the model's own call.

        Returns:
            Its results.
        """
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with tape, WriteRecorder(self._mapping) as scope:
            tape.watch(list(self._values.values()))
            outputs = self._call()
            losses = _total(scope.losses)
        written = {key: (v, scope.state_mapping[key]) for key, v in scope.written.items()}
        return self._run(outputs, losses, written, self._gradients(tape, outputs, losses, self._values), {})

    def replayed(self) -> RunResult:
        """Runs the trace, call by call, as a step does.

        Returns:
            Its results.
        """
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        inside = {key: tf.identity(value) for key, value in self._values.items() if key in self._own}
        state = {id(v): tf.convert_to_tensor(value) for v, value in self._mapping}
        written: dict[int, tuple[keras.Variable, tf.Tensor]] = {}
        added: list[tf.Tensor] = []

        def run(program: Replay, call: Call) -> None:
            scope = WriteRecorder([])
            scope.state_mapping = dict(state)
            if isinstance(call.operation, keras.Layer):
                own = {id(v) for v in call.operation.trainable_variables}
                scope.state_mapping |= {key: inside[key] for key in own if key in inside}
            with scope:
                program.run(call)
            added.extend(scope.losses)
            for key, variable in scope.written.items():
                state[key] = scope.get_current_value(variable)
                written[key] = (variable, state[key])

        with tape, WriteRecorder(self._mapping) as outer:
            tape.watch([*self._values.values(), *inside.values()])
            outputs = self._call(run)
            losses = _total([*added, *outer.losses])
        own = self._gradients(tape, outputs, losses, inside)
        rest = self._gradients(tape, outputs, losses, self._values)
        loose = {key: g for key, g in rest.items() if key not in self._own}
        elsewhere = {key: g for key, g in rest.items() if key in self._own}
        return self._run(outputs, losses, written, own | loose, elsewhere)

    def rows(self) -> str:
        """Finds a tensor whose rows are not the samples of the loss.

        Returns:
            What is wrong with it; empty if there is none.
        """
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        normalisations = [layer for layer in keras_access.layers_of(self.model) if mixes(layer)]
        kept: list[Replay] = []

        def run(program: Replay, call: Call) -> None:
            kept[:] = [program]
            program.run(call)

        with tape, WriteRecorder(self._mapping) as scope, ConstantMoments(normalisations, scope).calls():
            tape.watch(list(self._values.values()))
            targets = _targets(self._call(run))
        if not kept:
            return ""
        size = int(targets[0].shape[0])
        r = self._random.permutation(np.linspace(-1.0, 2.0, size)) + 0.25
        names = {slot: call.operation.name for call in self.game.traced.calls for slot in call.outputs}
        slots = list(dict.fromkeys(_crossing(self.game)))
        values = {slot: kept[0].values[slot] for slot in slots if isinstance(kept[0].values[slot], tf.Tensor)}
        values = {slot: value for slot, value in values.items() if value.dtype.is_floating}
        seeds = self._seeds_for(targets)
        tensors = list(values.values())
        plain = tape.gradient(targets, tensors, output_gradients=seeds)
        weighed = tape.gradient(targets, tensors, output_gradients=[_weighed(s, r) for s in seeds])
        for slot, value, first, second in zip(values, tensors, plain, weighed, strict=True):
            if first is None:
                continue
            count = int(value.shape[0]) if value.shape.rank else 0
            if count != size:
                return f"the output of '{names[slot]}' has {count} rows where the loss has {size} samples"
            expected = to_array(_weighed(tf.convert_to_tensor(first), r))
            if apart(to_array(second), expected, self.tolerance, norm(expected)):
                return (
                    f"the rows of the output of '{names[slot]}' are not the samples of the loss in their order, or "
                    "samples mix behind it"
                )
        return ""

    @property
    def tolerance(self) -> float:
        """Relative rounding of a gradient; what a replay gets wrong is off by much more."""
        half = any(layer.compute_dtype in HALF for layer in keras_access.layers_of(self.model))
        return 0.1 if half else 1e-3

    def _call(self, run: Callable[[Replay, Call], None] | None = None) -> list[tf.Tensor]:
        """Calls the model in training mode, or has `run` make the calls of its trace inside it; flat outputs."""
        keywords = {"training": True} if keras_access.takes_training(self.model) else {}
        if run is None:
            return _leaves(self.model(self.inputs, **keywords))

        def recorder(inputs: Nested) -> Nested:
            program = Replay(self.game.traced, keras_access.flat_inputs(self.model, inputs))
            for stage in self.game.stages:
                for call in (*stage.before, *stage.calls):
                    run(program, call)
            for call in self.game.after:
                run(program, call)
            return program.result()

        with recorded(self.model, recorder):
            return _leaves(self.model(self.inputs, **keywords))

    def _gradients(
        self, tape: tf.GradientTape, outputs: list[tf.Tensor], losses: tf.Tensor, sources: dict[int, tf.Tensor]
    ) -> dict[int, np.ndarray]:
        targets = _targets(outputs)
        seeds = [*self._seeds_for(targets), tf.ones_like(losses)]
        found = tape.gradient([*targets, losses], sources, output_gradients=seeds)
        return {key: np.zeros(tuple(sources[key].shape)) if g is None else to_array(g) for key, g in found.items()}

    def _seeds_for(self, targets: list[tf.Tensor]) -> list[tf.Tensor]:
        if self._seeds is None:
            self._seeds = [tf.constant(self._random.normal(size=t.shape), t.dtype) for t in targets]
        return [tf.ensure_shape(seed, target.shape) for seed, target in zip(self._seeds, targets, strict=True)]

    @staticmethod
    def _run(
        outputs: Tensors,
        losses: tf.Tensor,
        written: dict[int, tuple[keras.Variable, tf.Tensor]],
        gradients: dict[int, np.ndarray],
        elsewhere: dict[int, np.ndarray],
    ) -> RunResult:
        return RunResult(outputs, [keras_access.mask_of(t) for t in outputs], losses, written, gradients, elsewhere)


def to_array(tensor: Any) -> np.ndarray:
    """A tensor, or `IndexedSlices`, as float64.

    Args:
        tensor: of any numeric or boolean dtype.

    Returns:
        The array.
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    return tf.cast(tf.convert_to_tensor(tensor), tf.float64).numpy()


def norm(array: np.ndarray) -> float:
    """Frobenius norm; NumPy's own starts threads for it, which costs more than the sum.

    Args:
        array: of any shape.

    Returns:
        The norm.
    """
    return float(np.sqrt(np.sum(np.square(array))))


def apart(first: np.ndarray, second: np.ndarray, tolerance: float, scale: float) -> bool:
    """Tells whether two arrays differ by more than rounding.

    Args:
        first: of any shape.
        second: what it should be.
        tolerance: relative to the norm of `second`.
        scale: norm of what `second` is a part of; a tenth of `tolerance` of it is rounding too.

    Returns:
        Whether they differ, in shape or in value.
    """
    if first.shape != second.shape:
        return True
    return bool(norm(first - second) > tolerance * (norm(second) + 0.1 * scale) + 1e-12)


def _crossing(game: Program) -> Iterable[Slot]:
    """Slots at the cuts, and outputs of players."""
    for stage in game.stages:
        yield from stage.state
        for call in stage.calls:
            yield from call.outputs


def _leaves(outputs: Nested) -> list[tf.Tensor]:
    return [leaf for leaf in keras.tree.flatten(outputs) if leaf is not None]


def _targets(outputs: list[tf.Tensor]) -> list[tf.Tensor]:
    return [before_activation(leaf) for leaf in outputs if leaf.dtype.is_floating]


def _weighed(tensor: tf.Tensor, r: np.ndarray) -> tf.Tensor:
    return tensor * tf.cast(tf.reshape(r, [-1] + [1] * (tensor.shape.rank - 1)), tensor.dtype)


def _total(losses: list[tf.Tensor]) -> tf.Tensor:
    zero = tf.zeros([], tf.float32)
    return tf.add_n([zero, *(tf.cast(tf.reduce_sum(loss), tf.float32) for loss in losses)])
