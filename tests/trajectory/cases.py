"""Control problems in TensorFlow and in NumPy from one source, and random linear-quadratic ones."""

from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf import trajectory
from bellman_tf.trajectory import Problem, Status

solve = partial(trajectory.solve, jit_compile=False)  # small problems, solved once


def status(solution):
    """Names of the status of every instance."""
    return [Status(code).name for code in np.atleast_1d(solution.status.numpy())]


def finite(solution):
    return all(np.isfinite(x.numpy()).all() for x in tf.nest.flatten(solution) if x is not None)


def square(x):
    return tf.reduce_sum(x**2, axis=-1)


def double_integrator(h, T):
    """Position and speed under an acceleration: the dynamics, and `reach`, `[2, T]`, of x_T = x_0 + reach u at rest."""
    move = lambda x, u, t: x + tf.stack([h * x[:, 1] + 0.5 * h * h * u[:, 0], h * u[:, 0]], 1)
    left = np.arange(T)[::-1]
    return move, np.stack([h * h * (left + 0.5), np.full(T, h)])


def random_spd(rng, size, condition):
    """Rotated, eigenvalues from 1 to `condition`."""
    vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return (vectors * np.geomspace(1.0, condition, size)) @ vectors.T


class Case(NamedTuple):
    """A problem, the same for the reference, and where to start."""

    problem: Problem
    f: object  # (z, t) in NumPy
    cost: object
    terminal: object
    x0: np.ndarray
    u_init: np.ndarray

    def solve_inputs(self, dtype=tf.float64):
        return tf.constant(self.x0, dtype), tf.constant(self.u_init, dtype)

    def stages(self, X, U, derivatives):
        """Quadratic models along a trajectory, (g, H, F, D) each, and the gradient and Hessian at the end."""
        stages = []
        for t, (x, u) in enumerate(zip(X, U, strict=False)):
            z = np.concatenate([x, u])

            def cost(z, t=t):
                return self.cost(z, t)

            def f(z, t=t):
                return self.f(z, t)

            stages.append(
                (
                    derivatives.jacobian(cost, z)[0],
                    derivatives.hessian(cost, z)[0],
                    derivatives.jacobian(f, z),
                    derivatives.hessian(f, z),
                )
            )
        return stages, derivatives.jacobian(self.terminal, X[-1])[0], derivatives.hessian(self.terminal, X[-1])[0]


def both(f, cost, terminal, n, x0, u_init, **options):
    """`f(x, u, t, xp)` on rows, with xp the module that has stack, sin, cos, exp."""
    problem = Problem(
        lambda x, u, t: f(x, u, t, tf),
        lambda x, u, t: cost(x, u, t, tf),
        lambda x: terminal(x, tf),
        len(u_init),
        **options,
    )
    return Case(
        problem,
        lambda z, t: f(z[:n], z[n:], t, np),
        lambda z, t: cost(z[:n], z[n:], t, np),
        lambda x: terminal(x, np),
        np.asarray(x0, float),
        np.asarray(u_init, float),
    )


def unicycle(horizon=20, weights=(10.0, 1.0), x0=(-1.0, -1.0, 1.0), **options):
    """Crocoddyl's: 1/2 (w_x^2 |x|^2 + w_u^2 |u|^2), steps of 0.1."""

    def f(x, u, t, xp):
        angle, speed, turn = x[..., 2], u[..., 0], u[..., 1]
        return x + 0.1 * xp.stack([speed * xp.cos(angle), speed * xp.sin(angle), turn], axis=-1)

    def cost(x, u, t, xp):
        return 0.5 * weights[0] ** 2 * (x[..., 0] ** 2 + x[..., 1] ** 2 + x[..., 2] ** 2) + 0.5 * weights[1] ** 2 * (
            u[..., 0] ** 2 + u[..., 1] ** 2
        )

    def terminal(x, xp):
        return 0.5 * weights[0] ** 2 * (x[..., 0] ** 2 + x[..., 1] ** 2 + x[..., 2] ** 2)

    return both(f, cost, terminal, 3, x0, np.zeros([horizon, 2]), **options)


