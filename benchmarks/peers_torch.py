"""SOAP and Shampoo on the problems of `benchmarks.peers`: step time against torch SGD, loss at equal steps and time.

    python benchmarks/peers_torch.py DIRECTORY [--tasks autoencoder residual] [--rates 5] [--rounds 7] [--out FILE]

This file and `peers_loop.py` need torch, pytorch-optimizer and NumPy, and nothing else of the project. Steps are eager:
PyTorch's default. SOAP and Shampoo renew their bases or roots every 5 steps, as often as the K-FACs invert.
"""

import functools
import math
from collections.abc import Callable, Sequence

import peers_loop
import pytorch_optimizer
import torch
from peers_loop import INVERT_EVERY, MOMENTUM, WIDTHS
from torch.nn import functional


def tensors(weights: Sequence) -> list[torch.Tensor]:
    """Weights as PyTorch has them, which learn.

    Args:
        weights: kernels `[in, out]` or `[height, width, in, out]`, and biases.

    Returns:
        Kernels `[out, in]` or `[out, in, height, width]`, and biases.
    """
    orders = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
    return [
        torch.nn.Parameter(torch.tensor(weight).permute(orders[weight.ndim]).contiguous()) for weight in weights
    ]  # fmt: skip


def autoencoder(weights: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Eight dense layers, tanh behind all but the fourth and the last.

    Args:
        weights: kernels and biases.
        x: `[B, 784]`.

    Returns:
        Logits `[B, 784]`.
    """
    for k in range(8):
        x = functional.linear(x, weights[2 * k], weights[2 * k + 1])
        x = x if k in {3, 7} else torch.tanh(x)
    return x


def residual(weights: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A convolution, residual blocks, the mean over all pixels, a dense layer.

    Args:
        weights: kernels and biases.
        x: `[B, 32, 32, 3]`.

    Returns:
        Logits `[B, 10]`.
    """
    pairs = iter(zip(weights[0::2], weights[1::2], strict=True))

    def convolution(x: torch.Tensor, step: int = 1) -> torch.Tensor:
        kernel, bias = next(pairs)
        padding = []  # Keras's "same": one pixel more behind than in front
        for size, width in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):
            missing = max((math.ceil(size / step) - 1) * step + width - size, 0)
            padding += [missing // 2, missing - missing // 2]
        return functional.conv2d(functional.pad(x, padding), kernel, bias, step)

    x = torch.relu(convolution(x.permute(0, 3, 1, 2)))
    for before, width in zip(WIDTHS, WIDTHS[1:], strict=False):
        step = 1 if width == before else 2
        y = convolution(torch.relu(convolution(x, step)))
        shortcut = x if step == 1 else convolution(x, step)
        x = torch.relu(shortcut + y)
    kernel, bias = next(pairs)
    return functional.linear(x.mean((2, 3)), kernel, bias)


NETWORKS = {
    "autoencoder": (autoencoder, functional.binary_cross_entropy_with_logits),
    "residual": (residual, functional.cross_entropy),
}

# name -> what makes it, middle of the learning rates
METHODS = {
    "torch SGD": (functools.partial(torch.optim.SGD, momentum=MOMENTUM), 0.1),
    "torch AdamW": (torch.optim.AdamW, 0.003),
    "SOAP": (functools.partial(pytorch_optimizer.SOAP, precondition_frequency=INVERT_EVERY), 0.003),
    "Shampoo": (
        functools.partial(
            pytorch_optimizer.ScalableShampoo, preconditioning_compute_steps=INVERT_EVERY,
            start_preconditioning_step=INVERT_EVERY,
        ), 0.01,
    ),
}  # fmt: skip


class Method:
    """One of them as `peers_loop` runs it."""

    def __init__(self, problem: peers_loop.Problem, make: Callable[..., torch.optim.Optimizer]) -> None:
        self._problem, self._make = problem, make
        self._network, self._loss = NETWORKS[problem.name]
        self.restart()
        problem.check(self.test_loss())

    def restart(self) -> None:
        """Takes the initial weights and a new state."""
        self._weights = tensors(self._problem.weights)
        self._optimizer = self._make(self._weights, lr=1.0)

    def step(self, number: int, rate: float) -> None:
        """One step on the batch of that number."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        self._value(self._problem.batch(number)).backward()
        self._optimizer.step()

    def test_loss(self) -> float:
        """Mean loss on the test part, `inf` if it is not finite."""
        with torch.no_grad():
            value = self._value(self._problem.test()).item()
        return value if math.isfinite(value) else math.inf

    def _value(self, batch: tuple) -> torch.Tensor:
        x, y = (torch.from_numpy(part) for part in batch)
        return self._loss(self._network(self._weights, x), y.long() if self._problem.classes else y)


def methods(problem: peers_loop.Problem) -> dict[str, Method]:
    """All of them on a task."""
    return {name: Method(problem, make) for name, (make, _) in METHODS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    middles = {name: middle for name, (_, middle) in METHODS.items()}
    packages = ("torch", "pytorch-optimizer")
    peers_loop.command(__doc__.splitlines()[0], "peers_torch.json", middles, methods, packages, arguments)


if __name__ == "__main__":
    main()
