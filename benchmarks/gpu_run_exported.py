"""Training steps that `benchmarks.gpu_step` exported: run with JAX, compared with the CPU's results, timed against SGD.

    python gpu_run_exported.py DIRECTORY [--rounds 20] [--repeats 10] [--keep] [--out report.json]

This file needs JAX and NumPy and nothing else of the project. Every step runs on JAX's default device.

- Numbers: one step from the stored starting values. The error of a floating-point result is the norm of its deviation
  from the CPU's, divided by the norm of the step's change for weights and of the value for others. Allowed are
  `--tolerance`, ten times the noise that the JSON file states for the device's precision (what an error of the inputs
  of 1e-6, or 5e-4 for TF32, did to the same result on the CPU) and, for weights, the rounding to float32. Integers must
  be equal. A result that takes more than it is allowed makes the script end with status 1.
- Time: a block of `--repeats` steps, each fed with the results of the one before, then waiting for the device. Rows of
  one network take turns. The median over `--rounds` blocks; arguments that a result replaces are donated.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

TOLERANCE = {"cpu": 0.001, "other": 0.01}
PRECISION = {"cpu": "float32", "other": "tf32"}  # a GPU's XLA may round the factors of a product to 10-bit mantissas
FACTOR = 10  # times the noise of one draw
ROUNDING = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported step and its values.

    Attributes:
        description: the JSON file.
        module: portable StableHLO.
        arguments: starting values.
        results: the CPU's results after one step.
    """

    description: dict
    module: bytes
    arguments: list[np.ndarray]
    results: list[np.ndarray]

    @property
    def replaced(self) -> dict[int, int]:
        """Argument's number for the number of the result that replaces it."""
        numbers = enumerate(result["replaces"] for result in self.description["results"])
        return {result: argument for result, argument in numbers if argument is not None}


def load(directory: pathlib.Path, name: str) -> Exported:
    """Reads a step's three files.

    Args:
        directory: that `gpu_step` wrote.
        name: of the files, without their ends.

    Returns:
        The step.
    """
    description = json.loads((directory / f"{name}.json").read_text())
    with np.load(directory / f"{name}.npz") as values:
        arguments = [values[f"argument_{i}"] for i in range(len(description["arguments"]))]
        results = [values[f"result_{i}"] for i in range(len(description["results"]))]
    return Exported(description, (directory / f"{name}.stablehlo").read_bytes(), arguments, results)


def jitted(step: Exported, donate: bool) -> Callable:
    """The module as a compiled JAX function.

    `jax.export` makes an `Exported` of a function with the same arguments and results; the module takes its place.

    Args:
        step: the step.
        donate: let results take the buffers of the arguments that they replace.

    Returns:
        Function of all arguments that returns a list of all results.
    """

    def same_signature(*arguments: jax.Array) -> list[jax.Array]:
        return [jax.numpy.zeros(result.shape, result.dtype) for result in step.results]

    exported = jax.export.export(jax.jit(same_signature))(*step.arguments)
    exported = dataclasses.replace(
        exported, mlir_module_serialized=step.module, module_kept_var_idx=tuple(range(len(step.arguments)))
    )
    return jax.jit(exported.call, donate_argnums=tuple(step.replaced.values()) if donate else ())


def errors(step: Exported, results: list[np.ndarray], tolerance: float, precision: str) -> dict[str, tuple]:
    """Error of every result that is determined uniquely.

    Args:
        step: holds the CPU's results.
        results: of one step from its starting values.
        tolerance: relative error that is always allowed.
        precision: whose noise is allowed too, "float32" or "tf32".

    Returns:
        For each result's name the share of the allowed error that it takes, infinity if an integer differs or a value
        is not finite, and its relative error.
    """
    found = {}
    for i, (entry, value, expected) in enumerate(zip(step.description["results"], results, step.results, strict=True)):
        if not entry["unique"]:
            continue
        if not np.issubdtype(expected.dtype, np.floating):
            found[entry["name"]] = (0.0, 0.0) if np.array_equal(value, expected) else (np.inf, np.inf)
            continue
        scale = size = np.linalg.norm(expected)
        allowed = FACTOR * entry["noise"][precision]
        if i and step.description["arguments"][entry["replaces"]]["kind"] == "model":
            scale = np.linalg.norm(expected - step.arguments[entry["replaces"]])
            allowed += ROUNDING * size
        gap = np.linalg.norm(value - expected)
        allowed += tolerance * scale
        finite = bool(np.isfinite(gap))
        share = 0.0 if gap == 0 else gap / allowed if finite and allowed else np.inf
        found[entry["name"]] = float(share), float(gap / scale) if finite and scale else float(share)
    return found