def pendulum(horizon=40, x0=(np.pi, 0.0), torque=0.1, final=50.0, weight=0.01, **options):
    """Swing-up in steps of 0.05: the angle is 0 above; the cost of the controls varies with time."""

    def f(x, u, t, xp):
        angle, rate = x[..., 0], x[..., 1]
        return xp.stack([angle + 0.05 * rate, rate + 0.05 * (9.81 * xp.sin(angle) + 4.0 * u[..., 0])], axis=-1)

    def cost(x, u, t, xp):
        time = tf.cast(t, x.dtype) if xp is tf else t
        return 0.05 * (1.0 - xp.cos(x[..., 0]) + 0.05 * x[..., 1] ** 2) + weight * (1.0 + 0.01 * time) * u[..., 0] ** 2

    def terminal(x, xp):
        return final * (1.0 - xp.cos(x[..., 0])) + 0.1 * final * x[..., 1] ** 2

    return both(f, cost, terminal, 2, x0, torque * np.ones([horizon, 1]), **options)


def curved(horizon=6, **options):
    """Three states, two controls, every second derivative of dynamics and costs different from zero."""

    def f(x, u, t, xp):
        a, b, c = x[..., 0], x[..., 1], x[..., 2]
        v, w = u[..., 0], u[..., 1]
        rows = [
            0.8 * a + 0.3 * xp.sin(b + v) + 0.1 * v * w,
            0.7 * b - 0.2 * a * c + 0.4 * w + 0.1 * v * a,
            0.9 * c + 0.2 * xp.cos(a) * w - 0.1 * v**2,
        ]
        return xp.stack(rows, axis=-1)

    def cost(x, u, t, xp):
        mixed = 0.1 * xp.sin(x[..., 0]) * u[..., 1]
        return (
            xp.exp(0.3 * x[..., 0])
            + x[..., 1] ** 2
            + 0.5 * x[..., 2] ** 2
            + u[..., 0] ** 2
            + (0.7 * u[..., 1] ** 2 + 0.2 * u[..., 0] * x[..., 2] + mixed)
        )

    def terminal(x, xp):
        return 2.0 * x[..., 0] ** 2 + xp.exp(x[..., 1]) + 0.5 * (x[..., 2] - x[..., 0]) ** 2

    u_init = 0.1 * np.arange(2 * horizon).reshape(horizon, 2) / horizon
    return both(f, cost, terminal, 3, (0.5, -0.3, 0.8), u_init, **options)


class LQ(NamedTuple):
    """Time-varying, x' = F (x, u) + c with cost g'(x, u) + 1/2 (x, u)' H (x, u); v'x + 1/2 x'Wx at the end."""

    F: np.ndarray
    c: np.ndarray
    g: np.ndarray
    H: np.ndarray
    v: np.ndarray
    W: np.ndarray

    def problem(self, dtype=tf.float64, **options):
        F, c, g, H, v, W = (tf.constant(array, dtype) for array in self)

        def dynamics(x, u, t):
            return tf.linalg.matvec(tf.gather(F, t), tf.concat([x, u], -1)) + tf.gather(c, t)

        def cost(x, u, t):
            z = tf.concat([x, u], -1)
            return tf.reduce_sum(z * (tf.gather(g, t) + 0.5 * tf.linalg.matvec(tf.gather(H, t), z)), -1)

        def terminal(x):
            return tf.reduce_sum(x * (v + 0.5 * tf.linalg.matvec(W, x)), -1)

        return Problem(dynamics, cost, terminal, len(self.F), **options)

    def stages(self):
        """Models around x = 0, u = 0; the constant c moves into the gradients of the recursion through `offset`."""
        return [(g, H, F, None) for g, H, F in zip(self.g, self.H, self.F, strict=True)]


def random_lq(rng, horizon, n, m, condition=10.0, constant=True):
    """Stable enough for any horizon; joint cost Hessians positive definite, with cross terms."""
    F = rng.standard_normal((horizon, n, n + m)) / np.sqrt(2 * n)
    return LQ(
        F,
        rng.standard_normal((horizon, n)) * constant,
        rng.standard_normal((horizon, n + m)),
        np.stack([random_spd(rng, n + m, condition) for _ in range(horizon)]),
        rng.standard_normal(n),
        random_spd(rng, n, condition),
    )
