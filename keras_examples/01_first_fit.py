"""
Title: A first fit
Author: bellman_tf
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Trains a small residual network on DIGITS with GTDDP and with K-FAC, at two learning rates.
"""

"""
## The optimizer

`btf.GTDDP` is a Keras optimizer. Its default metric is K-FAC's; what it adds is a recursion over the layers that
weighs the samples of a batch anew for every layer.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import bellman_tf as btf

optimizers = {
    "K-FAC, rate 0.01": btf.KFAC(learning_rate=0.01),
    "GTDDP, rate 0.03": btf.GTDDP(learning_rate=0.03),
    "K-FAC, rate 0.1": btf.KFAC(learning_rate=0.1),
    "GTDDP, rate 0.1": btf.GTDDP(learning_rate=0.1),
}

"""
0.01 and 0.03 are the two optimizers' defaults; 0.1 is ten times the first.

## The data

DIGITS comes with scikit-learn: 1797 images of 8 x 8 pixels. The first 1437 of a fixed order are for training.
"""

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
x = (images[order].reshape(-1, 8, 8, 1) / 16).astype("float32")
y = labels[order]
x_train, y_train, x_test, y_test = x[:1437], y[:1437], x[1437:], y[1437:]

"""
## The network

Any functional model, made with `btf.Model` in place of `keras.Model`.
"""


def build():
    inputs = keras.Input((8, 8, 1))
    a = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    b = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(a)
    pooled = keras.layers.MaxPooling2D()(keras.layers.Add()([a, b]))
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(pooled)))


"""
## Training

`compile` and `fit` are Keras's own. Every run starts from the same weights and sees the same batches.
"""

losses, accuracies = {}, {}
for name, optimizer in optimizers.items():
    keras.utils.set_random_seed(0)
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    history = model.fit(x_train, y_train, epochs=3, verbose=0)
    losses[name] = history.history["loss"][-1]
    accuracies[name] = model.evaluate(x_test, y_test, verbose=0)[1]
    print(f"{name}: train loss {losses[name]:.3g}, test accuracy {accuracies[name]:.3f}")

"""
`game_summary` prints the layers as the players of a game: the stage at which each acts, its metric, and how the
samples' gradients enter the recursion ("gram").
"""

model.game_summary()

"""
## What to see

After three epochs the loss of GTDDP is below that of K-FAC, each at its default rate. At ten times K-FAC's rate
K-FAC fails (where its loss is not finite any more, the rest of its batches is rejected, with a warning); GTDDP does
not, for each layer's step takes into account what the layers before it have just changed.
"""

assert losses["GTDDP, rate 0.03"] < losses["K-FAC, rate 0.01"]
assert accuracies["GTDDP, rate 0.1"] > 0.95 > 0.5 > accuracies["K-FAC, rate 0.1"]