class Run:
    """A step on the device, compiled and compared with the CPU's results."""

    def __init__(self, step: Exported, donate: bool) -> None:
        self._step = step
        function = jitted(step, donate)
        start = time.perf_counter()
        self._function = function.lower(*step.arguments).compile()
        self.compile_s = time.perf_counter() - start
        self._arguments = [jax.device_put(value) for value in step.arguments]
        self.results = [np.array(result) for result in self._advance()]

    def _advance(self) -> list[jax.Array]:
        results = self._function(*self._arguments)
        for result, argument in self._step.replaced.items():
            self._arguments[argument] = results[result]
        return results

    def block(self, repeats: int) -> float:
        """Runs some steps.

        Args:
            repeats: steps.

        Returns:
            Seconds per step, the wait for the device included.
        """
        start = time.perf_counter()
        for _ in range(repeats):
            results = self._advance()
        jax.block_until_ready(results)
        return (time.perf_counter() - start) / repeats


def measure(steps: list[Exported], options: argparse.Namespace, tolerance: float, precision: str) -> dict:
    """Compares and times the steps of one network.

    Args:
        steps: exported rows; ratios are to the one whose name ends in `_sgd`, where there is one.
        options: `rounds`, `repeats`, `keep` of the command line.
        tolerance: as in `errors`.
        precision: as in `errors`.

    Returns:
        For each step's name: compile time, s; the result that takes most of its allowed error, the share that it takes
        and its error; whether the share is at most one; median and quartiles of a step's time, ms; ratio.
    """
    runs, report = {}, {}
    for step in steps:
        name = step.description["name"]
        run = runs[name] = Run(step, not options.keep)
        found = errors(step, run.results, tolerance, precision)
        worst = max(found, key=lambda key: found[key])
        share, error = found[worst]
        report[name] = {
            "compile_s": round(run.compile_s, 2),
            "worst": worst,
            "share": share,
            "error": error,
            "ok": share <= 1,
        }
        run.block(1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(run.block(options.repeats))
    baseline = [statistics.median(seconds) for name, seconds in times.items() if name.endswith("_sgd")]
    for name, seconds in times.items():
        median = statistics.median(seconds)
        report[name]["median_ms"] = round(1e3 * median, 4)
        report[name]["quartiles_ms"] = [round(1e3 * float(q), 4) for q in np.percentile(seconds, [25, 75])]
        report[name]["ratio"] = round(median / baseline[0], 3) if baseline else None
    return report


def main() -> int:
    """Command line.

    Returns:
        Exit status: 1 if a number is not within the tolerance.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--networks", default="", help="comma-separated; default all in the directory")
    parser.add_argument("--rounds", type=int, default=20, help="blocks timed")
    parser.add_argument("--repeats", type=int, default=10, help="steps in a block")
    parser.add_argument("--keep", action="store_true", help="do not donate arguments")
    parser.add_argument("--tolerance", type=float, default=0.0, help=f"default {TOLERANCE}")
    parser.add_argument("--out", type=pathlib.Path, help="JSON report")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # counters are 64-bit integers
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else "other"
    tolerance, precision = options.tolerance or TOLERANCE[kind], PRECISION[kind]
    networks: dict[str, list[str]] = {}
    for path in sorted(options.directory.glob("*.json")):
        networks.setdefault(path.stem.rsplit("_", 1)[0], []).append(path.stem)
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}")
    print(f"allowed: a relative error of {tolerance}, and {FACTOR} times the noise of {precision}")
    report = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "results": {}}
    for network in options.networks.split(",") if options.networks else networks:
        steps = [load(options.directory, name) for name in networks[network]]
        found = measure(steps, options, tolerance, precision)
        report["results"] |= found
        print(f"{'step':20}{'ms':>10}{'ratio':>7}{'compile s':>11}{'error':>10}{'allowed':>9}  worst result")
        for name, row in found.items():
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            figures = f"{row['median_ms']:10.3f}{ratio:>7}{row['compile_s']:11.1f}{row['error']:10.1e}"
            figures += f"{row['share']:9.0%}"
            print(f"{name:20}{figures}  {row['worst']}{'' if row['ok'] else '  FAILED'}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(report | {"tolerance": tolerance, "precision": precision}, indent=1) + "\n")
    return 0 if report["results"] and all(row["ok"] for row in report["results"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
