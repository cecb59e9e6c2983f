"""One model of the zoo, and Keras's step on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np


class Case(NamedTuple):
    """A model, how it is trained, and what is known of its game.

    Attributes:
        build: makes the model from a base class: `keras.Model`, or `bellman_tf.Model`.
        x: a batch.
        y: its labels.
        loss: for `compile`.
        covered: share of the parameters that must have a Gram form, at least; exactly for 0 and 1.
        eager: whether the model runs eagerly only.
    """

    build: Callable[[type], keras.Model]
    x: Any
    y: Any
    loss: Any = "mse"
    covered: float | None = None
    eager: bool = False

    def compiled(self, base: type, optimizer: keras.optimizers.Optimizer, **options: Any) -> keras.Model:
        """The model with fixed initial weights, built and compiled."""
        keras.utils.set_random_seed(0)
        model = self.build(base)
        if not model.built:
            model(self.x)
        loss = self.loss() if isinstance(self.loss, type) else self.loss  # one with state is made anew
        model.compile(optimizer, loss, run_eagerly=self.eager, **options)
        return model

    def step(self, base: type, optimizer: keras.optimizers.Optimizer, **options: Any) -> list[np.ndarray]:
        """What one training step adds to every trainable variable."""
        model = self.compiled(base, optimizer, **options)
        before = [v.numpy() for v in model.trainable_variables]
        model.train_on_batch(self.x, self.y)
        return [v.numpy() - w for v, w in zip(model.trainable_variables, before, strict=True)]


def sgd_step(case: Case, rate: float) -> list[np.ndarray]:
    """Keras's own gradient step."""
    return case.step(keras.Model, keras.optimizers.SGD(rate))
