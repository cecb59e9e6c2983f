"""Finds out, by running a model on made-up samples, which layers' per-sample gradients are what a Gram matrix needs.

A layer's Gram form rests on one statement: with x the inputs and c the cotangents noted at its calls,

    the gradient of sum_i r_i phi_i  is  the layer's capture of (x, c) weighed by r,    for any weights r,

phi_i a number made of row i of the model's outputs and c the cotangents of their plain sum. It is false whenever the
rows of x are not the loss's samples in their order (time folded into the batch, a batch that was rolled or put beside
another), when samples mix on the way to the loss, and when the layer's variables are used anywhere else (tied weights).
Sizes that agree by chance prove nothing, so the statement itself is checked, once per model: four random samples,
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
from bellman_tf._typing import Gradient, Shape, Signature, SomeTensors
from bellman_tf.game.enclosing import enclosing_layers
from bellman_tf.game.held import written_by
from bellman_tf.game.instrument import Note
from bellman_tf.game.own_thread import run_in_own_thread
from bellman_tf.game.raw_variables import put_back, raw_variables
from bellman_tf.game.synthetic_samples import synthetic_samples
from bellman_tf.game.trial import Trial, agree, distance, norm, single_precision
from bellman_tf.layers.calls import join_calls
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.coverage import PREACTIVATION, Coverage
from bellman_tf.layers.input_sizes import as_computed
from bellman_tf.layers.tensors import HALF

DRAWS = 4  # further checks of a model that draws random numbers: a shuffle of four rows moves none in one of 24
UNKNOWN_SIZES = (16, 64)  # tried in turn for axes of the inputs that have no static size
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
    shapes: tuple[Shape, ...] = ()


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a run on made-up samples shows of a model.

    Attributes:
        findings: of each layer that was asked about, by `id`.
        written: Keras variables that the model writes while it runs.
        reason: why nothing could be found out; empty otherwise.
        enclosing: layers whose outputs lead to the gradient of a variable without a Gram form, by `id` of the variable,
            inner layers first.
    """

    findings: dict[int, Finding]
    written: tuple[keras.Variable, ...]
    reason: str = ""
    enclosing: dict[int, list[keras.Layer]] = dataclasses.field(default_factory=dict)


def signature_of(model: keras.Model) -> Signature:
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


def survey(model: keras.Model, signature: Signature, candidates: list[tuple[keras.Layer, Coverage]]) -> Survey:
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
    tried = [] if seen is None else [(seen, 0, False)]
    if signature is not None:  # numbers of an input declared as floating may be indices nevertheless
        tried += [(signature, size, indices) for indices in (False, True) for size in UNKNOWN_SIZES]
    for known, size, indices in tried:
        try:
            return run_in_own_thread(_survey, model, known, size, indices, candidates)
        except FAILURES as error:
            reason = f"{type(error).__name__}: {_message(error)}"
    failed = Finding(f"the model does not run on made-up samples ({reason})")
    every = {id(v): v for v in [*model.non_trainable_variables, *written_by(model)]}
    written = tuple(every.values())  # nobody knows which
    return Survey({id(layer): failed for layer, _ in candidates}, written, failed.reason)


def _message(error: BaseException) -> str:
    """What went wrong, in one line; Keras puts the layer's name in a paragraph before it."""
    paragraphs = [part for part in str(error).split("\n\n") if part.strip()]
    wrapped = len(paragraphs) > 1 and paragraphs[0].startswith("Exception encountered")
    line = (paragraphs[1 if wrapped else 0] if paragraphs else "").split("\n")[0]
    return line.replace("\x1b[1m", "").replace("\x1b[0m", "")[:200]


def _survey(
    model: keras.Model, signature: Signature, size: int, indices: bool, candidates: list[tuple[keras.Layer, Coverage]]
) -> Survey:
    """One check; further ones of a model that draws random numbers."""
    with put_back(raw_variables(model)), single_precision():
        trial = Trial(model, synthetic_samples(signature, size, indices=indices))
        findings = _check(trial, candidates)
        draws = range(1, 1 + DRAWS) if trial.generators() else ()
        for draw in draws:
            findings |= {key: finding for key, finding in _check(trial, candidates, draw).items() if finding.reason}
        known = {id(v) for layer, _ in candidates if not findings[id(layer)].reason for v in layer.trainable_variables}
        rest = [v for v in model.trainable_variables if id(v) not in known]
        # One backward pass that some covered layer needs anyway serves all others as well.
        apart = all(finding.separate for finding in findings.values() if not finding.reason)
        enclosing = enclosing_layers(trial, rest, draws) if rest and apart else {}
        return Survey(findings, tuple(trial.written.values()), enclosing=enclosing)


