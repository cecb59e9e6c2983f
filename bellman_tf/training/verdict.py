"""The verdict on a step: whether the batch is good, whether the step is taken, and what its optimizer is handed."""

import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Restored
from bellman_tf.training.accumulation import kept_sums
from bellman_tf.training.context import StepResult
from bellman_tf.training.round import Round
from bellman_tf.training.step_control import judge, measures
from bellman_tf.training.update import all_finite


def conclude(step: Round) -> StepResult:
    """Judges a step whose new values are all queued.

    Args:
        step: the step.

    Returns:
        What the optimizer has to assign.
    """
    changed = step.changed_state()
    handed = [] if step.gradients is None else [part for parts in step.gradients for part in parts]
    floating = [t for place, t in changed.items() if t.dtype.is_floating and place not in step.implied]
    summed = [part for parts in step.sums for part in parts]
    control = step.context.control
    accepted, values = replicas.agreed([
        all_finite([step.loss, *step.witnesses, *summed]),
        all_finite([*step.assignments.values, *floating, *handed]),
    ])  # fmt: skip
    good = accepted  # a micro-batch; the update that it completes may still be bad
    if step.settings.control is None:
        accepted = taken = accepted & values
    else:
        measured = measures(step.settings.control, step.context.iteration)
        [loss] = replicas.total([step.loss])
        outcome, control = _checks.given("outcome", step.outcome), _checks.given("control", control)
        verdict = judge(
            step.settings.control, control, outcome, loss, measured, first=tf.equal(step.context.iteration, 0)
        )
        accepted &= tf.math.is_finite(outcome.predicted)
        taken = accepted & values & verdict.taken
        control = tf.where(accepted, verdict.state, control)
    return StepResult(
        loss=step.shown,
        y_pred=step.y_pred,
        assignments=step.assignments,
        state=changed,
        old_state=step.context.state,
        restore=_restored(step),
        accepted=accepted,
        taken=taken,
        kept=taken if step.present is None else taken & step.present,
        control=control,
        clamped=step.clamped,
        outcome=step.outcome,
        telemetry=_averaged(step),
        searched=step.searched,
        gradients=step.gradients,
        velocities=step.velocities,
        outcome_of=step.outcome_of,
        sums=kept_sums(step, good),
        spoiled=None if step.completes is None else good & step.completes & ~accepted,
    )


def _averaged(step: Round) -> dict[str, tf.Tensor]:
    """Numbers about the sample weights, their means over the replicas."""
    return dict(zip(step.telemetry, replicas.mean(list(step.telemetry.values()), step.present), strict=True))


def _restored(step: Round) -> Restored:
    """What a bad batch puts back: all that the model wrote, but generators, which go on from where they are."""
    own = [(v, value) for v, value in step.frozen if value.dtype.is_floating or "seed_generator" not in v.path]
    return [*own, *((v, value) for v, value in step.raw if value.dtype.is_floating)]
