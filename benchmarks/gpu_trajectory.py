"""`bellman_tf.trajectory` for one and many initial states on a GPU: whole solves exported as StableHLO.

    python -m benchmarks.gpu_trajectory --out DIRECTORY [--horizons 50,200,1000] [--starts 64,1024]
    python benchmarks/gpu_run_exported.py DIRECTORY          where JAX has an accelerator; TensorFlow is not needed

The unicycle of `benchmarks.trajectory`, Gauss-Newton, float64, a fixed number of iterations. The files are those of
`benchmarks/exported.py`, named `unicycleHORIZON_STARTS`; ratios are to one start. Nothing is replaced by a result, and
the course is the cost of the first start.
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf

from bellman_tf.trajectory import solve
from benchmarks.exported import write_function
from benchmarks.unicycle import START, unicycle

ROUNDING = 1e-14  # relative error of the initial states whose effect is the noise: float64 on any device


def export(horizon: int, starts: int, iterations: int, directory: pathlib.Path) -> dict:
    """Writes the files of a solve.

    Args:
        horizon: T.
        starts: B; with 1 the arrays have no batch axis.
        iterations: of Gauss-Newton.
        directory: made if it does not exist.

    Returns:
        What the JSON file says.
    """
    problem, rng = unicycle(horizon), np.random.default_rng(0)
    x0, lead = np.array(START), () if starts == 1 else (starts,)
    if lead:
        x0 = x0 + 0.1 * rng.standard_normal([starts, 3])
        x0[0] = START

    def program(x0: tf.Tensor, u_init: tf.Tensor) -> tuple[tf.Tensor, ...]:
        found = solve(
            problem,
            x0,
            u_init,
            second_order=False,
            max_iterations=iterations,
            gradient_tolerance=0.0,
            cost_tolerance=0.0,
        )
        return found.cost, found.states, found.controls, found.iterations

    function = tf.function(program, jit_compile=True, autograph=False)
    inputs = [tf.constant(x0), tf.zeros([*lead, horizon, 2], tf.float64)]
    name = f"unicycle{horizon}"
    return write_function(directory, f"{name}_{starts}", f"{name}_1", function, inputs, ROUNDING)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for exported solves")
    parser.add_argument("--horizons", default="50,200,1000")
    parser.add_argument("--starts", default="64,1024")
    parser.add_argument("--iterations", type=int, default=6)
    options = parser.parse_args()
    for horizon in map(int, options.horizons.split(",")):
        for starts in (1, *map(int, options.starts.split(","))):
            written = export(horizon, starts, options.iterations, options.out)
            print(f"{written['name']}: {written['bytes']} bytes", flush=True)


if __name__ == "__main__":
    main()
