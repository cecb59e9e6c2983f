"""Peers on the problems that `benchmarks.peers` wrote: step time against their own SGD, loss at equal steps.

    python peers_run.py DIRECTORY [--tasks autoencoder residual] [--rates 5] [--rounds 7] [--retime] [--out peers.json]

This file needs JAX, optax, kfac-jax, python-somax and NumPy, and nothing else of the project. Every method runs at the
same number of learning rates, half a decade apart, each falling along half a cosine, from the same weights on the same
batches; the lowest test loss counts. Steps are timed in turns, one compiled step after the other; the median counts. At
its best rate a method then runs as many steps as fit in the time of all of SGD's: the loss at equal time.
kfac-jax has momentum 0.9 and the damping 0.01 of our K-FAC; "adaptive" chooses rate, momentum and damping itself.
somax's exact Gauss-Newton step solves a system of B x classes rows, so that it runs on the residual net alone; its mean
square and its cross entropy are the only losses, so that the autoencoder's is not among them.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np
import optax
import somax

Step = Callable[[list, object, tuple, float], tuple[list, object]]
WIDTHS = (16, 16, 32, 64)  # of the residual net
DAMPING, MOMENTUM, INVERT_EVERY = 0.01, 0.9, 5
PIECE = 10  # steps between changes of the rate


# ---- the networks, on weights in the order of `benchmarks.peers`


def autoencoder(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Eight dense layers, tanh behind all but the fourth and the last.

    Args:
        weights: kernels and biases.
        x: `[B, 784]`.

    Returns:
        Logits `[B, 784]`.
    """
    for k in range(8):
        x = x @ weights[2 * k] + weights[2 * k + 1]
        x = x if k in {3, 7} else jnp.tanh(x)
    return x


def residual(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """A convolution, residual blocks, the mean over all pixels, a dense layer.

    Args:
        weights: kernels and biases.
        x: `[B, 32, 32, 3]`.

    Returns:
        Logits `[B, 10]`.
    """
    pairs = iter(zip(weights[0::2], weights[1::2], strict=True))

    def convolution(x: jax.Array, step: int = 1) -> jax.Array:
        kernel, bias = next(pairs)
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (step, step), "SAME", dimension_numbers=axes) + bias

    x = jax.nn.relu(convolution(x))
    for before, width in zip(WIDTHS, WIDTHS[1:], strict=False):
        step = 1 if width == before else 2
        y = convolution(jax.nn.relu(convolution(x, step)))
        shortcut = x if step == 1 else convolution(x, step)
        x = jax.nn.relu(shortcut + y)
    kernel, bias = next(pairs)
    return x.mean((1, 2)) @ kernel + bias


def pixel_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross entropy of all pixels."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))


def class_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


NETWORKS = {"autoencoder": (autoencoder, pixel_loss), "residual": (residual, class_loss)}


