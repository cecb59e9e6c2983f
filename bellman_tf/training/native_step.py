"""The step of `rollout="linear"`: one pass of the model as it runs, one solve, the gradient of a re-weighted loss.

    forward     the model and its loss, run by Keras under a tape; covered layers are noted            (native_pass.py)
    backward    one call gives the cotangents of every noted tensor                                    (native_pass.py)
    curvature   each player's metric, its Gram matrix
    roll-out    Gram matrices to one weight per sample and column                                      (information.py)
    gradient    that of sum_i w_i phi_i: noted cotangents weighed sample by sample, taken through the layer's
                own backward pass where it has no Gram form; one more backward pass of the weighted
                loss for the players that need it
    move        each player under its metric, or another optimizer with the gradient (optimizers/inner.py)

On the linearised network every later stage's feedback is known from Gram matrices alone, so no second forward pass and
no order of the layers is needed: all players act with the same weights `w = (I + S Gamma)^{-1} (a - S lambda)`.
Source: claims OURS-2, derived in `docs/how-ddp.md`.
"""

import functools

import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Tensors
from bellman_tf.curvature.gram import condense
from bellman_tf.game.players import COTANGENTS, Player
from bellman_tf.layers.capture import weigh_each
from bellman_tf.losses import keras_computes_loss
from bellman_tf.training.accumulation import accumulate
from bellman_tf.training.context import Outcome
from bellman_tf.training.contributions import Contributions
from bellman_tf.training.displacement import decrease_of, outcome_of_replicas
from bellman_tf.training.global_policy import Part, Share, policy_of_replicas, sides_of
from bellman_tf.training.linear_policy import LinearPolicy
from bellman_tf.training.monitor import numbers_of, predicts
from bellman_tf.training.moves import BatchOnly
from bellman_tf.training.native_pass import NativePass
from bellman_tf.training.own_losses import Objective, gradient_of
from bellman_tf.training.own_policy import policy_of
from bellman_tf.training.round import Round


def native_step(step: Round) -> None:
    """Solves one batch.

    Args:
        step: the step, of a `NativeGame`; its new values are queued.
    """
    NativeStep(step).run()


