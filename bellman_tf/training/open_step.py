"""The open-loop step of `rollout="nonlinear"`: the baseline's own, one forward and one backward pass."""

import tensorflow as tf

from bellman_tf.training.moves import BatchOnly
from bellman_tf.training.passes import Forward
from bellman_tf.training.round import Round


def open_step(batch: Round) -> None:
    """Plain gradients from one tape; metrics from captures where a metric reads them.

    Args:
        batch: the step; its new values are queued.
    """
    players, settings = batch.game.players, batch.settings
    captured = [p for p in players if settings.blocks[p.index].needs_capture and p.covered]
    variables = [v.value for player in players for v in player.variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        if captured:
            forward = batch.forward(tape, cuts=False)
        else:
            forward = Forward()
            batch.y_pred = batch.call_model()
        batch.compute_loss()
    sites = [forward.sites[id(player.calls[0])][0] for player in captured]
    # Cotangents belong to B J, gradients to J.
    seed = batch.seed() if captured else None
    derivatives = tape.gradient(batch.loss, [*variables, *sites], output_gradients=seed, unconnected_gradients="zero")
    gradients = [tf.cast(tf.convert_to_tensor(g), batch.dtype) for g in derivatives[: len(variables)]]
    if captured:
        gradients = [g / batch.total for g in gradients]
    captures = {
        player.index: batch.capture(player, forward, [cotangent])
        for player, cotangent in zip(captured, derivatives[len(variables) :], strict=True)
    }
    if settings.clipping.global_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, settings.clipping.global_norm)
    remaining, waiting = iter(gradients), {}
    coupled = {k for coupling in settings.couplings for k in coupling.players}
    clipped = [batch.clip([next(remaining) for _ in player.variables]) for player in players]
    nothing = BatchOnly(batch.batch_size)
    batch.update_metrics([(p, captures.get(p.index, nothing), g) for p, g in zip(players, clipped, strict=True)])
    for player, gradient in zip(players, clipped, strict=True):
        if player.index in coupled:
            waiting[player.index] = gradient
        else:
            batch.subtract(player, gradient)
    batch.couple()
    for index in list(waiting):
        if index not in batch.together:
            batch.subtract(players[index], waiting[index])
        elif batch.leads(players[index]):
            batch.move_together(batch.together[index], [waiting[p.index] for p in batch.members(players[index])])
