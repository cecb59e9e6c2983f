"""Ten steps of every row under XLA, in graph mode and eagerly: `python -m tests.training.xla_rows ROW ...` prints JSON.

XLA writes every program that it compiles into the folder `XLA_FLAGS` names. The flags are read once in a process, so
`test_xla.py` starts one for many rows. There is no Dropout: XLA draws other random numbers.
"""

import json
import os
import pathlib
import re
import sys
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, optimizers

import bellman_tf as btf
from tests.strategies.networks import cross_entropy, labels, normal, tokens

BATCH, STEPS = 8, 10


def mlp() -> keras.Model:
    keras.utils.set_random_seed(0)
    own = {"kernel_regularizer": keras.regularizers.L2(0.01)}
    return btf.Sequential([layers.Input((6,)), layers.Dense(5, activation="tanh", **own), layers.Dense(3)])


def conv() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="tanh")(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="tanh")(x)
    return btf.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def pooled() -> keras.Model:
    """No layer has more inputs than there are samples: the eigenbasis of a matrix of lower rank is anyone's choice."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, strides=2, activation="tanh")(layers.Conv2D(4, 3, activation="tanh")(inputs))
    return btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def normed() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(3, 3)(inputs))
    x = layers.DepthwiseConv2D(3, activation="tanh")(x)
    return btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def sequence() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4)(inputs)
    x = layers.LayerNormalization()(layers.Dense(4, activation="tanh")(x))
    return btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def branches() -> keras.Model:
    """The layer beside the two others may act at one of two stages."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(4, activation="tanh")(inputs)
    y = layers.Dense(4, activation="tanh")(layers.Dense(4, activation="tanh")(x))
    return btf.Model(inputs, layers.Dense(3)(layers.Add()([y, layers.Dense(4)(x)])))