class Problem:
    """A task as `benchmarks.peers` wrote it.

    Attributes:
        name: of the task.
        weights: initial ones.
        steps: of a run.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.name = path.stem
        self._network, self._loss = NETWORKS[self.name]
        with np.load(path) as values:
            self._x, self._y = values["x"], values.get("y")
            self._test = (values["x_test"], values.get("y_test"))
            self.weights = [jnp.asarray(values[key]) for key in sorted(values) if key.startswith("weight_")]
            stated = float(values["loss"])
        self.steps = len(self._x)
        if not math.isclose(self.test_loss(self.weights), stated, rel_tol=1e-4):
            raise ValueError(
                f"{path}: the loss at the initial weights is {self.test_loss(self.weights)}, not {stated}."
            )

    def batch(self, step: int) -> tuple[jax.Array, jax.Array]:
        """Inputs and targets of one step."""
        return _scaled(self._x[step], None if self._y is None else self._y[step])

    def loss(self, weights: list, batch: tuple) -> jax.Array:
        """Mean loss of a batch."""
        return self._loss(self._network(weights, batch[0]), batch[1])

    def registered_loss(self, weights: list, batch: tuple) -> jax.Array:
        """The same, with the predictive distribution that kfac-jax wants to know."""
        logits = self._network(weights, batch[0])
        if self._y is None:
            kfac_jax.register_multi_bernoulli_predictive_distribution(logits, batch[1], weight=1 / logits.shape[1])
        else:
            kfac_jax.register_softmax_cross_entropy_loss(logits, jax.nn.one_hot(batch[1], logits.shape[1]))
        return self._loss(logits, batch[1])

    def network(self, weights: list, x: jax.Array) -> jax.Array:
        """Logits."""
        return self._network(weights, x)

    def test_loss(self, weights: list) -> float:
        """Mean loss on the test part, `inf` if it is not finite."""
        value = float(jax.jit(self.loss)(weights, _scaled(*self._test)))
        return value if math.isfinite(value) else math.inf


def _scaled(x: np.ndarray, y: np.ndarray | None) -> tuple[jax.Array, jax.Array]:
    """Pixels in [0, 1], which are the targets where there are no labels."""
    x = jnp.asarray(x, jnp.float32) / 255
    return x, x if y is None else jnp.asarray(y)


# ---- the methods: each makes `step(weights, state, batch, rate)` and its first state


def first_order(make: Callable[..., optax.GradientTransformation], problem: Problem) -> tuple[Step, object]:
    """An optimizer of optax."""
    optimizer = optax.inject_hyperparams(make)(learning_rate=0.0)

    @jax.jit
    def step(weights: list, state: object, batch: tuple, rate: float) -> tuple[list, object]:
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        moves, state = optimizer.update(jax.grad(problem.loss)(weights, batch), state, weights)
        return optax.apply_updates(weights, moves), state

    return step, optimizer.init(problem.weights)


def kfac(problem: Problem, adaptive: bool) -> tuple[Step, object]:
    """kfac-jax's K-FAC with its default estimator."""
    optimizer = kfac_jax.Optimizer(
        jax.value_and_grad(problem.registered_loss), l2_reg=0.0, use_adaptive_learning_rate=adaptive,
        use_adaptive_momentum=adaptive, use_adaptive_damping=adaptive, initial_damping=1.0 if adaptive else None,
        inverse_update_period=INVERT_EVERY, num_burnin_steps=0,
    )  # fmt: skip
    key = jax.random.PRNGKey(0)
    fixed = {} if adaptive else {"momentum": jnp.asarray(MOMENTUM), "damping": jnp.asarray(DAMPING)}
    count = 0

    def step(weights: list, state: object, batch: tuple, rate: float) -> tuple[list, object]:
        nonlocal count
        rates = {} if adaptive else {"learning_rate": jnp.asarray(rate)}
        count += 1
        weights, state, _ = optimizer.step(
            weights, state, jax.random.fold_in(key, count), batch=batch, **fixed, **rates
        )  # fmt: skip
        return weights, state

    return step, optimizer.init(problem.weights, key, problem.batch(0))


def gauss_newton(problem: Problem, damping: str) -> tuple[Step, object]:
    """Exact Gauss-Newton step in sample space, somax's."""
    method = somax.egn_ce(
        predict_fn=problem.network, lam_policy=damping, lam0=1.0, learning_rate=1.0,
        record_rho_every_k=1 if damping != "const" else -1,
    )  # fmt: skip
    key = jax.random.PRNGKey(0)

    @jax.jit
    def step(weights: list, state: object, batch: tuple, rate: float) -> tuple[list, object]:
        new, state, _ = method.step(weights, {"x": batch[0], "y": batch[1]}, state, key)
        return jax.tree.map(lambda old, one: old + rate * (one - old), weights, new), state

    return step, method.init(problem.weights)


# name -> what makes it, middle of the learning rates
METHODS = {
    "optax SGD": (functools.partial(first_order, functools.partial(optax.sgd, momentum=MOMENTUM)), 0.1),
    "optax AdamW": (functools.partial(first_order, optax.adamw), 0.003),
    "optax Muon": (functools.partial(first_order, optax.contrib.muon), 0.01),
    "kfac-jax": (functools.partial(kfac, adaptive=False), 0.01),
    "kfac-jax, adaptive": (functools.partial(kfac, adaptive=True), None),
    "somax EGN": (functools.partial(gauss_newton, damping="const"), 0.3),
}
ONLY = {"somax EGN": "residual"}


def copied(state: object) -> object:
    """A copy: kfac-jax gives its arguments away."""
    return jax.tree.map(lambda value: jnp.array(value) if isinstance(value, jax.Array) else value, state)


