"""Optimizers to put inside ours, and a small network that they train: what the tests of inner optimizers share."""

import keras
import tensorflow as tf
from keras import optimizers

import bellman_tf as btf
from tests.strategies.networks import cross_entropy, labels, mlp, normal

MAKE = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01),
    "centered": lambda: optimizers.RMSprop(0.01, centered=True, momentum=0.5),
    "adam": lambda: optimizers.Adam(0.01, global_clipnorm=0.1),
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True, clipvalue=0.05),
    "adamw": lambda: optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
    "nadam": lambda: optimizers.Nadam(0.01),
    "lion": lambda: optimizers.Lion(0.001),
    "adafactor": lambda: optimizers.Adafactor(0.01),
    "adamax": lambda: optimizers.Adamax(0.01),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "ftrl": lambda: optimizers.Ftrl(0.01),
    "lamb": lambda: optimizers.Lamb(0.01),
    "own": lambda: Own(0.05),
    "schedule": lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), momentum=0.5),
}
# An older Keras has not all of these.
NEW = {"muon": "Muon", "schedule free": "ScheduleFreeAdamW"}
MAKE |= {
    name: lambda kind=kind: getattr(optimizers, kind)(0.01) for name, kind in NEW.items() if hasattr(optimizers, kind)
}
if hasattr(optimizers, "MultiOptimizer"):
    from keras.src.optimizers.multi_optimizer import OptimizerMap

    MAKE["multi"] = lambda: optimizers.MultiOptimizer(
        OptimizerMap(optimizers.SGD(0.1), {".*two.*": optimizers.Adam(0.01), ".*three/kernel": optimizers.Lion(0.001)})
    )
x, y = normal(8, 6), labels(8)


@keras.saving.register_keras_serializable("bellman_tf_tests")
class Own(optimizers.Optimizer):
    """A user's optimizer: steps of a fixed length per variable, and a count that Keras does not list."""

    def __init__(self, learning_rate=0.05, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.seen = tf.Variable(0.0, trainable=False)

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.kept = [self.add_variable_from_reference(v, name="kept") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        kept = self.kept[self._get_variable_index(variable)]
        self.assign(kept, 0.5 * kept + 0.5 * gradient)
        self.seen.assign_add(1.0)
        self.assign_sub(variable, learning_rate * kept / (tf.norm(kept) + 1e-6))


def compiled(optimizer, network=mlp, **options):
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(optimizer, **cross_entropy(), **{"jit_compile": False, **options})
    if not isinstance(optimizer, btf.GTDDP):
        optimizer.build(model.trainable_variables)  # Keras builds it while tracing, and what it begins with is lost
    return model


def train(model, steps=4, data=(x, y)):
    return [float(model.train_on_batch(*data)) for _ in range(steps)]


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
