"""Time per iteration of `bellman_tf.trajectory` against Crocoddyl's C++, over the horizon.

    python -m benchmarks.trajectory [--rounds 15] [--horizons 50,100,...] [--out benchmarks/trajectory.json]

Crocoddyl's unicycle (3 states, 2 controls, model and derivatives in C++) from the same start, a fixed number of
iterations on one thread each. The time of a solve, with everything it does before its first iteration, is divided by
its iterations. All rows of a horizon are timed in turns, round after round. Times are CPU times of the process, so that
other jobs on the machine count little; a ratio is between medians. Wall-clock medians are recorded beside them. So is
the cost reached: the Gauss-Newton rows and Crocoddyl do the same iterations.

    crocoddyl          SolverDDP with ActionModelUnicycle
    crocoddyl python   SolverDDP with the same model and its derivatives in NumPy, as a model of one's own would be
    gauss_newton       ours, second_order=False, derivatives by automatic differentiation, XLA
    second_order       ours, second_order=True, XLA; from this start it repeats sweeps with more regularisation
    64 starts          gauss_newton for 64 initial states around the same start in one batch
    ... float32        the row without that word in float32, where the fall of the cost is sooner lost in rounding
    ... twice          gauss_newton and 64 starts with twice the iterations. What those take more, divided by their
                       number, is the time of one further iteration, without calling the program, the first roll-out
                       and sweep
    gauss_newton graph ours, second_order=False, jit_compile=False
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import crocoddyl
import numpy as np
import tensorflow as tf

from benchmarks.unicycle import START, ours

ROWS = (
    "crocoddyl",
    "crocoddyl python",
    "gauss_newton",
    "second_order",
    "64 starts",
    "gauss_newton float32",
    "64 starts float32",
    "gauss_newton graph",
)
TWICE = {"gauss_newton": "gauss_newton twice", "64 starts": "64 starts twice"}


class PythonUnicycle(crocoddyl.ActionModelAbstract):
    """The same model in NumPy."""

    def __init__(self) -> None:
        super().__init__(crocoddyl.StateVector(3), 2, 5)

    def calc(self, data: object, x: np.ndarray, u: np.ndarray | None = None) -> None:
        """Next state and cost."""
        data.cost = 50.0 * float(x @ x)
        if u is not None:
            data.xnext = x + 0.1 * np.array([np.cos(x[2]) * u[0], np.sin(x[2]) * u[0], u[1]])
            data.cost += 0.5 * float(u @ u)

    def calcDiff(self, data: object, x: np.ndarray, u: np.ndarray | None = None) -> None:
        """Derivatives; the Hessians of the cost are constant."""
        data.Lx, data.Lxx = 100.0 * x, 100.0 * np.eye(3)
        if u is not None:
            cos, sin = np.cos(x[2]), np.sin(x[2])
            data.Lu, data.Luu = u, np.eye(2)
            data.Fx = np.array([[1.0, 0.0, -0.1 * sin * u[0]], [0.0, 1.0, 0.1 * cos * u[0]], [0.0, 0.0, 1.0]])
            data.Fu = np.array([[0.1 * cos, 0.0], [0.1 * sin, 0.0], [0.0, 0.1]])


def theirs(horizon: int, iterations: int, python: bool) -> Callable[[], tuple[int, float]]:
    """One solve by Crocoddyl: iterations done and cost reached."""
    model = PythonUnicycle() if python else crocoddyl.ActionModelUnicycle()
    problem = crocoddyl.ShootingProblem(np.array(START), [model] * horizon, model)
    controls = [np.zeros(2)] * horizon
    states = problem.rollout(controls)

    def run() -> tuple[int, float]:
        solver = crocoddyl.SolverDDP(problem)
        solver.th_stop = 1e-300
        solver.solve(states, controls, iterations, True)
        return solver.iter, solver.cost

    return run


def rows(horizon: int, iterations: int) -> dict[str, Callable[[], tuple[int, float]]]:
    """Every row of a horizon."""
    return {
        "crocoddyl": theirs(horizon, iterations, False),
        "crocoddyl python": theirs(horizon, iterations, True),
        "gauss_newton": ours(horizon, iterations, False, True),
        "second_order": ours(horizon, iterations, True, True),
        "64 starts": ours(horizon, iterations, False, True, 64),
        "gauss_newton float32": ours(horizon, iterations, False, True, dtype=tf.float32),
        "64 starts float32": ours(horizon, iterations, False, True, 64, dtype=tf.float32),
        "gauss_newton graph": ours(horizon, iterations, False, False),
        "gauss_newton twice": ours(horizon, 2 * iterations, False, True),
        "64 starts twice": ours(horizon, 2 * iterations, False, True, 64),
    }


def measure(horizon: int, iterations: int, rounds: int) -> dict:
    """Times the rows of one horizon in turns."""
    built, first = rows(horizon, iterations), {}
    for name, run in built.items():
        start = time.process_time()
        run()
        first[name] = time.process_time() - start
    cpu: dict[str, list[float]] = {name: [] for name in built}
    wall: dict[str, list[float]] = {name: [] for name in built}
    reached = {}
    for _ in range(rounds):
        for name, run in built.items():
            start = time.perf_counter(), time.process_time()
            reached[name] = run()
            end = time.perf_counter(), time.process_time()
            for times, i in ((wall, 0), (cpu, 1)):
                times[name].append((end[i] - start[i]) / reached[name][0])
    base = statistics.median(cpu["crocoddyl"])
    results = {
        name: {
            "ms": round(1e3 * statistics.median(cpu[name]), 4),
            "ms_quartiles": [round(1e3 * float(q), 4) for q in np.percentile(cpu[name], [25, 75])],
            "ms_wall": round(1e3 * statistics.median(wall[name]), 4),
            "ratio": round(statistics.median(cpu[name]) / base, 2),
            "ratio_to_gauss_newton": round(statistics.median(cpu[name]) / statistics.median(cpu["gauss_newton"]), 2),
            "first_call_cpu_s": round(first[name], 2),
            "iterations": reached[name][0],
            "cost": reached[name][1],
        }
        for name in built
    }
    for short, long in TWICE.items():
        totals = [statistics.median(cpu[name]) * reached[name][0] for name in (short, long)]
        further = (totals[1] - totals[0]) / (reached[long][0] - reached[short][0])
        results[short]["ms_further_iteration"] = round(1e3 * further, 4)
    one, many = (results[name] for name in TWICE)
    many["further_iteration_to_gauss_newton"] = round(many["ms_further_iteration"] / one["ms_further_iteration"], 2)
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", default="50,100,200,500,1000")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    report: dict = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "tensorflow": tf.__version__,
        "crocoddyl": crocoddyl.__version__,
        "numpy": np.__version__,
        "rounds": options.rounds,
        "iterations": options.iterations,
        "results": {},
    }
    print(f"{'horizon':>8}" + "".join(f"{name:>28}" for name in ROWS) + "   (CPU ms per iteration, ratio to crocoddyl)")
    for horizon in map(int, options.horizons.split(",")):
        print(f"  building and timing horizon {horizon}", file=sys.stderr, flush=True)
        result = report["results"][str(horizon)] = measure(horizon, options.iterations, options.rounds)
        cells = [f"{result[name]['ms']:.3f} ({result[name]['ratio']:.2f}x)" for name in ROWS]
        print(f"{horizon:8}" + "".join(f"{cell:>28}" for cell in cells), flush=True)
        many = result["64 starts"]
        print(
            f"         64 starts to one: whole solve {many['ratio_to_gauss_newton']:.2f}, a further iteration "
            f"{many['further_iteration_to_gauss_newton']:.2f} ({many['ms_further_iteration']:.3f} ms)",
            flush=True,
        )
    horizons = list(report["results"])
    if len(horizons) > 1:
        low, high = report["results"][horizons[0]], report["results"][horizons[-1]]
        stages = int(horizons[-1]) / int(horizons[0])
        report["growth"] = {name: round(high[name]["ms"] / low[name]["ms"] / stages, 3) for name in ROWS}
        print(f"time({horizons[-1]}) / time({horizons[0]}) / {stages:g}: {report['growth']}")
    report["load_at_end"] = [round(load, 2) for load in os.getloadavg()]
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