def run(problem: Problem, step: Step, state: object, rate: float, steps: int) -> tuple[list, list[float]]:
    """Trains from the initial weights.

    Args:
        problem: the task.
        step: of the method.
        state: its first state; is copied.
        rate: the first of a cosine.
        steps: how many.

    Returns:
        The weights, and the seconds of each step.
    """
    weights, state, seconds = copied(problem.weights), copied(state), []
    pieces = steps // PIECE
    for number in range(steps):
        batch = problem.batch(number)
        now = rate * (1 + math.cos(math.pi * (number // PIECE) / pieces)) / 2
        jax.block_until_ready((weights, batch))
        start = time.perf_counter()
        weights, state = step(weights, state, batch, now)
        jax.block_until_ready(weights)
        seconds.append(time.perf_counter() - start)
    return weights, seconds


def rates_of(middle: float | None, count: int) -> list[float]:
    """Learning rates half a decade apart around a middle; 1 alone where the method chooses it."""
    if middle is None:
        return [1.0]
    return [float(f"{middle * 10 ** ((k - count // 2) / 2):.2e}") for k in range(count)]


def times_of(problem: Problem, made: dict[str, tuple[Step, object]], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each method, timed in turns.

    Args:
        problem: the task.
        made: step and first state of each method.
        rounds: turns; the median counts.

    Returns:
        Of each method.
    """
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, (step, state) in made.items():
            _, seconds = run(problem, step, state, 1e-4, 2 * INVERT_EVERY)
            times[name] += [] if turn == 0 else [statistics.mean(seconds)]  # the first turn compiles
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def losses_of(problem: Problem, name: str, made: tuple[Step, object], count: int) -> dict:
    """Runs a method at its learning rates.

    Args:
        problem: the task.
        name: of the method.
        made: its step and first state.
        count: learning rates.

    Returns:
        The lowest test loss, its rate, and those of the other rates.
    """
    losses = {
        rate: problem.test_loss(run(problem, *made, rate, problem.steps)[0])
        for rate in rates_of(METHODS[name][1], count)
    }
    best = min(losses, key=losses.get)
    return {
        "rate": None if METHODS[name][1] is None else best, "loss": losses[best], "steps": problem.steps,
        "losses": {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in losses.items()},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path, help="that benchmarks.peers wrote")
    parser.add_argument("--tasks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--retime", action="store_true", help="measure the step times again and run nothing else")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("peers.json"), help="goes on from it")
    options = parser.parse_args(arguments)
    names = ["optax SGD", *(name for name in options.methods if name != "optax SGD")]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax", "kfac-jax", "python-somax")}
    stored = json.loads(options.out.read_text())["results"] if options.out.exists() else []
    found = {(record["task"], record["method"]): record for record in stored}

    def write() -> None:
        values = {"versions": versions, "device": jax.devices()[0].device_kind, "results": list(found.values())}
        options.out.write_text(json.dumps(values, indent=1) + "\n")

    for task in options.tasks:
        problem = Problem(options.directory / f"{task}.npz")
        made = {name: METHODS[name][0](problem) for name in names if ONLY.get(name, task) == task}
        records = {name: found.setdefault((task, name), {"task": task, "method": name}) for name in made}
        for name, record in records.items():
            if "loss" not in record and not options.retime:
                record.update(losses_of(problem, name, made[name], options.rates))
                print(f"{task}  {name}  {problem.steps} steps  loss {record['loss']:.4g}", flush=True)
                write()
        if options.retime or any("milliseconds" not in record for record in records.values()):
            times = times_of(problem, made, options.rounds)
            for name, record in records.items():
                record.update(milliseconds=times[name], ratio=times[name] / times["optax SGD"])
                print(f"{task}  {name}  {times[name]:.1f} ms ({record['ratio']:.2f} SGD)", flush=True)
            write()
        for name, record in records.items():
            steps = min(int(problem.steps / record["ratio"]) // PIECE * PIECE, problem.steps)
            if "loss" in record and record.get("equal_time", {}).get("steps") != steps:
                rate = 1.0 if record["rate"] is None else record["rate"]
                loss = problem.test_loss(run(problem, *made[name], rate, steps)[0])
                record["equal_time"] = {"steps": steps, "loss": loss if math.isfinite(loss) else None}
                print(f"{task}  {name}  {steps} steps  loss {loss:.4g}", flush=True)
                write()


if __name__ == "__main__":
    main()
