"""V_XX and the gains of a trained model on one batch, as arrays: GT Fig. 4.

Every sample's cost has backward passes of its own, so that layers that couple samples, as BatchNormalization does, are
exact. With D_t the gradients of all samples' columns in the stacked state at a cut, U_p those in a player's parameters,
M_p its metric, and Gamma_t the sum of U_p' M_p^{-1} U_p over the players from stage t on, the value before stage t and
the policy of a player in it are

    V_XX = D_t S_t D_t',  S_t = (I + S_T Gamma_t)^{-1} S_T,  k = -M_p^{-1} (l_u + U_p a_t),  K = -M_p^{-1} U_p S_t D_t'.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Array
from bellman_tf.analysis.eager_step import eager_step, player_of
from bellman_tf.game.players import Player
from bellman_tf.training.game_step import GameStep
from bellman_tf.training.terminal import Terminal, record_terminal

MEMORY = 2**30


class Gains(NamedTuple):
    """The policy of one player: du = open + feedback dX, in the order of its variables, flattened.

    Attributes:
        open: k, `[P]`.
        feedback: K, `[P, B, n]`, n the numbers of one sample's state at the cut before the player's stage.

    Example:
        >>> policy = Gains(open=np.zeros(4), feedback=np.ones((4, 2, 3)))
        >>> (policy.open + np.tensordot(policy.feedback, np.full((2, 3), 0.5), 2)).tolist()  # dX is 0.5
        [3.0, 3.0, 3.0, 3.0]
    """

    open: np.ndarray
    feedback: np.ndarray


class _Columns(NamedTuple):
    """Gradients of all samples' columns, B m of them, samples first.

    Attributes:
        states: for each stage, `[B m, B, n]`.
        players: for each player, one array `[B m, *shape]` per variable.
        root: factor of S_T, `[B m, B r]`.
    """

    states: list[np.ndarray]
    players: list[list[np.ndarray]]
    root: np.ndarray


def value_hessian(
    model: keras.Model,
    x: Array,
    layer: keras.Layer | str,
    y: Array | None = None,
    *,
    factor: bool = False,
    memory: int = MEMORY,
) -> np.ndarray:
    """V_XX of the mean loss in the stacked state before a layer's stage, samples coupled.

    The optimizer's metric as it stands, the loss's whole Hessian, linear dynamics, one value for all players.

    Args:
        model: a model of this package, compiled with an optimizer of this package.
        x: inputs of the batch.
        layer: a player behind the first stage: the layer or its name.
        y: labels; needed only for losses whose Hessian depends on them.
        factor: return a factor N of V_XX = N N' instead.
        memory: bytes that the gradients and the result may take.

    Returns:
        `[B, n, B, n]`, n the numbers of all tensors that cross the cut, or with `factor` N, `[B, n, B r]`.

    Raises:
        ValueError: if the layer is no player with a Gram form or acts in the first stage, the model is not compiled
            with an optimizer of this package, or what is needed does not fit into `memory`.

    Source: GTDDP Fig. 4, DDP1 Eqs. 29-34; claims OURS-2.
    Checked against: `verification/references/training.py`.

    Example:
        >>> hidden, last = keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)
        >>> model = btf.Sequential([keras.Input((2,)), hidden, last])
        >>> model.compile(optimizer=btf.GTDDP(0.1, curvature="identity"), loss="mse")
        >>> V = btf.analysis.value_hessian(model, np.eye(2, dtype="float32"), last).reshape(6, 6)
        >>> np.allclose(V, V.T), int(np.linalg.matrix_rank(V))
        (True, 2)
    """
    step, columns, stage, cores = _solved(model, x, layer, y, memory)
    D, L = columns.states[stage], cores[stage][0]
    N = np.einsum("cbn,ck->bnk", D, L)
    if factor:
        return N
    B, n = N.shape[:2]
    _check_memory((B * n) ** 2, memory, "Pass `factor=True`, or fewer samples.")
    return np.einsum("bnk,cmk->bncm", N, N)


def gains(
    model: keras.Model, x: Array, layer: keras.Layer | str, y: Array | None = None, *, memory: int = MEMORY
) -> Gains:
    """Open and feedback gain of a layer's parameters on the stacked state before its stage.

    Arguments, errors and setting as `value_hessian`; `analysis.feedback_spectrum` has the singular values of K without
    forming it, for networks that do not couple samples.

    Args:
        model: a model of this package, compiled with an optimizer of this package.
        x: inputs of the batch.
        layer: a player behind the first stage: the layer or its name.
        y: labels; needed for the open gain, and for losses whose Hessian depends on them.
        memory: bytes that the gradients and the result may take.

    Returns:
        The gains.

    Source: GTDDP Fig. 4, DDP1 Eqs. 29-34; claims OURS-2.
    Checked against: `verification/references/training.py`.

    Example:
        >>> hidden, last = keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)
        >>> model = btf.Sequential([keras.Input((2,)), hidden, last])
        >>> model.compile(optimizer=btf.GTDDP(0.1, curvature="identity"), loss="mse")
        >>> found = btf.analysis.gains(model, np.eye(2, dtype="float32"), last, np.ones((2, 1), "float32"))
        >>> found.open.shape, found.feedback.shape  # four parameters, two samples, three units before the layer
        ((4,), (4, 2, 3))
    """
    step, columns, stage, cores = _solved(model, x, layer, y, memory)
    player = player_of(model, layer)
    D, (L, a) = columns.states[stage], cores[stage]
    solved = _solve(step, player, columns.players[player.index])
    P = solved.shape[1]
    _check_memory(P * D[0].size, memory, "Take fewer samples or a smaller layer.")
    own = _solve(step, player, [cost.numpy()[None] for cost in step.batch.own_cost(player)])[0]
    return Gains(-own - solved.T @ a, -np.einsum("cp,ck,dk,dbn->pbn", solved, L, L, D, optimize=True))


def _check_memory(numbers: int, memory: int, advice: str) -> None:
    needed = 8 * numbers
    if needed > memory:
        raise _checks.error("memory", f"be at least {needed} bytes for this layer and batch", memory, advice)


def _solved(
    model: keras.Model, x: Array, layer: keras.Layer | str, y: Array | None, memory: int
) -> tuple[GameStep, _Columns, int, list[tuple[np.ndarray, np.ndarray]]]:
    """The step with its metrics, the columns, the layer's stage, and (L, a) before every stage."""
    with eager_step(model, x, y) as step:
        player = player_of(model, layer)
        step.stage_values()  # brings the metrics up to date
        columns = _columns(step, memory)
        cores = _cores(step, columns)
    return step, columns, player.place, cores


