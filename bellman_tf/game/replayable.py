"""Decides whether the replay of a model's trace is the model, and names what is in the way if it is not.

`replay_check` compares the two on made-up samples; nothing passes that differs there. This file asks for the
comparison and names the cause: a constant in the trace, a variable used outside the layer that owns it, state written
during the call, an argument `training` given in `call`, a loss with variables.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Nested, Signature
from bellman_tf.game.graph import Graph
from bellman_tf.game.own_thread import run_in_own_thread
from bellman_tf.game.players import Program
from bellman_tf.game.raw_variables import moved, raw_variables
from bellman_tf.game.replay_check import ComparedRuns, RunResult, apart, kept_variables, norm, to_array
from bellman_tf.game.survey import FAILURES, UNKNOWN_SIZES
from bellman_tf.game.synthetic_samples import synthetic_samples

# Made-up samples: the first number that no other axis of the inputs has. Even, as in `synthetic_samples`.
ROWS = (6, 10, 14, 22)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is wrong with a replay of a model's trace.

    Attributes:
        unlike: why it is not the model; empty if it is.
        disorder: why rows of its tensors are not samples; empty if they are, or were not looked at.
    """

    unlike: str
    disorder: str = ""


def judge(game: Program, model: keras.Model, signature: Signature) -> Verdict:
    """Says why a replay of a model's trace would train it wrongly.

    Args:
        game: the model's traced game.
        model: a built model.
        signature: its inputs as symbolic tensors, `None` if they are not known.

    Returns:
        The reasons, with the layer or variable.
    """
    found = game.reason.split("\n")[0] or _stateful_layer(model) or _stateful_loss(model)
    if found or game.graph is None:
        return Verdict(found)
    if signature is None:
        return Verdict("the shapes of its inputs are not known, so the replay of its calls cannot be checked")
    return run_in_own_thread(_compared, game, model, signature)


def _samples(model: keras.Model, signature: Signature, size: int) -> Nested:
    """Made-up samples: of the model's own batch size if that is fixed; the first row of tokens ends in padding."""
    core = keras_access.functional_core(model)
    inputs = keras.tree.flatten(keras_access.inputs_of(core)) if isinstance(core, keras.Function) else []
    known = {leaf.shape[0] for leaf in inputs if leaf is not None and leaf.shape[0] is not None}
    taken = {n for leaf in keras.tree.flatten(signature) if leaf is not None for n in leaf.shape[1:]}
    rows = min(known) if known else next((n for n in ROWS if n not in taken), ROWS[0])

    def padded(leaf: Any) -> Any:
        tokens = tf.is_tensor(leaf) and leaf.dtype in {tf.int32, tf.int64} and leaf.shape.rank > 1
        if not tokens or leaf.shape[1] < 2:
            return leaf
        last = np.ones(leaf.shape, leaf.dtype.as_numpy_dtype)
        last[0, -1] = 0
        return leaf * last

    return keras.tree.map_structure(padded, synthetic_samples(signature, size, rows))


def _compared(game: Program, model: keras.Model, signature: Signature) -> Verdict:
    failure = ""
    for size in UNKNOWN_SIZES:
        inputs = _samples(model, signature, size)
        with moved(raw_variables(model)) as changed:
            try:
                runs, truth = _truth(game, model, inputs)
            except FAILURES as error:
                failure = _first_line(error)
                continue
            names = [*(variable.name for variable in changed()), *_lost_writes(model, truth)]
            if names:
                return Verdict(f"its call writes {_listed(names)}, which a second pass would not find as the first did")
            if not truth.finite:
                return Verdict(
                    "its outputs or gradients are not finite on made-up samples, so that nothing can be checked"
                )
            unlike = _difference(game, runs, truth)
            return Verdict(unlike) if unlike else Verdict("", _shape_of(truth, inputs) or runs.rows())
    return Verdict(f"it does not run on made-up samples ({failure}), so the replay of its calls cannot be checked")


def _truth(game: Program, model: keras.Model, inputs: Nested) -> tuple[ComparedRuns, RunResult]:
    """Runs the model; with the values it has for variables that are not trained, if made-up ones lead nowhere."""
    runs = ComparedRuns(game, model, inputs, fixed=False)
    truth = runs.as_it_is()
    if not truth.finite:
        runs = ComparedRuns(game, model, inputs, fixed=True)
        truth = runs.as_it_is()
    return runs, truth


def _difference(game: Program, runs: ComparedRuns, truth: RunResult) -> str:
    try:
        replay = runs.replayed()
    except FAILURES as error:
        return f"a replay of its calls fails ({_first_line(error)})" + _suspects(game.traced)
    found = _writes(truth, replay) or _values(truth, replay, runs.tolerance) or _gradients(truth, replay, runs)
    if not found:
        return ""
    again = runs.as_it_is()
    if _writes(truth, again) or _values(truth, again, runs.tolerance):
        return (
            "it gives other outputs when it runs again on the same batch: it draws random numbers that no Keras seed "
            "generator of its layers keeps, or holds state outside Keras"
        )
    return found + _suspects(game.traced)