def beside() -> keras.Model:
    """Two players a stage."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    both = [layers.Dense(4, activation="tanh", name=name)(inputs) for name in ("left", "right")]
    return btf.Model(inputs, layers.Dense(3)(layers.Add()(both)))


SHAPES = {mlp: (6,), conv: (6, 6, 2), pooled: (6, 6, 2), normed: (6, 6, 2), branches: (6,), beside: (6,)}
KFAC, EKFAC = btf.curvature.KFAC, btf.curvature.EKFAC
Row = tuple[Callable[[], keras.Model], Callable[[], keras.optimizers.Optimizer]]


def game(network: Callable, rate: float = 0.03, **options: object) -> Row:
    return network, lambda: btf.GTDDP(rate, **options)


def inside(make: Callable, network: Callable = mlp, **options: object) -> Row:
    return network, lambda: btf.GTDDP(inner_optimizer=make(), **options)


def of_agents(network: Callable, **options: object) -> Row:
    return network, lambda: btf.DGNOpt(0.03, **options)


def watched(row: Row) -> Row:
    """As under a `GameMonitor`."""

    def make() -> keras.optimizers.Optimizer:
        optimizer = row[1]()
        optimizer.watched = True
        return optimizer

    return row[0], make


def several() -> keras.optimizers.Optimizer:
    from keras.src.optimizers.multi_optimizer import OptimizerMap

    return optimizers.MultiOptimizer(OptimizerMap(optimizers.SGD(0.1), {".*bias": optimizers.Adam(0.01)}))


def decaying(rate: float) -> object:
    return optimizers.schedules.CosineDecay(rate, 20)


ROWS: dict[str, Row] = {
    "identity": game(conv, curvature="identity"),
    "rmsprop": game(conv, 0.003, curvature="rmsprop"),
    "adam": game(conv, 0.003, curvature="adam"),
    "kfac": game(conv, curvature=KFAC(invert_every=3)),
    "ekfac": game(mlp, curvature=EKFAC(invert_every=3)),
    "kfac of the model": game(conv, curvature=KFAC(invert_every=3, update_every=2, fisher="model")),
    "ekfac of the model": game(mlp, curvature=EKFAC(invert_every=3, fisher="model")),
    "full": game(mlp, curvature=btf.curvature.Full(invert_every=3)),
    "open": game(conv, curvature="identity", information="open"),
    "open kfac": game(conv, curvature=KFAC(invert_every=3, update_every=2), information="open"),
    "feedback": game(beside, curvature="identity", information="feedback"),
    "cooperative open": game(beside, curvature="identity", information="cooperative_open"),
    "block diagonal": game(conv, curvature="identity", value_hessian="block_diagonal"),
    "block diagonal adam": game(mlp, 0.003, curvature="adam", value_hessian="block_diagonal"),
    "outer product": (conv, lambda: btf.GTDDP.as_published(0.03, curvature=KFAC(invert_every=3))),
    "outer product sample": game(mlp, 0.01, curvature="identity", value_hessian="outer_product", outer_scale="sample"),
    "per sample": game(mlp, 0.01, curvature="identity", value_hessian="per_sample", terminal_hessian="full"),
    "groups": game(conv, curvature="identity", group_size=4),
    "uneven groups": game(conv, curvature="identity", group_size=3),
    "terminal outer": game(conv, curvature="identity", terminal_hessian="outer_product"),
    "terminal full": game(conv, curvature="identity", terminal_hessian="full"),
    "terminal rank 2": game(mlp, curvature="kfac", terminal_hessian=2),
    "gram exact": game(conv, curvature="identity", gram="exact"),
    "gram per sample": game(conv, curvature="identity", gram="per_sample"),
    "gram positions": game(sequence, curvature="identity", gram="positions"),
    "gram sketch": game(conv, curvature=KFAC(invert_every=3), gram="sketch"),
    "gram sketch adam": game(conv, 0.003, curvature="adam", gram="sketch"),
    "gram features kfac": game(sequence, curvature=KFAC(invert_every=3), gram="features"),
    "gram hashed": game(sequence, 0.003, curvature="rmsprop", gram="hashed"),
    "gram features": game(sequence, 0.003, curvature="adam", gram="features"),
    "lookup": game(sequence, curvature="identity"),
    "sequence kfac": game(sequence, curvature=KFAC(invert_every=3)),
    "sequence ekfac": game(sequence, curvature=EKFAC(invert_every=3, scalings="exact")),
    "ekfac uncorrelated": game(pooled, curvature=EKFAC(invert_every=3, scalings="uncorrelated")),
    "normed": game(normed, curvature="identity"),
    "normed kfac": game(normed, curvature=KFAC(invert_every=3)),
    "autocorrelation": game(conv, curvature=KFAC(invert_every=3, convolution="autocorrelation")),
    "patches": game(conv, curvature=KFAC(invert_every=3, convolution="patches")),
    "step control": game(conv, 1.0, curvature="identity", step_control="levenberg_marquardt"),
    "step control kfac": game(
        mlp, 1.0, curvature=KFAC(invert_every=3), step_control=btf.LevenbergMarquardt(every=3, settling=2)
    ),
    "nonlinear step control": game(
        mlp, 1.0, curvature="identity", rollout="nonlinear", step_control="levenberg_marquardt"
    ),
    "nonlinear": game(conv, curvature=KFAC(invert_every=3), rollout="nonlinear"),
    "nonlinear feedback": game(beside, curvature="identity", rollout="nonlinear", information="feedback"),
    "bilinear": game(mlp, curvature="identity", bilinear=True),
    "coop exact": game(beside, curvature=KFAC(invert_every=3, cooperative="exact")),
    "coop published": game(beside, curvature=KFAC(invert_every=3, cooperative="published")),
    "coop rescale": game(beside, curvature=KFAC(invert_every=3, cooperative="rescale")),
    "players 2": of_agents(mlp, curvature="kfac", players=2),
    "adaptive": of_agents(branches, curvature="identity", alignment="adaptive"),
    "adaptive ucb1": of_agents(branches, curvature="identity", alignment="adaptive", bandit="ucb1"),
    "random": of_agents(branches, curvature="identity", alignment="random"),
    "alap": of_agents(branches, curvature="identity", alignment="alap"),
    "ddp": (mlp, lambda: btf.DDP(0.3, line_search=2)),
    "momentum": game(conv, 0.01, curvature="identity", momentum=0.9, nesterov=True),
    "momentum kfac": game(mlp, 0.01, curvature=KFAC(invert_every=3), momentum=0.8, information="feedback"),
    "momentum outside": game(mlp, 0.01, curvature="rmsprop", momentum=0.8, momentum_in_policy=False),
    "averages": game(mlp, curvature="identity", use_ema=True, ema_overwrite_frequency=3, weight_decay=0.1),
    "schedule": (mlp, lambda: btf.GTDDP(decaying(0.03), curvature="kfac", global_clipnorm=0.5)),
    "sgd inside": inside(lambda: optimizers.SGD(0.03, momentum=0.9, nesterov=True), conv),
    "adamw inside": inside(lambda: optimizers.AdamW(decaying(1e-2)), conv, gram="sketch"),
    "nadam inside": inside(lambda: optimizers.Nadam(1e-2)),
    "rmsprop inside": inside(lambda: optimizers.RMSprop(1e-2, centered=True), sequence),
    "lion inside": inside(lambda: optimizers.Lion(1e-3), conv, gram="sketch"),
    "adafactor inside": inside(lambda: optimizers.Adafactor(1e-2)),
    "several inside": inside(several),
    "averages inside": inside(
        lambda: optimizers.AdamW(1e-2, use_ema=True, ema_overwrite_frequency=3, global_clipnorm=0.5)
    ),
    "groups inside": inside(lambda: optimizers.Adam(1e-2), information="feedback", group_size=3),
}
ROWS |= {f"{name} watched": watched(ROWS[name]) for name in ("feedback", "momentum", "adamw inside")}
if hasattr(optimizers, "Muon"):
    ROWS["muon inside"] = inside(lambda: optimizers.Muon(1e-2))
if hasattr(optimizers, "ScheduleFreeAdamW"):
    ROWS["schedule free inside"] = inside(lambda: optimizers.ScheduleFreeAdamW(1e-2))
# The last batch of these is smaller: two programs.
PARTIAL = {"partial": "identity", "partial kfac": "kfac", "partial uneven groups": "uneven groups"}
PARTIAL |= {"partial inside": "adamw inside", "partial adaptive": "adaptive", "partial momentum": "momentum kfac"}


def weights(name: str, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Trains a row for an epoch.

    Args:
        name: of `ROWS` or `PARTIAL`.
        **options: of `compile`.

    Returns:
        All weights before and after, each as one vector.
    """
    network, make = ROWS[PARTIAL.get(name, name)]
    model = network()
    count = BATCH * STEPS - (3 if name in PARTIAL else 0)
    x = tokens(count) if network is sequence else normal(count, *SHAPES[network])
    model.compile(make(), **cross_entropy(), **options)
    before = np.concatenate([w.ravel() for w in model.get_weights()])
    model.fit(x, labels(count), batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    if int(model.optimizer.rejected_batches):
        raise ValueError(f"{name}: {int(model.optimizer.rejected_batches)} batches were rejected")
    return before, np.concatenate([w.ravel() for w in model.get_weights()])


def programs() -> int:
    """Training steps that XLA has compiled in this process."""
    [folder] = re.findall(r"--xla_dump_to=(\S+)", os.environ["XLA_FLAGS"])
    return len(list(pathlib.Path(folder).glob("*one_step_on_data*before_optimizations.txt")))


def measure(name: str) -> dict:
    """Compilations of ten steps, and how far XLA and graph mode end from eager execution.

    Args:
        name: of `ROWS` or `PARTIAL`.

    Returns:
        "compilations", and "xla" and "graph": the distance of the weights over that which eager execution went.
    """
    already = programs()
    before, eager = weights(name, run_eagerly=True)
    unit = np.linalg.norm(eager - before)
    graph, xla = (weights(name, jit_compile=jit)[1] for jit in (False, True))
    gaps = {"xla": float(np.linalg.norm(xla - eager) / unit), "graph": float(np.linalg.norm(graph - eager) / unit)}
    return {"compilations": programs() - already, **gaps}


if __name__ == "__main__":
    for row in sys.argv[1:]:
        print(json.dumps({row: measure(row)}), flush=True)
