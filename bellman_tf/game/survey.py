"""Finds out, by running a model on made-up samples, which layers' per-sample gradients are what a Gram matrix needs.

A layer's Gram form rests on one statement: with x the inputs and c the cotangents noted at its calls,

    the gradient of sum_i r_i phi_i  is  the layer's capture of (x, c) weighed by r,    for any weights r,

phi_i a number made of row i of the model's outputs and c the cotangents of their plain sum. It is false whenever the
rows of x are not the loss's samples in their order (time folded into the batch, a batch that was rolled or put beside
another), when samples mix on the way to the loss, and when the layer's variables are used anywhere else (tied weights).
Sizes that agree by chance prove nothing, so the statement itself is checked, once per model: three random samples,
random weights, random r, the layer's capture against automatic differentiation. Random trainable variables stand in for
the model's own, because a layer that starts at zero hides everything in front of it.

`BatchNormalization` mixes samples on purpose. Its moments count as constants in this check, and the update of every
layer that was called before one is left to a backward pass of the weighted loss. Whether a bias has any effect is asked
with the moments at work.

What layers and losses write during the call (moving statistics, counters, the state of a recurrent layer) is discarded
here, and listed, so that a training step can put it back after a bad batch.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf.game.aside import run_aside
from bellman_tf.game.instrument import Note, Notes, noting
from bellman_tf.game.made_up import Apart, before_activation, made_up, made_up_weights, mixes
from bellman_tf.game.raw_variables import put_back, raw_variables
from bellman_tf.layers.calls import join_calls
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.coverage import PREACTIVATION, Coverage
from bellman_tf.layers.tensors import Tensors, to_work

DRAWS = 4  # further checks of a model that draws random numbers: a shuffle of three rows moves none in one of six
UNKNOWN_SIZES = (16, 64)  # tried in turn for axes of the inputs that have no static size
# Layers of Keras whose random numbers leave every sample in its row.
NOISE = (keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D)
NOISE = (*NOISE, keras.layers.SpatialDropout3D, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
NOISE = (*NOISE, keras.layers.GaussianNoise, keras.layers.RNN)
# What a made-up batch can run into that a real one does not: a token outside a table, a check of its values.
FAILURES = (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, ArithmeticError, LookupError)
FAILURES = (*FAILURES, tf.errors.OpError)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the survey says of one layer.

    Attributes:
        reason: why it has no Gram form in this model; empty if it has one.
        separate: whether weighing its cotangents is the exact gradient of the weighted loss: no
            normalisation by the batch comes after it, and it adds nothing to the loss itself.
        null: whether its bias has no effect on the outputs although its per-sample slices are not zero.
        order: number of its first call among the layers of the model.
        shapes: of its sites, without the batch axis, one per call.
    """

    reason: str
    separate: bool = False
    null: bool = False
    order: int = 0
    shapes: tuple[tuple, ...] = ()


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a run on made-up samples shows of a model.

    Attributes:
        findings: of each layer that was asked about, by `id`.
        written: Keras variables that the model writes while it runs.
        reason: why nothing could be found out; empty otherwise.
    """

    findings: dict[int, Finding]
    written: tuple[keras.Variable, ...]
    reason: str = ""


def signature_of(model: keras.Model) -> object:
    """The inputs of a model as symbolic tensors.

    Args:
        model: a built model.

    Returns:
        The structure that the model was called with, or was made of; `None` if neither is known.
    """
    core = keras_access.functional_core(model)
    made_of = keras_access.inputs_of(core) if isinstance(core, keras.Function) else None
    leaves = [leaf for leaf in keras.tree.flatten(made_of) if leaf is not None]
    if leaves and all(None not in leaf.shape[1:] for leaf in leaves):
        return made_of  # says as well whether it wants batches of one size
    remembered = model.__dict__.get("_game_input_signature")
    return made_of if remembered is None else remembered


def survey(model: keras.Model, signature: object, candidates: list[tuple[keras.Layer, Coverage]]) -> Survey:
    """Runs a model on made-up samples and checks the Gram form of every candidate.

    Args:
        model: a built model.
        signature: its inputs as symbolic tensors, first axis the batch.
        candidates: layers with trainable variables and how they would be covered.

    Returns:
        The survey; with a reason and no findings where the model does not run on made-up samples.
    """
    reason = "" if signature is not None else "the shapes of its inputs are not known"
    seen = model.__dict__.get("_game_first_inputs")  # of sizes that the model is known to take
    tried = [] if signature is None else [(signature, size) for size in UNKNOWN_SIZES]
    for known, size in tried if seen is None else [(seen, 0), *tried]:
        try:
            return run_aside(_survey, model, known, size, candidates)
        except FAILURES as error:
            reason = f"{type(error).__name__}: {_message(error)}"
    failed = Finding(f"the model does not run on made-up samples ({reason})")
    written = tuple(model.non_trainable_variables)  # nobody knows which
    return Survey({id(layer): failed for layer, _ in candidates}, written, failed.reason)


def _message(error: BaseException) -> str:
    """What went wrong, in one line; Keras puts the layer's name in a paragraph before it."""
    paragraphs = [part for part in str(error).split("\n\n") if part.strip()]
    wrapped = len(paragraphs) > 1 and paragraphs[0].startswith("Exception encountered")
    line = (paragraphs[1 if wrapped else 0] if paragraphs else "").split("\n")[0]
    return line.replace("\x1b[1m", "").replace("\x1b[0m", "")[:200]


