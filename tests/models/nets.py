"""Subclassed models whose `call` has a signature of one kind, beside their inputs."""

import collections

import tensorflow as tf
from keras import layers

from tests.strategies.networks import labels, normal

Pair = collections.namedtuple("Pair", ["left", "right"])


def net(base, kind):
    """A subclass of `base` whose `call` has a signature of one kind, and its inputs."""

    class Net(base):
        def __init__(self):
            super().__init__()
            self.a = layers.Dense(5, activation="tanh")
            self.b = layers.Dense(3)

        if kind == "own name":

            def call(self, t):
                return self.b(self.a(t))

        elif kind == "extra arguments":

            def call(self, t, mask=None, training=None):
                return self.b(self.a(t))

        elif kind == "keyword only":

            def call(self, t, *, scale=2.0, training=None):
                return self.b(self.a(t)) * scale

        elif kind == "tuple":

            def call(self, both):
                left, right = both
                return self.b(self.a(left)) + self.b(self.a(right))

        elif kind == "named tuple":

            def call(self, both):
                return self.b(self.a(both.left)) + both.right[:, :3]

        elif kind == "dictionary":

            def call(self, batch, training=False):
                return self.b(self.a(batch["left"])) + batch["deep"]["right"][:, :3]

    return Net()


def inputs_of(kind):
    x, z = normal(8, 4), normal(8, 4, seed=3)
    return {"tuple": (x, z), "named tuple": Pair(x, z), "dictionary": {"left": x, "deep": {"right": z}}}.get(kind, x)


def batches(kind):
    return tf.data.Dataset.from_tensors((inputs_of(kind), labels(8)))


KINDS = ("own name", "extra arguments", "keyword only", "tuple", "named tuple", "dictionary")