# ---- what a replay gets wrong


def _shape_of(truth: RunResult, inputs: Nested) -> str:
    """Why the outputs do not have one row per sample; empty if they have."""
    size = next(leaf.shape[0] for leaf in keras.tree.flatten(inputs) if leaf is not None)
    rows = {int(t.shape[0]) if t.shape.rank else 0 for t in truth.outputs}
    if rows != {size}:
        return f"its outputs have {_listed(rows - {size}, quote='')} rows for a batch of {size} samples"
    return ""


def _lost_writes(model: keras.Model, truth: RunResult) -> list[str]:
    """Variables that the model writes and that a second pass does not find as the first one did."""
    kept = {id(v) for v in kept_variables(model)} - {id(v) for v in model.trainable_variables}
    return [variable.path for key, (variable, _) in truth.written.items() if key not in kept]


def _writes(truth: RunResult, replay: RunResult) -> str:
    missing = [v.path for key, (v, _) in truth.written.items() if key not in replay.written]
    if missing:
        return f"its call writes {_listed(missing)} outside its layers, which a replay leaves out"
    extra = [v.path for key, (v, _) in replay.written.items() if key not in truth.written]
    if extra:
        return f"a replay of its calls writes {_listed(extra)}, which the model itself leaves alone"
    return ""


def _values(truth: RunResult, replay: RunResult, tolerance: float) -> str:
    if len(truth.outputs) != len(replay.outputs):
        return "a replay of its calls gives another number of outputs"
    for first, second in zip(replay.outputs, truth.outputs, strict=True):
        second = to_array(second)
        if apart(to_array(first), second, tolerance, norm(second)):
            return "a replay of its calls gives other outputs once the weights have changed"
    for first, second in zip(replay.masks, truth.masks, strict=True):
        if (first is None) != (second is None) or (first is not None and np.any(to_array(first) != to_array(second))):
            return "a replay of its calls loses the mask of its outputs"
    losses = to_array(truth.losses)
    if apart(to_array(replay.losses), losses, tolerance, norm(losses)):
        return "its call adds a loss outside its layers (`add_loss`), which a replay leaves out"
    for key, (variable, value) in truth.written.items():
        value, other = to_array(value), to_array(replay.written[key][1])
        if apart(other, value, tolerance, norm(value)):
            return f"a replay of its calls writes other values to '{variable.path}'"
    return ""


def _gradients(truth: RunResult, replay: RunResult, runs: ComparedRuns) -> str:
    size = np.sqrt(sum(np.sum(g**2) for g in truth.gradients.values()))
    scale, tolerance = 0.1 * size, runs.tolerance
    used = [
        runs.trained[key].path
        for key, g in replay.elsewhere.items()
        if apart(g, np.zeros_like(g), tolerance, max(scale, norm(truth.gradients[key])))
    ]
    if used:
        return f"{_listed(used)} is also used outside the calls of the layer that owns it"
    wrong = [
        runs.trained[key].path
        for key, g in truth.gradients.items()
        if apart(replay.gradients[key], g, tolerance, scale)
    ]
    return f"a replay of its calls has another gradient for {_listed(wrong)}" if wrong else ""


# ---- the likely cause


def _suspects(graph: Graph) -> str:
    """What the trace holds that explains a difference, as the end of a sentence."""
    found = [
        f"'{operation.name}' is given training={value!r} in `call`, which a replay overrides"
        for operation, value in graph.trainings
        if value is not True
    ]
    if graph.constants:
        names = _listed(variable.path for variable in graph.constants)
        found.append(f"`call` uses {names} outside its layers, and the trace has the value as a constant")
    for call in graph.calls:
        for leaf in keras.tree.flatten((call.args, call.kwargs)):
            if isinstance(leaf, tf.Tensor | np.ndarray):
                shape = tuple(leaf.shape)
                found.append(f"'{call.operation.name}' reads a constant of shape {shape} that `call` computes alone")
    return f" ({'; '.join(list(dict.fromkeys(found))[:4])})" if found else ""


def _stateful_layer(model: keras.Model) -> str:
    for layer in keras_access.layers_of(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            return f"'{layer.name}' is stateful: a second pass would start from the state that the first one has left"
    return ""


def _stateful_loss(model: keras.Model) -> str:
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        if any(isinstance(value, tf.Variable | keras.Variable) for value in _held_by(loss)):
            name = getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)
            return f"the loss '{name}' holds variables: what it writes in one pass changes the next"
    return ""


def _held_by(loss: Any) -> Iterator[Any]:
    """Attributes of a loss object, and what its function closes over."""
    for thing in (loss, getattr(loss, "fn", None)):
        yield from getattr(thing, "__dict__", {}).values()
        for cell in getattr(thing, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # a cell that is still empty
                yield cell.cell_contents


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _listed(names: Iterable[str | int], quote: str = "'") -> str:
    shown = [f"{quote}{name}{quote}" for name in dict.fromkeys(names)]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
