"""Peers in JAX on the problems of `benchmarks.peers`: step time against optax SGD, loss at equal steps and equal time.

    python benchmarks/peers_jax.py DIRECTORY [--tasks autoencoder residual] [--rates 5] [--rounds 7] [--out peers.json]

This file and `peers_loop.py` need JAX, optax, kfac-jax, python-somax and NumPy, and nothing else of the project.
kfac-jax has momentum 0.9 and the damping 0.01 of our K-FAC; "adaptive" chooses rate, momentum and damping itself.
somax's exact Gauss-Newton step solves a system of B x classes rows, so that it runs on the residual net alone; its
mean square and its cross entropy are the only losses, so that the autoencoder's is not among them.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import kfac_jax
import optax
import peers_loop
import somax
from peers_loop import DAMPING, INVERT_EVERY, MOMENTUM, WIDTHS

Step = Callable[[list, object, tuple, float], tuple[list, object]]


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


class Task:
    """A problem with its network in JAX.

    Attributes:
        problem: weights and batches.
        weights: initial ones.
    """

    def __init__(self, problem: peers_loop.Problem) -> None:
        self.problem = problem
        self._network, self._loss = NETWORKS[problem.name]
        self.weights = [jnp.asarray(weight) for weight in problem.weights]
        problem.check(self.test_loss(self.weights))

    def loss(self, weights: list, batch: tuple) -> jax.Array:
        """Mean loss of a batch."""
        return self._loss(self._network(weights, batch[0]), batch[1])

    def registered_loss(self, weights: list, batch: tuple) -> jax.Array:
        """The same, with the predictive distribution that kfac-jax wants to know."""
        logits = self._network(weights, batch[0])
        if self.problem.classes:
            kfac_jax.register_softmax_cross_entropy_loss(logits, jax.nn.one_hot(batch[1], logits.shape[1]))
        else:
            kfac_jax.register_multi_bernoulli_predictive_distribution(logits, batch[1], weight=1 / logits.shape[1])
        return self._loss(logits, batch[1])

    def network(self, weights: list, x: jax.Array) -> jax.Array:
        """Logits."""
        return self._network(weights, x)

    def test_loss(self, weights: list) -> float:
        """Mean loss on the test part, `inf` if it is not finite."""
        value = float(jax.jit(self.loss)(weights, self.problem.test()))
        return value if math.isfinite(value) else math.inf


# ---- the methods: each makes `step(weights, state, batch, rate)` and its first state


def first_order(make: Callable[..., optax.GradientTransformation], task: Task) -> tuple[Step, object]:
    """An optimizer of optax."""
    optimizer = optax.inject_hyperparams(make)(learning_rate=0.0)

    @jax.jit
    def step(weights: list, state: object, batch: tuple, rate: float) -> tuple[list, object]:
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        moves, state = optimizer.update(jax.grad(task.loss)(weights, batch), state, weights)
        return optax.apply_updates(weights, moves), state

    return step, optimizer.init(task.weights)


def kfac(task: Task, adaptive: bool) -> tuple[Step, object]:
    """kfac-jax's K-FAC with its default estimator."""
    optimizer = kfac_jax.Optimizer(
        jax.value_and_grad(task.registered_loss), l2_reg=0.0, use_adaptive_learning_rate=adaptive,
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

    return step, optimizer.init(task.weights, key, task.problem.batch(0))


def gauss_newton(task: Task, damping: str) -> tuple[Step, object]:
    """Exact Gauss-Newton step in sample space, somax's."""
    method = somax.egn_ce(
        predict_fn=task.network, lam_policy=damping, lam0=1.0, learning_rate=1.0,
        record_rho_every_k=1 if damping != "const" else -1,
    )  # fmt: skip
    key = jax.random.PRNGKey(0)

    @jax.jit
    def step(weights: list, state: object, batch: tuple, rate: float) -> tuple[list, object]:
        new, state, _ = method.step(weights, {"x": batch[0], "y": batch[1]}, state, key)
        return jax.tree.map(lambda old, one: old + rate * (one - old), weights, new), state

    return step, method.init(task.weights)


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


class Method:
    """One of them as `peers_loop` runs it."""

    def __init__(self, task: Task, make: Callable[[Task], tuple[Step, object]]) -> None:
        self._task = task
        self._step, self._first = make(task)
        self.restart()

    def restart(self) -> None:
        """Copies: kfac-jax gives its arguments away."""
        self._weights, self._state = jax.tree.map(
            lambda value: jnp.array(value) if isinstance(value, jax.Array) else value, (self._task.weights, self._first)
        )
        jax.block_until_ready((self._weights, self._state))

    def step(self, number: int, rate: float) -> None:
        """One step on the batch of that number; returns when it is done."""
        self._weights, self._state = self._step(self._weights, self._state, self._task.problem.batch(number), rate)
        jax.block_until_ready(self._weights)

    def test_loss(self) -> float:
        """Mean loss on the test part, `inf` if it is not finite."""
        return self._task.test_loss(self._weights)


def methods(problem: peers_loop.Problem) -> dict[str, Method]:
    """Those that run on a task."""
    task = Task(problem)
    return {
        name: Method(task, make) for name, (make, _) in METHODS.items() if ONLY.get(name, problem.name) == problem.name
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    middles = {name: middle for name, (_, middle) in METHODS.items()}
    packages = ("jax", "optax", "kfac-jax", "python-somax")
    peers_loop.command(__doc__.splitlines()[0], "peers.json", middles, methods, packages, arguments)


if __name__ == "__main__":
    main()
