"""
Title: Any Keras model
Author: bellman_tf
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Trains a transformer made of user-defined layers with GTDDP around Keras's AdamW.
"""

"""
## The optimizer

With `inner_optimizer` GTDDP only weighs the samples; a Keras optimizer of your choice takes the step, with its own
rate, schedule, momentum and weight decay.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import bellman_tf as btf

optimizers = {
    "AdamW": keras.optimizers.AdamW(3e-3),
    "GTDDP around AdamW": btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(3e-3)),
}

"""
## The model

Layers of your own need nothing special. This block calls layers that it holds, as one writes it in plain Keras.
"""


class Block(keras.layers.Layer):
    def __init__(self, width):
        super().__init__()
        self.before, self.between = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
        self.attention = keras.layers.MultiHeadAttention(4, width // 4)
        self.wide = keras.layers.Dense(2 * width, activation="gelu")
        self.narrow = keras.layers.Dense(width)

    def call(self, x):
        h = self.before(x)
        x = x + self.attention(h, h)
        return x + self.narrow(self.wide(self.between(x)))


class Positions(keras.layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="uniform")

    def call(self, x):
        return x + self.table


"""
The rows of an 8 x 8 image are its eight tokens. The model is a plain `keras.Model`; `btf.as_game` returns a model
of the same layers and weights that can be compiled with any optimizer, ours or Keras's.
"""


def build():
    inputs = keras.Input((8, 8))
    x = Positions()(keras.layers.Dense(32)(inputs))
    for _ in range(2):
        x = Block(32)(x)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return btf.as_game(keras.Model(inputs, keras.layers.Dense(10)(x)))


"""
## Coverage

The players are found wherever they stand, inside attention and inside `Block`. A layer is *covered* if its
gradients, sample by sample, are known without a backward pass per sample; `Positions` is not, for it adds a
variable itself. It trains all the same, with the weights that the other layers' recursion finds.
"""

game = build()
game.game_summary()
assert game.game.coverage > 0.98

"""
## Training
"""

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
x, y = (images[order].reshape(-1, 8, 8) / 16).astype("float32"), labels[order]

losses = {}
for name, optimizer in optimizers.items():
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses[name] = model.fit(x[:1437], y[:1437], epochs=3, verbose=0).history["loss"]
    print(f"{name}: train loss by epoch {np.round(losses[name], 3)}")

"""
## What to see

From the same weights on the same batches the loss is lower in every epoch. Three epochs of one seed are a
demonstration and no proof: `keras_examples/studies` has the tuned comparisons, with the cases that are lost.
"""

assert all(ours < plain for ours, plain in zip(losses["GTDDP around AdamW"], losses["AdamW"], strict=True))
