"""Training steps that `benchmarks.gpu_step` exported: run with JAX, compared with the CPU's results, timed against SGD.

    python gpu_run_exported.py DIRECTORY [--rounds 20] [--repeats 10] [--keep] [--out report.json]

This file needs JAX and NumPy and nothing else of the project. Every step runs on JAX's default device.

- Numbers: one step from the stored starting values; `--tolerance` is the largest error at which the script does not
  fail. The error of a result is its largest deviation from the CPU's, divided by a scale: for weights the largest
  change of an entry (less what float32 rounds off the weight), for other floating-point values the largest entry.
  Integers must be equal. A scale is at least 1 % of the largest of its group (all weights; all momenta; all input
  factors; ...): some gradients, such as that of a key's bias in attention, are zero but for rounding.
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

# A GPU's XLA may round the factors of a product to 10-bit mantissas (TF32).
TOLERANCE = {"cpu": 0.01, "other": 0.1}
SMALLEST_SCALE = 0.01  # of a group's largest
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


def group_of(step: Exported, result: int) -> str:
    """Results of which group are of comparable size.

    Args:
        step: names its results.
        result: number of a result.

    Returns:
        "model" for weights, else the last two words of the name without numbers, such as "input_factor".
    """
    entry = step.description["results"][result]
    if entry["replaces"] is not None and step.description["arguments"][entry["replaces"]]["kind"] == "model":
        return "model"
    words = [word for word in entry["name"].rsplit("/", 1)[-1].split("_") if not word.isdigit()]
    return "_".join(words[-2:])


def errors(step: Exported, results: list[np.ndarray]) -> dict[str, float]:
    """Error of every result that is determined uniquely.

    Args:
        step: holds the CPU's results.
        results: of one step from its starting values.

    Returns:
        For each result its name and its error; infinity if an integer differs or a value is not finite.
    """
    names = [entry["name"] for entry in step.description["results"]]
    found, gaps, scales, largest = {}, {}, {}, {}
    for i, (value, expected) in enumerate(zip(results, step.results, strict=True)):
        if not step.description["results"][i]["unique"]:
            continue
        if not np.issubdtype(expected.dtype, np.floating):
            found[names[i]] = 0.0 if np.array_equal(value, expected) else np.inf
        elif not np.isfinite(value).all():
            found[names[i]] = np.inf
        else:
            gaps[i] = np.max(np.abs(value - expected), initial=0.0)
            scales[i] = size = np.max(np.abs(expected), initial=0.0)
            group = group_of(step, i)
            if group == "model":
                gaps[i] = max(gaps[i] - ROUNDING * size, 0.0)
                scales[i] = np.max(np.abs(expected - step.arguments[step.replaced[i]]), initial=0.0)
            largest[group] = max(largest.get(group, 0.0), scales[i])
    for i, gap in gaps.items():
        scale = max(scales[i], SMALLEST_SCALE * largest[group_of(step, i)])
        found[names[i]] = 0.0 if gap == 0 else float(gap / scale) if scale else np.inf
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
        results = self._advance()
        self.errors = errors(step, [np.asarray(result) for result in results])

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


def measure(steps: list[Exported], rounds: int, repeats: int, donate: bool, tolerance: float) -> dict:
    """Compares and times the steps of one network.

    Args:
        steps: exported rows; ratios are to the one whose name ends in `_sgd`, where there is one.
        rounds: blocks of each row.
        repeats: steps of a block.
        donate: as in `jitted`.
        tolerance: largest error.

    Returns:
        For each step's name: compile time, s; largest error and its result's name; whether it is within the tolerance;
        median and quartiles of a step's time, ms; ratio.
    """
    runs, report = {}, {}
    for step in steps:
        name = step.description["name"]
        run = runs[name] = Run(step, donate)
        worst = max(run.errors, key=lambda key: run.errors[key])
        report[name] = {
            "compile_s": round(run.compile_s, 2),
            "error": run.errors[worst],
            "worst": worst,
            "ok": run.errors[worst] <= tolerance,
        }
        run.block(1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run.block(repeats))
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
    parser.add_argument("--tolerance", type=float, default=0.0, help=f"largest error; default {TOLERANCE}")
    parser.add_argument("--out", type=pathlib.Path, help="JSON report")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # counters are 64-bit integers
    device = jax.devices()[0]
    tolerance = options.tolerance or TOLERANCE.get(device.platform, TOLERANCE["other"])
    networks: dict[str, list[str]] = {}
    for path in sorted(options.directory.glob("*.json")):
        networks.setdefault(path.stem.rsplit("_", 1)[0], []).append(path.stem)
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}, tolerance {tolerance}")
    report = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "results": {}}
    for network in options.networks.split(",") if options.networks else networks:
        steps = [load(options.directory, name) for name in networks[network]]
        found = measure(steps, options.rounds, options.repeats, not options.keep, tolerance)
        report["results"] |= found
        print(f"{'step':20}{'ms':>10}{'ratio':>7}{'compile s':>11}{'error':>10}  worst result")
        for name, row in found.items():
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            tail = f"{row['compile_s']:11.1f}{row['error']:10.1e}  {row['worst']}{'' if row['ok'] else '  FAILED'}"
            print(f"{name:20}{row['median_ms']:10.3f}{ratio:>7}{tail}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(report | {"tolerance": tolerance}, indent=1) + "\n")
    return 0 if report["results"] and all(row["ok"] for row in report["results"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
