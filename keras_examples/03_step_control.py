"""
Title: Step control
Author: bellman_tf
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Trains a network from learning rates that are far too small and far too large.
"""

"""
## The optimizer

`step_control="levenberg_marquardt"` sets the damping of the metric after every step: to where the step would have
been best for samples that had no part in it. The learning rate is only where the search begins. A step that raises
the loss of its own batch is refused.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import bellman_tf as btf


def optimizer(rate, control):
    return btf.GTDDP(learning_rate=rate, step_control=control)


"""
## Data and network

DIGITS and the network with four hidden tanh layers of the DDP papers.
"""

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))[:1437]
x, y = (images[order] / 16).astype("float32"), labels[order]


def build():
    hidden = [keras.layers.Dense(20, activation="tanh") for _ in range(4)]
    return btf.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])


"""
## Four decades of learning rates

0.1 suits this network, 0.001 is too small for it and 10 too large.
"""

losses = {}
for rate in (0.001, 0.1, 10.0):
    for control in (None, "levenberg_marquardt"):
        keras.utils.set_random_seed(0)
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer(rate, control), loss=loss)
        losses[rate, control] = model.fit(x, y, batch_size=64, epochs=4, verbose=0).history["loss"][-1]
        print(f"rate {rate:g}, step control {control}: train loss {losses[rate, control]:.3g}")

"""
## What the control did

The last model began at rate 10. `damping` is the factor that the metric is multiplied by in the end, so that the
steps are those of a rate of 10 / damping; `refused_steps` counts the steps that were not taken.
"""

refused, damping = int(model.optimizer.refused_steps), float(model.optimizer.damping)
print(f"{refused} steps refused; damping {damping:.3g}, the steps of a rate of {10 / damping:.2g}")

"""
## What to see

Without control only the middle rate trains. With it all three end within a factor of two of that.
"""

plain = [losses[rate, None] for rate in (0.001, 0.1, 10.0)]
controlled = [losses[rate, "levenberg_marquardt"] for rate in (0.001, 0.1, 10.0)]
assert min(plain[0], plain[2]) > 10 * plain[1]
assert max(controlled) < 2 * plain[1]