class NativeStep(NativePass):
    """One native step while it is traced."""

    def __init__(self, step: Round) -> None:
        super().__init__(step)
        self.policy: LinearPolicy | None = None
        self.everyone = self.options.coupling == "global" and replicas.count() > 1  # whether replicas play one game

    def run(self) -> None:
        """Forward, backward, weights, gradients, moves."""
        self.run_forward()
        curved = self.curved()
        self.run_backward(curved)
        if curved:
            self._measure()
            self._roll_out()
        gradients = self._gradients()  # of this replica's samples
        step, settings = self.step, self.step.settings
        wanted = settings.wants_outcome and self.information.curved
        if settings.watched and self.information.curved:
            step.telemetry |= numbers_of(self.policy, self.options, self.game, step.dtype)
        if settings.handed_over:
            step.gradients = gradients
            step.outcome_of = functools.partial(self._outcome, replicas.total(gradients)) if wanted else None
            return
        gradients = replicas.total(gradients)
        if self.options.micro_batches > 1:
            accumulate(step, gradients, self.seen, lambda mean: self._move(step.clip_all(mean)))
        else:
            gradients = step.clip_all(gradients)
            self._move(gradients)
            step.outcome = self._outcome(gradients, step.new_values()) if wanted else None

    # ---- curvature and weights

    def _measure(self) -> None:
        """Metrics of the covered players: new ones from captures, standing ones where the gradient has yet to come.

        Standing metrics count what they have seen no gradient of for nothing: the first step is the baseline's.
        """
        step = self.step
        known = [p for p in self.covered if not self.blocks[p.index].needs_gradient]
        step.update_metrics([(p, self.seen[p.index], None) for p in known])
        step.couple()
        self.metrics = {p.index: step.metric_of(p) for p in known}
        for player in self.covered:
            if player.index not in self.metrics:
                block, state = self.blocks[player.index], step.context.state[player.index]
                self.metrics[player.index] = block.standing(state, step.step)
        self.contributions = Contributions(step, self.wholes, lambda player: self.metrics[player.index])

    def _roll_out(self) -> None:
        """Gram matrices of all players, one after the other, and the weights of all samples."""
        step, options, contributions = self.step, self.options, self.contributions
        group_size = options.coupled(step.batch_size)
        direct = step.settings.momentum.direct if step.settings.momentum.known else 1.0
        leading = [player for player in self.covered if step.leads(player)]
        if self.everyone:
            parts = [Part(p, self._sides(p), contributions.pull(p), self._ahead(p)) for p in leading]
            self.policy = policy_of_replicas(
                parts, self.objectives, self.information, step.batch_size, step.dtype, direct
            )
            self.policy.solve(self.game)
            return
        share, sizes = 1 / options.micro_batches, (group_size, step.batch_size)
        self.policy = policy_of(self.objectives, self.information, *sizes, step.dtype, direct, share)
        done: list[tf.Tensor] = []
        for index in (p.index for p in leading if self.blocks[p.index].needs_capture):  # may wait for others' captures
            condense(self.wholes[index], self.metrics[index].kind, group_size, options.gram, options.gram_limits)
        for player in reversed(leading):  # the order in which the backward pass gives their cotangents
            with tf.control_dependencies(done):  # gradients per sample of one layer at a time
                found = contributions.gram(player, group_size)
            done = [self.policy.add(player, found, contributions.pull(player), self._ahead(player))]
        self.policy.solve(self.game)

    def _sides(self, player: Player) -> Share:
        """What its samples send to those of other replicas; the Gram matrix of this one where that is too much."""
        pairs = [(self.wholes[member.index], self.metrics[member.index]) for member in self.step.members(player)]
        found = sides_of(pairs, self.step.together.get(player.index), self.options)
        return self.contributions.gram(player, None) if found is None else found

    def _ahead(self, player: Player) -> tf.Tensor | None:
        """`<q_ij, D>`, `[R, m]`, D what momentum will move; `None` without momentum in the policy."""
        step, momentum = self.step, self.step.settings.momentum
        if not momentum.known:
            return None
        velocities = [step.context.velocities[member.index] for member in step.members(player)]
        moved = [momentum.ahead([tf.cast(v, step.dtype) for v in velocity]) for velocity in velocities]
        return self.contributions.inner(player, moved)

    @property
    def _solved(self) -> LinearPolicy:
        return _checks.given("policy", self.policy)

    # ---- gradient of the weighted loss

    def _gradients(self) -> list[Tensors]:
        """The gradient of sum_i w_i phi_i and of all own costs in the order of the players, this replica's terms."""
        step, players = self.step, self.game.players
        if self.policy is None:
            gradients = [self.plain[player.index] for player in players]
        else:
            found: dict[int, Tensors] = {}
            for player in self.covered:
                if self._weighs(player):
                    weighed = self.captures[player.index].gradient(self._weights(player))
                    found[player.index] = step.with_own_cost(player, weighed)
            found |= self._enclosed()
            if keras_computes_loss(step.model) and not step.direct:  # another loss may see what the outputs do not
                found |= {p.index: [replicas.share(cost) for cost in step.own_cost(p)] for p in players if p.null}
            for objective in self.objectives:
                rest = [p for p in objective.players if p.index not in found]
                found |= self._weighed_backward(objective, rest) if rest else {}
            gradients = [found[player.index] for player in players]
        return gradients

    def _weighs(self, player: Player) -> bool:
        """Whether weighing cotangents gives the player's gradient of the weighted loss."""
        apart = not any(id(v) in self.step.direct for v in player.variables)
        return player.weighing == COTANGENTS and apart

    def _weights(self, player: Player) -> tf.Tensor:
        return self._solved.weights(self.step.members(player)[0])

    def _enclosed(self) -> dict[int, Tensors]:
        """Gradients of open-loop players, each from the outputs of the layer that it acts within, by index."""
        inside = [p for p in self.game.players if id(p.within) in self.sites and self._weighs(p)]
        found: dict[int, Tensors] = {}
        # one layer may lie in another: not all at once
        for key, objective in {(id(p.within), self.objective[p.index]): None for p in inside}:
            members = [p for p in inside if id(p.within) == key and self.objective[p.index] is objective]
            columns = [column[key] for column in objective.columns]
            seeds = weigh_each(self.sites[key], columns, self._solved.mean_weights[objective.number])
            variables = [[v.value for v in p.variables] for p in members]
            parts = gradient_of(self.tape, self.sites[key], variables, seeds)
            found |= {p.index: self.step.with_own_cost(p, g) for p, g in zip(members, parts, strict=True)}
        return found

    def _weighed_backward(self, objective: Objective, players: list[Player]) -> dict[int, Tensors]:
        """One more backward pass, of `J + sum_i (w_i - 1/R) phi_i`, regularizers included in J.

        Where players have weights of their own (information structures without a joint value) the pass takes the mean
        of the weights of all players with the same objective.

        Args:
            objective: what the players minimise.
            players: whose gradients are wanted.

        Returns:
            The gradients, by index.
        """
        step, weights = self.step, self._solved.mean_weights[objective.number]
        found = objective.weighed([[v.value for v in p.variables] for p in players], weights, step.total)
        return {p.index: [tf.cast(g, step.dtype) for g in parts] for p, parts in zip(players, found, strict=True)}

    # ---- moves

    def _move(self, gradients: list[Tensors]) -> None:
        """Statistics that read the gradient, then every player's step."""
        step, players = self.step, self.game.players
        nothing = BatchOnly(step.batch_size * self.options.micro_batches)
        late = [p for p in players if step.metrics[p.index] is None]
        for player in [p for p in late if self.blocks[p.index].needs_capture and p.index not in self.captures]:
            late.remove(player)  # not called in this step: its statistics stay as they are
            step.metrics[player.index] = self.blocks[player.index].standing(step.context.state[player.index], step.step)
        step.update_metrics([(p, self.seen.get(p.index, nothing), gradients[p.index]) for p in late])
        step.couple()
        done: list[tf.Tensor] = []
        for player in reversed(players):
            together = step.together.get(player.index)
            with tf.control_dependencies(done):  # the temporary tensors of one layer at a time
                if together is None:
                    done = step.subtract(player, gradients[player.index])
                elif step.leads(player):
                    [done, *_] = step.move_together(together, [gradients[p.index] for p in together.players])

    # ---- what comes of it

    def _outcome(self, gradients: list[Tensors], new: dict[int, tf.Tensor]) -> Outcome:
        """What new values do to J; without a prediction where the model is not that of the whole batch."""
        step, policy = self.step, self.policy
        [actual] = replicas.total([tf.cast(step.loss, step.dtype) - step.loss_after(new)])
        if not predicts(self.options):
            return Outcome(tf.constant(float("nan"), actual.dtype), actual, tf.zeros([3], actual.dtype))
        if step.settings.handed_over or step.settings.momentum.beta:
            decrease = decrease_of(step, policy, self.captures, gradients, new)
            return Outcome(decrease, actual, tf.zeros([3], actual.dtype))
        if replicas.count() > 1 and not self.everyone:
            predicted, held_out = outcome_of_replicas(step, policy, self.captures, gradients, new)
            return Outcome(predicted, actual, held_out)
        loose = []
        for player in self.game.players:
            if policy is None or player.index not in self.captures:
                # open-loop: half of <g, decrease>, as for a quadratic model's best step
                moved = [new[id(v)] for v in player.variables]
                pairs = zip(gradients[player.index], step.values[player.index], moved, strict=True)
                loose += [tf.reduce_sum(g * tf.cast(before - now, step.dtype)) for g, before, now in pairs]
        open_loop = tf.add_n(loose) / 2 if loose else tf.zeros_like(actual)
        if policy is None:
            return Outcome(open_loop, actual, tf.zeros([3], actual.dtype))
        predicted = policy.predicted_reduction(self.contributions.own_drop())
        return Outcome(predicted + open_loop, actual, policy.held_out_model())
