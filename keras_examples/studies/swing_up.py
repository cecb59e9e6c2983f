"""A cart-pole swings up under a limited force, by differential dynamic programming.

    python -m keras_examples.studies.swing_up [--quick] [--out DIRECTORY]

What you will see: the pole hangs; `bellman_tf.trajectory.solve` finds the force on the cart that swings it up and holds
it, within +-12 N, with derivatives of the dynamics by automatic differentiation. A table compares the second-order
method with its Gauss-Newton form, without limits and then, from that plan clipped, with them. The limited plan,
open-loop and with its feedback gains, is tried on poles heavier than the model's. Last, a pendulum is swung up by both
methods down to rounding: the gradients are printed, and are squared or shrink by a constant factor from one iteration
to the next. Figures: `swing_up.png` (trajectory, cost, feedback gains) and `ddp_convergence.png`.

About a minute on an idle core; `--quick` half of that. float64.
"""

import argparse
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from bellman_tf.trajectory import Problem, Solution, Status, solve

STEP = 0.02  # seconds
CART, POLE, LENGTH, GRAVITY = 1.0, 0.3, 0.5, 9.81
FORCE = 12.0
HANGING = (0.0, np.pi, 0.0, 0.0)


def cart_pole(pole: float = POLE) -> object:
    """Dynamics of the state (position, angle from upright, their rates), one semi-implicit Euler step.

    Args:
        pole: mass of the pole's end.

    Returns:
        The function (x, u, t).
    """

    def dynamics(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        angle, speed, rate, force = x[:, 1], x[:, 2], x[:, 3], u[:, 0]
        sin, cos = tf.sin(angle), tf.cos(angle)
        mass = CART + pole * sin**2
        pull = force + pole * sin * (LENGTH * rate**2 - GRAVITY * cos)
        swing = ((CART + pole) * GRAVITY * sin - cos * (force + pole * LENGTH * rate**2 * sin)) / (LENGTH * mass)
        speed, rate = speed + STEP * pull / mass, rate + STEP * swing
        return tf.stack([x[:, 0] + STEP * speed, angle + STEP * rate, speed, rate], axis=1)

    return dynamics


def running_cost(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """Little is asked on the way: stay near the middle, spend little force."""
    return STEP * (0.1 * x[:, 0] ** 2 + 0.5 * (1.0 - tf.cos(x[:, 1])) + 0.005 * x[:, 3] ** 2 + 0.01 * u[:, 0] ** 2)


def terminal_cost(x: tf.Tensor) -> tf.Tensor:
    """At the end the pole stands still in the middle."""
    return 20.0 * x[:, 0] ** 2 + 200.0 * (1.0 - tf.cos(x[:, 1])) + 5.0 * x[:, 2] ** 2 + 5.0 * x[:, 3] ** 2


def start(horizon: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The hanging pole and a small push to either side."""
    time = np.arange(horizon) * STEP
    return tf.constant(HANGING, tf.float64), tf.constant(2.0 * np.sin(2 * np.pi * time)[:, None])


def pendulum(horizon: int = 40) -> Problem:
    """A pendulum swings up; 0 is above, steps of 0.05."""

    def dynamics(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        angle, rate = x[:, 0], x[:, 1]
        return tf.stack([angle + 0.05 * rate, rate + 0.05 * (GRAVITY * tf.sin(angle) + 4.0 * u[:, 0])], axis=1)

    def cost(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        return 0.05 * (1.0 - tf.cos(x[:, 0]) + 0.05 * x[:, 1] ** 2) + 0.01 * u[:, 0] ** 2

    return Problem(dynamics, cost, lambda x: 50.0 * (1.0 - tf.cos(x[:, 0])) + 5.0 * x[:, 1] ** 2, horizon)


def converge() -> dict[str, list[float]]:
    """Swings the pendulum up to rounding; prints and returns the gradients from where they are last above 0.05."""
    tails = {}
    print("\nPendulum, largest entry of the gradient per iteration, and log g_(i+1) / log g_i:")
    for second_order in (True, False):
        name = "second order" if second_order else "Gauss-Newton"
        found = solve(
            pendulum(),
            tf.constant([np.pi, 0.0], tf.float64),
            0.1 * tf.ones([40, 1], tf.float64),
            second_order=second_order,
            gradient_tolerance=1e-13,
            cost_tolerance=0.0,
            jit_compile=False,
        )
        g = found.history.gradient.numpy()
        tail = tails[name] = [float(value) for value in g[np.flatnonzero(g > 0.05)[-1] :]]
        ratios = [np.log(after) / np.log(before) for before, after in zip(tail, tail[1:], strict=False)]
        print(f"  {name}: " + " ".join(f"{value:.1e}" for value in tail))
        print(f"  {'':12}  " + " ".join(f"{value:7.2f}" for value in ratios), flush=True)
    return tails


def run(horizon: int, jit_compile: bool) -> dict[str, Solution]:
    """Solves with and without limits, with and without second derivatives; prints a row each."""
    print(f"| {'run':26} | status             | iterations | cost     | gradient   | seconds |")
    print(f"|{'-' * 28}|{'-' * 20}|{'-' * 12}|{'-' * 10}|{'-' * 12}|{'-' * 9}|")
    solutions = {}
    for limit in (None, FORCE):
        for second_order in (True, False):
            name = ("second order" if second_order else "Gauss-Newton") + (f", force <= {limit:g}" if limit else "")
            bounds = {} if limit is None else {"lower": -limit, "upper": limit}
            problem = Problem(cart_pole(), running_cost, terminal_cost, horizon, **bounds)
            x0, u_init = start(horizon)
            if limit is not None:  # from the plan without limits, clipped
                u_init = tf.clip_by_value(solutions[name.split(",")[0]].controls, -limit, limit)
            begin = time.perf_counter()
            found = solve(
                problem,
                x0,
                u_init,
                second_order=second_order,
                max_iterations=400,
                jit_compile=jit_compile,
            )
            seconds = time.perf_counter() - begin
            status = Status(int(found.status)).name
            print(
                f"| {name:26} | {status:18} | {int(found.iterations):10} | {float(found.cost):8.4f} | "
                f"{float(found.history.gradient[-1]):10.1e} | {seconds:7.1f} |",
                flush=True,
            )
            solutions[name] = found
    return solutions


def perturbed(found: Solution, horizon: int, masses: tuple[float, ...]) -> dict[float, tuple[float, float]]:
    """Follows a plan on poles of other masses.

    Args:
        found: the plan.
        horizon: T.
        masses: of the pole's end.

    Returns:
        Final angle from upright, in degrees, open-loop and with feedback, per mass.
    """
    angles = {}
    for mass in masses:
        dynamics, pair = cart_pole(mass), []
        for gain in (0.0, 1.0):
            x = tf.constant([HANGING], tf.float64)
            for t in range(horizon):
                deviation = tf.linalg.matvec(found.gains.feedback[t], x[0] - found.states[t])
                u = tf.clip_by_value(found.controls[t] + gain * deviation, -FORCE, FORCE)
                x = dynamics(x, u[None], tf.constant([t]))
            angle = float(x[0, 1])
            pair.append(abs(np.degrees(np.arctan2(np.sin(angle), np.cos(angle)))))
        angles[mass] = tuple(pair)
    return angles


def draw(path: pathlib.Path, free: Solution, limited: Solution) -> None:
    """Trajectory, cost and feedback gains."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    times = np.arange(limited.states.shape[0]) * STEP
    for found, style, label in ((free, ":", "no limits"), (limited, "-", f"|force| <= {FORCE:g} N")):
        axes[0, 0].plot(times, found.states[:, 0], "tab:blue", ls=style, label=f"position (m), {label}")
        axes[0, 0].plot(times, found.states[:, 1], "tab:orange", ls=style, label=f"angle (rad), {label}")
        axes[0, 1].step(times[:-1], found.controls[:, 0], "0.2", ls=style, where="post", label=label)
        axes[1, 0].semilogy(found.history.cost.numpy() - float(found.cost) + 1e-12, ls=style, label=label)
    axes[0, 1].axhspan(-FORCE, FORCE, color="tab:green", alpha=0.1)
    for i, name in enumerate(("position", "angle", "speed", "rate")):
        axes[1, 1].plot(times[:-1], limited.gains.feedback[:, 0, i], label=name)
    titles = (
        ("The plan", "seconds", ""),
        ("Force on the cart (N)", "seconds", ""),
        ("Cost above the final one, second order", "iteration", ""),
        ("Feedback gains K, limited force", "seconds", ""),
    )
    for ax, (title, x, y) in zip(axes.flat, titles, strict=True):
        ax.set(title=title, xlabel=x, ylabel=y)
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_convergence(path: pathlib.Path, tails: dict[str, list[float]]) -> None:
    """Gradient against iteration, and against the gradient one iteration earlier."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for (name, tail), colour in zip(tails.items(), ("tab:blue", "tab:orange"), strict=True):
        axes[0].semilogy(tail, colour, marker="o", label=name)
        axes[1].loglog(tail[:-1], tail[1:], colour, marker="o", ls="", label=name)
    span = np.array([1e-6, 1e0])
    axes[1].loglog(span, span**2, "0.6", ls="--", label="slope 2")
    axes[1].loglog(np.array([1e-13, 1e0]), 0.25 * np.array([1e-13, 1e0]), "0.6", ls=":", label="slope 1")
    axes[0].set(
        title="Pendulum swing-up: differential dynamic programming",
        xlabel="iterations after the gradient is last above 0.05",
        ylabel="largest entry of the gradient",
    )
    axes[1].set(title="Order of convergence", xlabel="gradient", ylabel="gradient one iteration later")
    for ax in axes:
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/swing_up"), help="directory")
    parser.add_argument("--quick", action="store_true", help="half the horizon, to see that it works")
    parser.add_argument("--jit", action="store_true", help="compile with XLA: slower to start, faster per iteration")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    horizon = 75 if options.quick else 150
    print(f"{horizon} stages of {STEP} s; each run is compiled first, which takes most of its time\n", flush=True)
    solutions = run(horizon, options.jit)
    free, limited = solutions["second order"], solutions[f"second order, force <= {FORCE:g}"]

    angles = perturbed(limited, horizon, (POLE, 1.01 * POLE, 1.05 * POLE))
    print("\nFinal angle from upright with the plan for a pole of 0.3 kg, force limited:")
    for mass, (open_loop, feedback) in angles.items():
        print(f"  pole {mass:.4g} kg: open-loop {open_loop:6.2f} degrees, with feedback {feedback:6.2f}")
    tails = converge()

    draw(options.out / "swing_up.png", free, limited)
    draw_convergence(options.out / "ddp_convergence.png", tails)
    record = {
        "horizon": horizon,
        "machine": platform.platform(),
        "tensorflow": tf.__version__,
        "runs": {
            name: {
                "status": Status(int(found.status)).name,
                "iterations": int(found.iterations),
                "cost": float(found.cost),
                "gradient": found.history.gradient.numpy().tolist(),
            }
            for name, found in solutions.items()
        },
        "pendulum_gradients": tails,
        "final_angle_degrees": {f"{mass:g}": pair for mass, pair in angles.items()},
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\nFigures and results.json are in {options.out}/")


if __name__ == "__main__":
    main()