def _survey(model: keras.Model, signature: object, size: int, candidates: list) -> Survey:
    with put_back(raw_variables(model)):
        return _Run(model, made_up(signature, size), candidates).survey()


class Recorded(keras.StatelessScope):
    """A scope without writes that remembers which variables were to be written."""

    def __init__(self, mapping: list[tuple]) -> None:
        super().__init__(state_mapping=mapping, collect_losses=True, initialize_variables=False)
        self.written: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple) -> None:
        """Keeps a value in the scope, and remembers its variable.

        Args:
            update: (variable, value).
        """
        self.written[id(update[0])] = update[0]
        super().add_update(update)


class _Run:
    """A model with random weights on random samples."""

    def __init__(self, model: keras.Model, inputs: object, candidates: list[tuple[keras.Layer, Coverage]]) -> None:
        self.model, self.inputs, self.candidates = model, inputs, candidates
        self._random = np.random.default_rng(0)
        variables = {id(v): v for v in model.trainable_variables}
        self._values = {key: made_up_weights(v, self._random) for key, v in variables.items()}
        self._variables = variables
        self._written: dict[int, keras.Variable] = {}

    def survey(self) -> Survey:
        """One check; further ones of a model that draws random numbers."""
        findings = self._check()
        for draw in range(1, 1 + DRAWS if self._generators() else 0):
            findings |= {key: finding for key, finding in self._check(draw).items() if finding.reason}
        return Survey(findings, tuple(self._written.values()))

    def _generators(self) -> list[keras.Variable]:
        """States of the random generators that the model has used, those of noise left out."""
        noise = [layer for layer in keras_access.layers_of(self.model) if isinstance(layer, NOISE)]
        known = {id(v) for layer in noise for v in layer.non_trainable_variables}
        states = [v for v in self._written.values() if "seed_generator_state" in v.path]
        return [v for v in states if id(v) not in known]

    def _check(self, draw: int = 0) -> dict[int, Finding]:
        candidates = self.candidates
        before = [layer for layer, found in candidates if found.site == PREACTIVATION]
        behind = [layer for layer, found in candidates if found.site != PREACTIVATION]
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        notes = Notes(before, behind, tape.watch)
        mapping = [(v, self._values[key]) for key, v in self._variables.items()]
        if draw:
            mapping += [(v, v.value + tf.cast(1000 * draw, v.dtype)) for v in self._generators()]
        scope = Recorded(mapping)
        apart = Apart([layer for layer in keras_access.layers_of(self.model) if mixes(layer)], scope, notes.calls)
        with tape, scope, noting(notes), apart.calls():
            tape.watch(list(self._values.values()))
            keywords = {"training": True} if keras_access.takes_training(self.model) else {}
            outputs = keras.tree.flatten(self.model(self.inputs, **keywords))
        self._written |= scope.written
        targets = [before_activation(leaf) for leaf in outputs if leaf is not None and leaf.dtype.is_floating]
        rows = {int(leaf.shape[0]) if leaf.shape.rank else 0 for leaf in targets}
        if len(rows) != 1 or rows == {0}:
            reason = f"the model's outputs have different numbers of rows, {sorted(rows)}"
            return {id(layer): Finding(reason) for layer, _ in candidates}
        sizes = [math.sqrt(math.prod(leaf.shape[1:])) for leaf in targets]  # a wide output must not hide a narrow one
        draws = [self._random.normal(size=leaf.shape) / size for leaf, size in zip(targets, sizes, strict=True)]
        seeds = [tf.constant(draw, leaf.dtype) for leaf, draw in zip(targets, draws, strict=True)]
        r = self._random.permutation(np.linspace(-1.0, 2.0, rows.pop())) + 0.25  # apart from each other and from 0
        weighed = [s * tf.cast(tf.reshape(r, [-1] + [1] * (s.shape.rank - 1)), s.dtype) for s in seeds]
        sites = {key: [note.site for note in calls] for key, calls in notes.calls.items()}
        cotangents = tape.gradient(targets, sites, output_gradients=seeds)
        gradients = tape.gradient(targets, self._values, output_gradients=weighed)
        shifted = {id(layer.bias): self._values[id(layer.bias)] for layer in self._shifts(apart.before)}
        with apart.mixing():
            shifts = gradients | (tape.gradient(targets, shifted, output_gradients=weighed) if shifted else {})
        added = list(scope.losses)
        reached = tape.gradient(added, self._values) if added else {}
        order = {key: k for k, key in enumerate(notes.calls)}
        found = {}
        with keras.StatelessScope(mapping, initialize_variables=False):  # a capture may read the layer's variables
            for layer, coverage in candidates:
                key = id(layer)
                calls, parts = notes.calls.get(key, []), cotangents.get(key, [])
                if key in notes.hidden:
                    reason = "it runs inside a loop or a branch"
                elif key in apart.resting:
                    reason = "it runs with training=False, on its moving moments"
                else:
                    reason = self._compare(layer, coverage, calls, parts, gradients, r)
                # What layers add to J themselves is not weighed, and may see a shift that the outputs do not.
                alone = all(reached.get(id(v)) is None for v in layer.trainable_variables)
                null = not reason and _is_null(layer, shifts, parts) and reached.get(id(layer.bias)) is None
                separate = not reason and alone and key not in apart.before
                shapes = tuple(tuple(note.site.shape[1:]) for note in calls)
                found[key] = Finding(reason, separate, null, order.get(key, len(order)), shapes)
        return found

    def _shifts(self, keys: set[int]) -> list[keras.Layer]:
        """Candidates among `keys` with a bias that is trained."""
        layers = [layer for layer, _ in self.candidates if id(layer) in keys]
        return [layer for layer in layers if id(getattr(layer, "bias", None)) in self._values]

    def _compare(
        self, layer: keras.Layer, coverage: Coverage, calls: list[Note], cotangents: Tensors, gradients: dict, r: object
    ) -> str:
        """Why the layer's capture is not its gradient; empty if it is."""
        if not calls:
            return "the model does not call it"
        if any(c is None for c in cotangents):
            return "no gradient reaches one of its calls"
        if any(note.inputs is None or not isinstance(note.inputs, tf.Tensor) for note in calls):
            return "its input is not a tensor"
        true = [gradients[id(v)] for v in layer.trainable_variables if id(v) in gradients]
        if any(g is None for g in true):
            return "no gradient reaches its variables"
        rows = {int(note.site.shape[0]) for note in calls} | {int(note.inputs.shape[0]) for note in calls}
        if rows != {len(r)}:
            odd = ", ".join(map(str, sorted(rows - {len(r)})))
            return f"its calls have {odd} rows on a made-up batch of {len(r)} samples"
        captures = [
            coverage.capture(layer, at_compute_dtype(layer, note.inputs), [c])
            for note, c in zip(calls, cotangents, strict=True)
        ]
        capture: Capture = join_calls(captures)
        own = capture.gradient(tf.constant(r[:, None], tf.float32))
        size = math.hypot(*(_norm(g) for g in true))
        gap = math.hypot(*(_norm(_dense(g) - _dense(h)) for g, h in zip(true, own, strict=True)))
        if not math.isfinite(size + gap) or size == 0:
            return "its gradient is zero or not finite on made-up samples"
        if gap > _tolerance(layer) * size:
            return "its rows are not the samples of the loss, or its variables are used elsewhere as well"
        return ""


