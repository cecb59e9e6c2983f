"""The models and training loops that an optimizer refuses, and what it says about each."""

from collections.abc import Iterable

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_access
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.identity import IdentityBlock
from bellman_tf.curvature.inner import InnerBlock
from bellman_tf.game.players import Players
from bellman_tf.game.stages import TracedGame
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.settings import GameOptions
from bellman_tf.training.step_control import LevenbergMarquardt

_WAY_OUT = (
    "Pass rollout='linear', which runs the model's own `call`. What only a second pass has (alignments, bilinear=True, "
    "value_hessian='outer_product') cannot be had for this model."
)
_WHOLE_WAY_OUT = "Use GTDDP, whose default rollout='linear' runs the model's own `call`."


def needs_model(kind: str, name: str) -> ValueError:
    """What to say where an optimizer has no model of this package.

    Args:
        kind: class of the optimizer.
        name: of the optimizer.

    Returns:
        The error.
    """
    return _checks.error(
        "optimizer", f"be compiled in a model of bellman_tf: {kind} needs the layers of the network, not only its "
        "gradients, and a plain Keras model or training loop hands over nothing else", name,
        "Change one line: `model = bellman_tf.as_game(model)` before `compile` (or derive the class of a subclassed "
        "model from `bellman_tf.Model`), and train with `fit` or `train_on_batch`; what a loop of your own adds to the "
        "loss goes into `compute_loss`.",
    )  # fmt: skip


def takes_whole_step(kind: str, model: keras.Model) -> ValueError:
    """What to say to a `train_step` or training loop that is not ours.

    Args:
        kind: class of the optimizer.
        model: that it is compiled in.

    Returns:
        The error.
    """
    return _checks.misfit(
        "train_step", f"be that of bellman_tf.Model, for {kind} takes the whole training step: gradients alone, handed "
        "to `apply`, `apply_gradients` or `scale_loss`, are not enough", {"model": model.name},
        "Say what is special in the loss: override `compute_loss(x, y, y_pred, sample_weight)`, call "
        "`self.add_loss(...)` in `call`, or pass `loss=` to `compile`; a loop of your own calls "
        "`model.train_on_batch(x, y)`.",
    )  # fmt: skip


def other_players(kind: str, game: Players) -> ValueError:
    """What to say about a game that was read anew and has other players than the optimizer's state.

    Args:
        kind: class of the optimizer.
        game: that was read.

    Returns:
        The error.
    """
    hint = f"compile it with another {kind}."
    if game.reason:
        hint = (
            f"The model could not be looked at: {game.reason.removesuffix('.')}. Let its `call` run on other samples "
            f"too, or {hint}"
        )
    else:
        hint = f"The model's `call` has changed: {hint}"
    names = [player.name for player in game.players]
    return _checks.error("optimizer", "be new, or have been built for these players", names, hint)


def check_scope(name: str, counters: Iterable[keras.Variable]) -> None:
    """Refuses an optimizer that was made outside the scope of its model's strategy, on several replicas.

    Args:
        name: of the optimizer.
        counters: its own and that of an optimizer inside.

    Raises:
        ValueError: if a counter is not one for all replicas.
    """
    if not all(isinstance(counter.value, tf.distribute.DistributedValues) for counter in counters):
        raise _checks.error(
            "optimizer", "be made inside the scope of the model's strategy: every replica would count its steps", name,
            "Make model and optimizer, the inner one too, under `with strategy.scope():`.",
        )  # fmt: skip


