"""A program that a user may write. The type checker must find nothing here; nobody runs it."""

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from bellman_tf import trajectory

x, y = np.zeros([8, 3], "float32"), np.zeros([8, 2], "float32")

# ---- training

inputs = keras.Input((3,))
model = btf.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(4, activation="tanh")(inputs)))
model.compile(optimizer=btf.GTDDP(0.03, curvature="kfac", information="feedback", group_size=4), loss="mse")
history = model.fit(x, y, epochs=2, verbose=0)
print(history.history["loss"][-1])

stack = btf.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
stack.compile(optimizer=btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(1e-3)), loss="mse")

schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.9)
game = btf.as_game(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
game.compile(optimizer=btf.DGNOpt(schedule, alignment="adaptive", bandit="ucb1", curvature="ekfac"), loss="mse")
game.fit(x, y)
game.game_summary(print_fn=print)
names: list[str] = [player.name for player in game.game.players if player.covered]
share: float = game.game.coverage
depth: int = len(model.game.stages)
first: int | None = model.game.stage_of(model.game.players[0])
ways: int = model.game.alignments.count
model.game.summary("model", print_fn=print)
model.game.plot("game.png", stages_per_row=4)

published: btf.GTDDP = btf.GTDDP.as_published(paper="dgnopt", curvature=btf.curvature.EKFAC(damping=0.1))
careful = btf.DDPNOpt(0.1, step_control=btf.LevenbergMarquardt(), curvature=btf.curvature.KFAC())
joint = btf.curvature.EKFAC(cooperative="published", cooperative_sign=-1, fisher="model", scalings="exact")
baseline: btf.KFAC = btf.KFAC(0.01, weight_decay=1e-4, use_ema=True, name="baseline")

# ---- looking into it

singular_values: np.ndarray = btf.analysis.feedback_spectrum(model, x, "dense_1", y)
monitor = btf.callbacks.GameMonitor(csv="steps.csv", every=10)

# ---- control


def dynamics(state: tf.Tensor, control: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
    return state + 0.1 * control


def running_cost(state: tf.Tensor, control: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(control**2, axis=1)


def terminal_cost(state: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum((state - 1.0) ** 2, axis=1)


problem = trajectory.Problem(dynamics, running_cost, terminal_cost, horizon=20, lower=-1.0, upper=1.0)
schedule_of_mu = trajectory.Regularization(on="control")
solution = trajectory.solve(problem, np.zeros([2]), np.zeros([20, 2]), max_iterations=50)
controls: np.ndarray = solution.controls.numpy()

# ---- mathematics

factor = btf.linalg.factor_spd(tf.constant([[2.0]]), damping=0.1)
halved: tf.Tensor = btf.linalg.solve_spd(factor, tf.constant([[1.0]]))
value = btf.bellman.Value(tf.constant([1.0]), tf.constant([[1.0]]))