def _solve(step: GameStep, player: Player, parts: list[np.ndarray]) -> np.ndarray:
    """`M^{-1}` of each row, flattened, `[rows, P]`."""
    tensors = [tf.constant(part[:, None], step.batch.dtype) for part in parts]
    metric = _checks.given("metric", step.batch.metrics[player.index])
    solved = [part.numpy() for part in metric.solve(tensors)]
    return np.concatenate([part.reshape(len(part), -1) for part in solved], axis=1)


def _columns(step: GameStep, memory: int) -> _Columns:
    """One backward pass per sample and column."""
    batch, game = step.batch, step.game
    variables = [[v.value for v in player.variables] for player in game.players]
    with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
        tape.watch(variables)
        forward = batch.forward(tape, cuts=True)
        with batch.direct_use(), record_terminal(forward, tape) as record:
            batch.compute_loss()
    terminal = Terminal(record, batch.loss, batch.total, batch.model)
    at_z, at_values = tape.gradient(
        batch.loss, [terminal.z, terminal.values], output_gradients=batch.seed(), unconnected_gradients="zero"
    )
    terminal.resolve(at_values)
    seeds = [at_z, *terminal.factor_columns(None)]
    B, m = int(batch.batch_size), len(seeds)
    cuts = [list(cut.values()) for cut in forward.cuts]
    numbers = sum(int(tf.size(t)) for t in tf.nest.flatten([cuts, variables]))
    _check_memory(B * m * numbers, memory, "Take fewer samples.")
    rows = []
    for i in range(B):
        for column in seeds:
            own = [_row_alone(seed, i) for seed in column]
            rows.append(
                tape.gradient(terminal.z, [cuts, variables], output_gradients=own, unconnected_gradients="zero")
            )
    states = [
        np.stack(
            [
                np.concatenate([t.numpy().reshape(B, -1) for t in row[0][s]] or [np.zeros((B, 0))], axis=1)
                for row in rows
            ]
        )
        for s in range(len(cuts))
    ]
    players = [
        [np.stack([tf.convert_to_tensor(row[1][p][k]).numpy() for row in rows]) for k in range(len(variables[p]))]
        for p in range(len(variables))
    ]
    root = np.kron(np.eye(B), np.eye(m)[:, 1:]) / np.sqrt(B)
    return _Columns(states, players, root)


def _row_alone(seed: tf.Tensor, i: int) -> tf.Tensor:
    """The seed of one sample, zeros elsewhere."""
    rows = tf.one_hot(i, seed.shape[0], dtype=seed.dtype)
    return seed * tf.reshape(rows, [-1] + [1] * (len(seed.shape) - 1))


def _cores(step: GameStep, columns: _Columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """(L, a) with S_t = L L' and V_X = D_t a, before every stage."""
    n, found = len(columns.root), []
    B = int(step.batch.batch_size)
    start = np.zeros(n)
    start[:: n // B] = 1 / B
    gram, pull = np.zeros((n, n)), np.zeros(n)
    for stage in reversed(step.game.stages):
        for player in stage.players:
            if not player.covered:
                continue
            q = columns.players[player.index]
            flat = np.concatenate([part.reshape(n, -1) for part in q], axis=1)
            solved = _solve(step, player, q)
            gram = gram + flat @ solved.T
            own = np.concatenate([cost.numpy().ravel() for cost in step.batch.own_cost(player)])
            pull = pull + solved @ own
        N = columns.root
        factor = np.linalg.cholesky(np.eye(N.shape[1]) + N.T @ (gram + gram.T) @ N / 2)
        L = np.linalg.solve(factor, N.T).T
        found.insert(0, (L, start - L @ (L.T @ (gram @ start + pull))))
    return found