def check_replicas(
    model: keras.Model, options: GameOptions, control: LevenbergMarquardt | None, whole_batch: str | None, inside: bool
) -> None:
    """Refuses what does not work on several replicas, each of which sees its own samples only.

    Args:
        model: on several replicas.
        options: of the game.
        control: rule for the damping.
        whole_batch: class of an optimizer that computes one step from all samples, else `None`.
        inside: whether another optimizer moves the variables.

    Raises:
        ValueError: for such a model or option.
    """
    synchronised = any(getattr(layer, "synchronized", False) for layer in keras_access.layers_of(model))
    if whole_batch:
        reason = f"{whole_batch} computes one step from all samples of the batch"
        hint = "Use GTDDP, or build the model outside the strategy's scope."
    elif options.rollout == "nonlinear":
        reason = "with rollout='nonlinear' a stage moves before the replicas' later gradients are known"
        hint = "Pass rollout='linear', or build the model outside the strategy's scope."
    elif model.jit_compile:
        raise _checks.error(
            "jit_compile", "be False on several replicas: XLA compiles a function for one device and reads no variable "
            "of another, under Keras's own optimizers neither (tensorflow/tensorflow#56423)", True,
            "Leave it out; what runs on a single replica may be compiled.",
        )  # fmt: skip
    elif control is not None and control.every > 1 and synchronised:
        raise _checks.error(
            "step_control.every", "be 1 with a synchronised BatchNormalization on several replicas, which exchange "
            "nothing inside a branch of the graph", control.every,
        )  # fmt: skip
    elif inside and options.micro_batches > 1:
        reason = "Keras's optimizers cannot accumulate gradients on several replicas"
        hint = "Use a `curvature` of ours with gradient_accumulation_steps, or build the model outside the scope."
    else:
        return
    raise _checks.error("model", f"run on one replica: {reason}", model.name, hint)


def check_replay(name: str, game: Players, blocks: list[Block], options: GameOptions, whole_states: bool) -> None:
    """Refuses to replay a trace that is not the model; a plain open-loop step replays nothing.

    Args:
        name: of the model.
        game: the model's game.
        blocks: of its players.
        options: of the game.
        whole_states: whether every step replays the trace, on states of the whole batch whatever their rows.

    Raises:
        ValueError: if a step would replay a trace that does not describe the model.
    """
    captured = any(block.needs_capture and p.covered for p, block in zip(game.players, blocks, strict=True))
    replays = whole_states or captured or INFORMATION[options.information].curved
    if not isinstance(game, TracedGame) or not replays:
        return
    stale = game.stale
    if stale:
        raise _checks.error(
            "model", f"be compiled again: the `call` of '{name}' has changed since it was read; {stale}", name,
            "Or pass rollout='linear', which runs the model's own `call`.",
        )  # fmt: skip
    reason = game.verdict.unlike if whole_states else game.refusal
    if reason:
        raise _checks.error(
            "rollout", f"be 'linear' for the model '{name}': {reason}", options.rollout,
            _WHOLE_WAY_OUT if whole_states else _WAY_OUT,
        )  # fmt: skip


def check_moved(variables: list[keras.Variable]) -> None:
    """No step moves the scales of float8: their "gradient" is the value that Keras's optimizers write into them.

    Args:
        variables: the model's trainable ones.

    Raises:
        ValueError: if a variable is to be overwritten with its gradient.
    """
    overwritten = [v.path for v in variables if getattr(v, "overwrite_with_gradient", False)]
    if overwritten:
        raise _checks.error(
            "model", "have trainable variables that steps move, and no scales of float8, whose gradient is their next "
            "value", overwritten,
            'Quantise the trained model (`model.quantize("float8")` after `fit`), or train it with an optimizer of '
            "Keras's own.",
        )  # fmt: skip


def check_dtypes(variables: list[keras.Variable], blocks: list[Block], options: GameOptions) -> None:
    """Statistics and sample weights have one dtype; the plain open-loop step needs neither.

    Args:
        variables: the model's trainable ones.
        blocks: of its players.
        options: of the game.

    Raises:
        ValueError: if variables in float64 stand beside others.
    """
    dtypes = sorted({v.dtype for v in variables})
    plain = options.information == "open" and all(isinstance(b, IdentityBlock | InnerBlock) for b in blocks)
    if "float64" in dtypes and len(dtypes) > 1 and not plain:
        raise _checks.error(
            "model", "have trainable variables of one dtype", dtypes, "Give every layer the same `dtype`."
        )