def _check(trial: Trial, candidates: list[tuple[keras.Layer, Coverage]], draw: int = 0) -> dict[int, Finding]:
    """One run, and what it says of every candidate."""
    before = [layer for layer, found in candidates if found.site == PREACTIVATION]
    behind = [layer for layer, found in candidates if found.site != PREACTIVATION]
    run = trial.run(before, behind, draw)
    if run.reason:
        return {id(layer): Finding(run.reason) for layer, _ in candidates}
    notes, apart = run.notes, run.apart
    cotangents, gradients = run.cotangents(), run.gradients(trial.values)
    biases = [layer.bias for layer, _ in candidates if id(layer) in apart.before and _bias_of(layer) in trial.values]
    with apart.mixing():
        shifted = {id(bias): trial.values[id(bias)] for bias in biases}
        shifts = gradients | (run.gradients(shifted) if shifted else {})
    reached = run.added()
    largest = max((norm(g) for g in gradients.values() if g is not None), default=0.0)
    order = {key: k for k, key in enumerate(notes.calls)}
    found = {}
    with keras.StatelessScope(trial.mapping, initialize_variables=False):  # a capture may read the layer's variables
        for layer, coverage in candidates:
            key = id(layer)
            calls, parts = notes.calls.get(key, []), cotangents.get(key, [])
            if key in notes.hidden:
                reason = "it runs inside a loop or a branch"
            elif key in apart.resting:
                reason = "it runs with training=False, on its moving moments"
            else:
                reason = _compare(layer, coverage, calls, parts, gradients, run.weights, largest)
            # What layers add to J themselves is not weighed, and may see a shift that the outputs do not.
            alone = all(reached.get(id(v)) is None for v in layer.trainable_variables)
            null = not reason and _is_null(layer, shifts, parts) and reached.get(_bias_of(layer)) is None
            separate = not reason and alone and key not in apart.before
            shapes = tuple(tuple(note.site.shape[1:]) for note in calls)
            found[key] = Finding(reason, separate, null, order.get(key, len(order)), shapes)
    return found


def _bias_of(layer: keras.Layer) -> int:
    """The `id` of a layer's bias, or of `None`."""
    return id(getattr(layer, "bias", None))


def _compare(
    layer: keras.Layer,
    coverage: Coverage,
    calls: list[Note],
    cotangents: SomeTensors,
    gradients: dict[int, Gradient | None],
    r: np.ndarray,
    largest: float,
) -> str:
    """Why the layer's capture is not its gradient; empty if it is. `largest` is the longest of all gradients."""
    if not calls:
        return "the model does not call it"
    known = [c for c in cotangents if c is not None]
    if len(known) < len(cotangents):
        return "no gradient reaches one of its calls"
    if any(note.inputs is None or not isinstance(note.inputs, tf.Tensor) for note in calls):
        return "its input is not a tensor"
    asked = [gradients[id(v)] for v in layer.trainable_variables if id(v) in gradients]
    true = [g for g in asked if g is not None]
    if len(true) < len(asked):
        return "no gradient reaches its variables"
    rows = {int(note.site.shape[0]) for note in calls} | {int(note.inputs.shape[0]) for note in calls}
    if rows != {len(r)}:
        odd = ", ".join(map(str, sorted(rows - {len(r)})))
        return f"its calls have {odd} rows on a made-up batch of {len(r)} samples"
    captures = [
        coverage.capture(layer, as_computed(layer, note.inputs), [c]) for note, c in zip(calls, known, strict=True)
    ]
    capture: Capture = join_calls(captures)
    own = capture.gradient(tf.constant(r[:, None], tf.float32))
    if agree(layer, true, own):
        return ""
    size, gap = distance(true, own)
    rounding = 1e-2 if layer.compute_dtype in HALF else 1e-6
    if not math.isfinite(size + gap) or size <= rounding * largest:
        return "its gradient is zero or not finite on made-up samples"
    return "its rows are not the samples of the loss, or its variables are used elsewhere as well"


def _is_null(layer: keras.Layer, gradients: dict[int, Gradient | None], cotangents: SomeTensors) -> bool:
    """Whether a bias has gradient zero although its slices are not: what follows takes every shift away."""
    shift = gradients.get(_bias_of(layer))
    if shift is None:
        return False
    slices = math.hypot(*(norm(c) for c in cotangents))
    limit = 1e-2 if layer.compute_dtype in HALF else 1e-4
    return norm(shift) <= limit * slices
