"""Vanilla batch DDP: the augmented recursion of all samples with every matrix written out.

    pass 1      outputs, loss, a copy of the state at every cut
    Jacobians   F_X, F_u of every stage, stacked over the samples, from one tape
    recursion   `bellman.expand`, `bellman.gains`, `bellman.value_update`, from the exact terminal Hessian
    pass 2      u + alpha k + K (new X - X), stage by stage; alpha = 1, 1/2, 1/4 ... until J falls as predicted

The states of a stage are stacked whole, so layers may couple samples (BatchNormalization) and any layer that can be
differentiated is a player. The price is (B n)^2 numbers per cut and P^2 per stage; `dense_bytes` counts them first.
Source: DDP1 Eqs. 29-34, with the states of all samples in one.
"""

import math
from typing import Any

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Arguments, Nested, Tensors
from bellman_tf.bellman import Expansion, Gains, Value, augment_batch, expand, gains, value_update
from bellman_tf.game.graph import Slot
from bellman_tf.game.players import Player
from bellman_tf.game.stages import require_one_call
from bellman_tf.keras_access import flat_inputs
from bellman_tf.layers.tensors import to_work
from bellman_tf.linalg import symmetrize
from bellman_tf.linalg.products import matmul, matvec
from bellman_tf.training.passes import AppliedPolicy, policy_forward, unflatten
from bellman_tf.training.round import Round
from bellman_tf.training.settings import DenseOptions
from bellman_tf.training.terminal import Terminal, record_terminal
from bellman_tf.training.update import constrain

SUFFICIENT = 1e-4  # of the predicted decrease that a step must deliver (Armijo)


def dense_bytes(states: list[int], controls: list[int], itemsize: int) -> int:
    """Bytes of the largest stage's matrices and of all gains.

    Args:
        states: B n of every cut, the output's last.
        controls: P of every stage.
        itemsize: bytes per number.

    Returns:
        Bytes.
    """
    stages = list(zip(states[:-1], controls, states[1:], strict=True))
    # F_X, F_u, V_XX after and before the stage, Q_ux with its solve, Q_uu with its factor
    largest = max(
        after * (before + P) + after**2 + 2 * before**2 + 2 * P * before + 2 * P**2 for before, P, after in stages
    )
    kept = sum(P * before + after * (before + P) for before, P, after in stages)
    return itemsize * (largest + kept)


def dense_step(batch: Round, options: DenseOptions) -> None:
    """Solves one batch by dense DDP.

    Args:
        batch: the step; its new values are queued.
        options: of vanilla DDP.

    Raises:
        ValueError: if a layer is applied at several stages or its place is not known, or the matrices would not fit.
    """
    DenseStep(batch, options).run()


