"""
Title: Reading a game
Author: bellman_tf
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Looks at a network as a game, at the numbers of its training, and at what its layers' policies answer.
"""

"""
## A game with two residual blocks

The layers are named, because the tables, figures and functions below find them by their names.
"""

import itertools
import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits

import bellman_tf as btf

keras.utils.set_random_seed(0)
inputs = keras.Input((64,))
x = keras.layers.Dense(32, activation="tanh", name="enter")(inputs)
for k in range(2):
    inner = keras.layers.Dense(32, activation="tanh", name=f"block_{k}_in")(x)
    x = keras.layers.Add()([x, keras.layers.Dense(32, activation="tanh", name=f"block_{k}_out")(inner)])
model = btf.Model(inputs, keras.layers.Dense(10, name="exit")(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=btf.GTDDP(learning_rate=0.03), loss=loss)

"""
## Summary and plot

`game_summary` prints stages and players; `game.plot` draws them into a PNG or SVG file. `model.game` has the same
as objects.
"""

model.game_summary()
path = pathlib.Path(tempfile.mkdtemp()) / "game.png"
model.game.plot(path)
print(f"{len(model.game.stages)} stages, {len(model.game.players)} players, drawn into {path}")

"""
## Numbers of the training

`GameMonitor` adds the game's numbers to the logs of every epoch. `predicted_reduction` is what the recursion's
quadratic model expects of the steps, with the price that the metric puts on moving, `actual_reduction` the true
decrease of the loss on the step's batch; their ratio is 2 for very short steps and falls where the model fails.
`feedback_ratio/stage_t` is the size of the feedback part of the samples' weights beside their open-loop part.
"""

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))[:1437]
x_train, y_train = (images[order] / 16).astype("float32"), labels[order]
monitor = btf.callbacks.GameMonitor()
history = model.fit(x_train, y_train, batch_size=64, epochs=4, verbose=0, callbacks=[monitor]).history
for name in ("loss", "predicted_reduction", "actual_reduction", "reduction_ratio", "feedback_ratio/stage_5"):
    print(f"{name}: {np.round(history[name], 3)}")

"""
## Feedback maps

A layer's policy is its step as a function of the state in front of it. `analysis.feedback_maps` returns the
deviations of that state that the policy answers most, here as images in the pixels. They resemble differences
between classes: of each map we print the two digits whose mean images differ most nearly along it.
"""

maps = btf.analysis.feedback_maps(model, x_train[:64], "block_0_in", count=4, project=True)
means = np.stack([x_train[y_train == digit].mean(axis=0) for digit in range(10)])
pairs = list(itertools.combinations(range(10), 2))
differences = np.stack([(means[a] - means[b]) / np.linalg.norm(means[a] - means[b]) for a, b in pairs])
cosines = np.abs(maps @ differences.T)
for row in cosines:
    print(f"digits {pairs[row.argmax()]}: cosine {row.max():.2f}")

"""
## What to see

The model's prediction has the right size in every epoch, and the leading maps lie along differences between digits
more than random directions do.
"""

random = np.random.default_rng(0).normal(size=(200, 64))
random /= np.linalg.norm(random, axis=1, keepdims=True)
assert path.stat().st_size > 0
assert all(1.0 < ratio < 2.0 for ratio in history["reduction_ratio"])
assert cosines.max(axis=1).mean() > 1.5 * np.abs(random @ differences.T).max(axis=1).mean()