def _dense(gradient: object) -> tf.Tensor:
    """A gradient in at least single precision, the rows of a table added up."""
    return to_work(tf.convert_to_tensor(gradient))


def _norm(tensor: object) -> float:
    flat = _dense(tensor).numpy().ravel()
    return math.sqrt(float(np.dot(flat, flat)))


def _tolerance(layer: keras.Layer) -> float:
    """Relative rounding of a gradient; a wrong association of rows is off by the gradient's own size."""
    return 0.1 if layer.compute_dtype in {"float16", "bfloat16"} else 0.01


def _is_null(layer: keras.Layer, gradients: dict, cotangents: Tensors) -> bool:
    """Whether a bias has gradient zero although its slices are not: what follows takes every shift away."""
    shift = gradients.get(id(getattr(layer, "bias", None)))
    if shift is None:
        return False
    slices = math.hypot(*(_norm(c) for c in cotangents))
    limit = 1e-2 if layer.compute_dtype in {"float16", "bfloat16"} else 1e-4
    return _norm(shift) <= limit * slices


def at_compute_dtype(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """An input as the layer computes with it.

    Args:
        layer: the layer.
        inputs: its first tensor argument.

    Returns:
        The tensor in the layer's compute dtype; integers stay integers.
    """
    if inputs.dtype.is_floating and inputs.dtype.name != layer.compute_dtype:
        return tf.cast(inputs, layer.compute_dtype)
    return inputs
