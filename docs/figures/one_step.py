"""One training step of a small network at many learning rates, with plain and with re-weighted samples; NumPy alone.

A net of two tanh layers of 12 units on 8 points of a sine. The weights of the samples are w = (I + S Gamma)^{-1} 1/B
with Gamma = rate * (inner products of the samples' gradients) and S = diag(beta^2) / B. For the square loss
phi = (z - y)^2 the curvature along the gradient g = 2 (z - y) is beta^2 = g H g / g^4 = 2 / g^2.
"""

import numpy as np
from look import BLUE, INK, ORANGE, plt, save

RATES = np.geomspace(0.01, 10.0, 61)
WIDTH = 12


def network(seed: int = 3) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights, inputs `[8, 2]` (the second is 1) and targets `[8]`."""
    rng = np.random.default_rng(seed)
    x = np.linspace(-2, 2, 8)
    shapes = [(2, WIDTH), (WIDTH, WIDTH), (WIDTH,)]
    return [rng.normal(size=s) / np.sqrt(s[0]) for s in shapes], np.stack([x, np.ones(8)], axis=1), np.sin(2 * x)


def outputs(u: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both hidden layers and the output of every sample."""
    h = np.tanh(x @ u[0])
    k = np.tanh(h @ u[1])
    return h, k, k @ u[2]


def gradients(u: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The gradient of every sample's loss in every layer, `[8, ...]`, and in the output, `[8]`."""
    h, k, z = outputs(u, x)
    g = 2 * (z - y)
    c = g[:, None] * u[2] * (1 - k**2)
    b = (c @ u[1].T) * (1 - h**2)
    return [x[:, :, None] * b[:, None], h[:, :, None] * c[:, None], g[:, None] * k], g


def step(u: list[np.ndarray], q: list[np.ndarray], w: np.ndarray, rate: float) -> list[np.ndarray]:
    """The weights after `u - rate * sum_i w_i q_i`."""
    return [a - rate * np.tensordot(w, b, 1) for a, b in zip(u, q, strict=True)]


def sample_weights(q: list[np.ndarray], g: np.ndarray, rate: float) -> np.ndarray:
    """The weights `(I + S Gamma)^{-1} 1/B`."""
    flat = np.concatenate([part.reshape(len(g), -1) for part in q], axis=1)
    gamma, S = rate * flat @ flat.T, np.diag(2 / g**2) / len(g)
    return np.linalg.solve(np.eye(len(g)) + S @ gamma, np.full(len(g), 1 / len(g)))


def measured() -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The loss before, after a plain and after a re-weighted step at every rate, and B w at every rate."""
    u, x, y = network()
    q, g = gradients(u, x, y)
    plain = np.full(len(g), 1 / len(g))
    w = np.array([sample_weights(q, g, rate) for rate in RATES])

    def loss(weights: np.ndarray, rate: float) -> float:
        return float(np.mean((outputs(step(u, q, weights, rate), x)[2] - y) ** 2))

    before = loss(plain, 0.0)
    after = np.array([[loss(plain, r), loss(v, r)] for r, v in zip(RATES, w, strict=True)])
    return before, after[:, 0], after[:, 1], w * len(g)


def main() -> None:
    """Draws `one_step.svg` and prints what it shows."""
    before, plain, weighted, w = measured()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.axhline(before, color=INK, lw=1, ls=":")
    left.text(RATES[0], before * 1.06, "before the step", color=INK)
    left.loglog(RATES, plain, color=ORANGE, lw=2.4, label="samples weigh 1/B (SGD)")
    left.loglog(RATES, weighted, color=BLUE, lw=2.4, label="samples weigh $w_i$ (the game)")
    left.set(xlabel="learning rate", ylabel="loss after one step")
    left.legend(loc="upper left", bbox_to_anchor=(0, 0.95))
    right.semilogx(RATES, w, color=BLUE, lw=1.6)
    right.axhline(1, color=ORANGE, lw=2.4)
    right.axhline(0, color=INK, lw=1, ls=":")
    right.set(xlabel="learning rate", ylabel="$B\\,w_i$, one line per sample")
    print(f"loss before {before:.3f}; lowest after one step: plain {plain.min():.3f}, re-weighted {weighted.min():.3f}")
    for rate in (0.1, 1.0, 10.0):
        k = int(np.argmin(abs(np.log(RATES / rate))))
        shown = f"{w[k].min():.2f} to {w[k].max():.2f}"
        print(f"rate {RATES[k]:.3g}: plain {plain[k]:.3g}, re-weighted {weighted[k]:.3g}, B w from {shown}")
    print(save(figure, "one_step"))


if __name__ == "__main__":
    main()