class DenseStep:
    """One step of vanilla DDP while it is traced."""

    def __init__(self, batch: Round, options: DenseOptions) -> None:
        self.batch, self.game, self.options = batch, batch.program, options
        require_one_call(self.game, "dense DDP", "Use GTDDP, which trains such layers open-loop.")

    def run(self) -> None:
        """Passes, recursion, search, new values."""
        terminal = self._differentiate()
        policy, slope = self._backward(terminal)
        values = self._search(policy, slope)
        for player, moved in zip(self._players, values, strict=True):
            for variable, value in zip(player.variables, moved, strict=True):
                self.batch.assignments.add(variable, value)

    @property
    def _players(self) -> list[Player]:
        return [player for stage in self.game.stages for player in stage.players]

    # ---- derivatives

    def _differentiate(self) -> Value:
        """Pass 1 under two tapes, the second for second derivatives; returns the value at the outputs."""
        batch = self.batch
        trained = [v.value for player in self._players for v in player.variables]
        self._outer = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self._tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with self._outer, self._tape:
            self._tape.watch(trained)
            self._outer.watch(trained)
            self.forward = batch.forward(_TapePair(self._tape, self._outer), cuts=True)
            with record_terminal(self.forward, self._tape) as record:
                batch.compute_loss()
        terminal = Terminal(record, batch.loss, batch.total, batch.model)
        self._cuts = [list(cut.values()) for cut in self.forward.cuts]
        self._ends = [*self._cuts[1:], terminal.z]
        self._controls = [[v.value for p in stage.players for v in p.variables] for stage in self.game.stages]
        self._check_size()
        points = [*self._cuts, *self._controls, terminal.z, terminal.values]
        flat = self._tape.gradient(
            batch.loss, tf.nest.flatten(points), output_gradients=batch.seed(), unconnected_gradients="zero"
        )
        parts = unflatten(points, flat)
        terminal.resolve(parts[-1])
        depth = len(self._cuts)
        self._slopes = [self._stack(part) / batch.total for part in parts[: 2 * depth]]  # dJ/dX_t, then dJ/du_t
        self._slopes.insert(depth, self._stack(parts[-2]) / batch.total)
        return Value(self._slopes[depth], self._terminal_hessian(terminal))

    def _terminal_hessian(self, terminal: Terminal) -> tf.Tensor:
        """`sum_ij c_ij c_ij' / B` over samples and columns of the factor, each column in the rows of its sample."""
        rows = []
        for column in zip(*terminal.factor_columns(None), strict=True):  # of one output: r tensors like it
            Z = tf.stack([tf.reshape(to_work(c), [tf.shape(c)[0], -1]) for c in column], axis=-1)  # [B, n, r]
            rows.append(augment_batch(tf.cast(Z, self.batch.dtype), tf.cast(Z, self.batch.dtype))[0])
        C = tf.concat(rows, axis=0)
        return symmetrize(matmul(C, C, transpose_b=True)) / self.batch.total

    def _stack(self, tensors: Tensors) -> tf.Tensor:
        """Tensors as one vector."""
        flat = [tf.cast(tf.reshape(t, [-1]), self.batch.dtype) for t in tensors]
        return tf.concat(flat, axis=0) if flat else tf.zeros([0], self.batch.dtype)

    def _jacobian(self, tape: tf.GradientTape, targets: Tensors, sources: Tensors) -> tf.Tensor:
        """Derivative of stacked targets in stacked sources, `[n', n]`."""
        rows = []
        for target in targets:
            parts = tape.jacobian(target, sources, unconnected_gradients="zero") if sources else []
            size = tf.size(target)
            columns = [tf.reshape(tf.cast(part, self.batch.dtype), [size, -1]) for part in parts]
            rows.append(tf.concat(columns, axis=1) if columns else tf.zeros([size, 0], self.batch.dtype))
        return tf.concat(rows, axis=0)

    def _curvature(self, t: int, V_x: tf.Tensor) -> tf.Tensor:
        """Hessian of `<V_x, F>` in state and control, `[n + P, n + P]`."""
        seeds, rest = [], V_x
        for end in self._ends[t]:
            size = tf.size(end)
            seeds.append(tf.cast(tf.reshape(rest[:size], tf.shape(end)), end.dtype))
            rest = rest[size:]
        point = [*self._cuts[t], *self._controls[t]]
        with self._outer:
            slope = self._tape.gradient(self._ends[t], point, output_gradients=seeds, unconnected_gradients="zero")
            slope = [tf.convert_to_tensor(part) for part in slope]
        return symmetrize(self._jacobian(self._outer, slope, point))

    # ---- recursion

    def _backward(self, value: Value) -> tuple[list[Gains], tf.Tensor]:
        """Gains of every stage, and the sum of -Q_u' k: twice the decrease that the model predicts for a full step."""
        depth, dtype = len(self._cuts), self.batch.dtype
        policy, total = [], tf.zeros([], dtype)
        for t in reversed(range(depth)):
            F_x = self._jacobian(self._tape, self._ends[t], self._cuts[t])
            F_u = self._jacobian(self._tape, self._ends[t], self._controls[t])
            behind = self._slopes[t + 1]
            l_x = self._slopes[t] - matvec(F_x, behind, transpose_a=True)
            l_u = self._slopes[depth + 1 + t] - matvec(F_u, behind, transpose_a=True)
            n, P = tf.shape(F_x)[1], tf.shape(F_u)[1]
            costs = {"cost_uu": tf.eye(P, dtype=dtype) / self.batch.step.learning_rate}
            if self.options.second_order:
                H = self._curvature(t, value.V_x)
                costs = {"cost_uu": costs["cost_uu"] + H[n:, n:], "cost_ux": H[n:, :n], "cost_xx": H[:n, :n]}
            stiff = value.V_xx + self.options.value_damping * tf.eye(tf.shape(value.V_xx)[0], dtype=dtype)
            expansion = expand(Value(value.V_x, stiff), F_x, F_u, cost_x=l_x, cost_u=l_u, **costs)
            if self.options.second_order:
                expansion = self._convex(expansion)
            policy.insert(0, gains(expansion))
            value = value_update(expansion, policy[0])
            total -= tf.tensordot(expansion.Q_u, policy[0].open_loop, 1)
        return policy, total

    def _convex(self, expansion: Expansion) -> Expansion:
        """Q_uu shifted so that its least eigenvalue is at least the Tikhonov term, where curvature is negative."""
        least = tf.reduce_min(tf.linalg.eigvalsh(expansion.Q_uu))
        shift = tf.nn.relu(1 / self.batch.step.learning_rate - least)
        eye = tf.eye(tf.shape(expansion.Q_uu)[0], dtype=self.batch.dtype)
        return expansion._replace(Q_uu=expansion.Q_uu + shift * eye)

    # ---- pass 2

    def _follow(
        self, policy: list[Gains], alpha: tf.Tensor, finish: bool
    ) -> tuple[list[Tensors], AppliedPolicy | None]:
        """New values of all players under u + alpha k + K dX; with `finish` also the new network on the batch."""
        batch, values = self.batch, []

        def deviate(t: int, state: dict[Slot, tf.Tensor]) -> tf.Tensor:
            dX = self._stack([state[slot] for slot in self.forward.cuts[t]]) - self._stack(self._cuts[t])
            return alpha * policy[t].open_loop + matvec(policy[t].feedback, dX)

        def update(player: Player, t: int, du: tf.Tensor, arguments: Arguments) -> Tensors:
            stage = self.game.stages[t].players
            start = sum(p.parameters for p in stage[: stage.index(player)])
            decreases = []
            for variable in player.variables:
                size = math.prod(variable.shape)
                decreases.append(-tf.reshape(du[start : start + size], variable.shape))
                start += size
            values.append(batch.shifted(player, decreases))
            return [constrain(v, value) for v, value in zip(player.variables, values[-1], strict=True)]

        left: list[AppliedPolicy | None] = []

        def recorder(inputs: Nested) -> Nested:
            flat = flat_inputs(batch.model, inputs)
            left.append(policy_forward(self.game, flat, batch.frozen, deviate, update, [], finish))
            return batch.y_pred

        batch.call_model(recorder)
        return values, left[0]

    def _search(self, policy: list[Gains], slope: tf.Tensor) -> list[Tensors]:
        """The first of alpha = 1, 1/2, ... that lowers J by a share of what is predicted; else the old values."""
        batch, dtype = self.batch, self.batch.dtype
        batch.witnesses.append(slope)
        if not self.options.line_search:
            return self._follow(policy, tf.ones([], dtype), finish=False)[0]
        old = [batch.values[player.index] for player in self._players]

        def unfinished(trial: tf.Tensor, found: tf.Tensor, *_: Any) -> tf.Tensor:
            return (trial <= self.options.line_search) & ~found & tf.math.is_finite(slope)

        def attempt(trial: tf.Tensor, found: tf.Tensor, *_: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Tensors]:
            alpha = tf.cast(0.5, dtype) ** tf.cast(trial, dtype)
            values, left = self._follow(policy, alpha, finish=True)
            decrease = tf.cast(batch.loss - _checks.given("outputs", left).cost(batch.loss_of), dtype)
            found = decrease >= SUFFICIENT * (alpha - alpha**2 / 2) * slope
            return trial + 1, found, tf.where(found, alpha, 0), tf.nest.flatten(values)

        start = (tf.constant(0), tf.constant(False), tf.zeros([], dtype), tf.nest.flatten(old))
        _, found, alpha, flat = tf.while_loop(unfinished, attempt, start)
        batch.searched = alpha
        return unflatten(old, [tf.where(found, new, was) for new, was in zip(flat, start[-1], strict=True)])

    # ---- refusal

    def _check_size(self) -> None:
        cuts = [*self._cuts, self._ends[-1]]
        sizes = [size for size in map(_size, cuts) if size is not None]
        controls = [sum(math.prod(v.shape) for v in part) for part in self._controls]
        if len(sizes) < len(cuts):
            raise _checks.error(
                "x", "have a static batch size for dense DDP: its matrices are counted before they are made",
                [tensor.shape for tensor in self._ends[-1]],
                "Round the data with `drop_remainder=True`, or train with `train_on_batch`.",
            )  # fmt: skip
        needed = dense_bytes(sizes, controls, self.batch.dtype.size)
        if needed > self.options.memory_budget:
            raise _checks.error(
                "memory_budget",
                f"be at least {needed}: the stacked states of {self.batch.batch_size} samples have up to {max(sizes)} "
                f"entries and a stage up to {max(controls)} parameters",
                self.options.memory_budget,
                "Use GTDDP(value_hessian='batch', terminal_hessian='full'): the same recursion on matrices of the "
                "batch's size, or a smaller batch.",
            )


class _TapePair:
    """Two tapes that watch alike."""

    def __init__(self, *tapes: tf.GradientTape) -> None:
        self._tapes = tapes

    def watch(self, tensor: Any) -> None:
        for tape in self._tapes:
            tape.watch(tensor)


def _size(tensors: Tensors) -> int | None:
    sizes = [tf.TensorShape(tensor.shape).num_elements() for tensor in tensors]
    return None if None in sizes else sum(sizes)
