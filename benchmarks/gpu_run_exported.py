"""Training steps that `benchmarks.gpu_step` exported: run with JAX, compared with the CPU's results, timed against SGD.

    python gpu_run_exported.py DIRECTORY [--rounds 20] [--repeats 10] [--keep] [--out report.json]

This file needs JAX and NumPy and nothing else of the project. Every step runs on JAX's default device. With
`NVIDIA_TF32_OVERRIDE=0` and `XLA_FLAGS=--xla_gpu_enable_triton_gemm=false` in the environment a GPU takes its products
in float32, and the numbers must agree as those of a CPU do.

- Numbers: one step from the stored starting values. The error of a floating-point result is the norm of its deviation
  from the CPU's, divided by the norm of the step's change for weights and of the value for others. Allowed are
  `--tolerance`, ten times the noise that the JSON file states for the device's precision (what an error of the inputs
  of 1e-6, or 5e-4 for TF32, did to the same result on the CPU) and, for weights, the rounding to float32 and a
  thousandth of the tolerance of what all weights together change by: the gradient of an attention's key biases is 0. A
  step that chooses a basis within an eigenspace, EKFAC's, may be off by ten times the tolerance. Integers must be
  equal. A result that takes more than it is allowed makes the script end with status 1.
- Course: the losses of the further steps that the JSON file has, here and on the CPU; the last ones are shown. They
  need not agree: learning one batch by heart, a network is no stable system.
- Time: a block of `--repeats` steps, each fed with the results of the one before, then waiting for the device. Rows of
  one network take turns. The median over `--rounds` blocks; arguments that a result replaces are donated.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

TOLERANCE = {"float32": 0.001, "tf32": 0.01}  # a GPU's XLA may round the factors of a product to 10-bit mantissas, TF32
FACTOR = 10  # times the noise
SMALL = 1e-3  # a weight's change is as small as nothing, relative to that of all
CHOICE = 10  # times the tolerance, where a step has results that are not unique
ROUNDING = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported step and its values.

    Attributes:
        description: the JSON file.
        module: portable StableHLO.
        arguments: starting values.
        results: the CPU's results after one step, of a large one some entries.
        places: for the number of a large result which entries, of the flat array.
    """

    description: dict
    module: bytes
    arguments: list[np.ndarray]
    results: list[np.ndarray]
    places: dict[int, np.ndarray]

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
        arguments = [
            drawn(entry) if "drawn" in entry else values[f"argument_{i}"]
            for i, entry in enumerate(description["arguments"])
        ]
        numbers = range(len(description["results"]))
        results = [values[f"result_{i}"] for i in numbers]
        places = {i: values[f"places_{i}"] for i in numbers if f"places_{i}" in values}
    return Exported(description, (directory / f"{name}.stablehlo").read_bytes(), arguments, results, places)


def drawn(argument: dict) -> np.ndarray:
    """A starting value that is random numbers.

    Args:
        argument: its description.

    Returns:
        The value.
    """
    normal = np.random.default_rng(argument["drawn"]["seed"]).standard_normal(argument["shape"], np.float32)
    return np.float32(argument["drawn"]["scale"]) * normal


def chosen(value: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """The value's entries at some places of its flat array, all if `places` is `None`."""
    return value if places is None else value.flat[places]


def program(module: bytes, arguments: Sequence, results: Sequence[dict]) -> Callable:
    """The module as a function of JAX.

    `jax.export` makes an `Exported` of a function with the same arguments and results; the module takes its place.

    Args:
        module: portable StableHLO.
        arguments: with their shapes and types.
        results: descriptions with "shape" and "dtype".

    Returns:
        Function of all arguments that returns a list of all results.
    """

    def same_signature(*arguments: jax.Array) -> list[jax.Array]:
        return [jax.numpy.zeros(result["shape"], result["dtype"]) for result in results]

    exported = jax.export.export(jax.jit(same_signature))(*arguments)
    kept = tuple(range(len(arguments)))
    return dataclasses.replace(exported, mlir_module_serialized=module, module_kept_var_idx=kept).call


def jitted(step: Exported, donate: bool) -> Callable:
    """A step as a compiled JAX function.

    Args:
        step: the step.
        donate: let results take the buffers of the arguments that they replace.

    Returns:
        Function of all arguments that returns a list of all results.
    """
    function = program(step.module, step.arguments, step.description["results"])
    return jax.jit(function, donate_argnums=tuple(step.replaced.values()) if donate else ())


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
    moved = [
        np.linalg.norm(step.results[i] - chosen(step.arguments[argument], step.places.get(i)))
        for i, argument in step.replaced.items()
        if step.description["arguments"][argument]["kind"] == "model"
    ]
    together = np.linalg.norm(moved)
    for i, (entry, value, expected) in enumerate(zip(step.description["results"], results, step.results, strict=True)):
        if not entry["unique"]:
            continue
        places = step.places.get(i)
        value = chosen(value, places)
        if not np.issubdtype(expected.dtype, np.floating):
            found[entry["name"]] = (0.0, 0.0) if np.array_equal(value, expected) else (np.inf, np.inf)
            continue
        scale = size = np.linalg.norm(expected)
        allowed = FACTOR * entry["noise"][precision]
        replaced = entry["replaces"]
        if replaced is not None and step.description["arguments"][replaced]["kind"] == "model":
            scale = np.linalg.norm(expected - chosen(step.arguments[replaced], places))
            allowed += ROUNDING * size + SMALL * tolerance * together
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
        self.loss = float(self.results[0].flat[0])  # after the course, whose first step this was
        for _ in step.description["course"][1:]:
            self.loss = float(self._advance()[0])

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
        steps: exported rows; ratios are to the one that they name as their baseline, where it is there.
        options: `rounds`, `repeats`, `keep` of the command line.
        tolerance: as in `errors`.
        precision: as in `errors`.

    Returns:
        For each step's name: compile time, s; the result that takes most of its allowed error, the share that it takes
        and its error; whether the share is at most one; the last loss of the course on the CPU and here; median and
        quartiles of a step's time, ms; ratio.
    """
    runs, report = {}, {}
    for step in steps:
        name = step.description["name"]
        run = runs[name] = Run(step, not options.keep)
        chooses = not all(result["unique"] for result in step.description["results"])
        found = errors(step, run.results, CHOICE * tolerance if chooses else tolerance, precision)
        worst = max(found, key=lambda key: found[key])
        share, error = found[worst]
        report[name] = {
            "compile_s": round(run.compile_s, 2),
            "worst": worst,
            "share": share,
            "error": error,
            "ok": share <= 1,
            "course": [step.description["course"][-1], run.loss],
        }
        run.block(1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(run.block(options.repeats))
    for step in steps:
        name, baseline = step.description["name"], step.description["baseline"]
        seconds, median = times[name], statistics.median(times[name])
        report[name]["median_ms"] = round(1e3 * median, 4)
        report[name]["quartiles_ms"] = [round(1e3 * float(q), 4) for q in np.percentile(seconds, [25, 75])]
        report[name]["ratio"] = round(median / statistics.median(times[baseline]), 3) if baseline in times else None
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
    exact = device.platform == "cpu" or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
    precision = "float32" if exact else "tf32"
    tolerance = options.tolerance or TOLERANCE[precision]
    networks: dict[str, list[str]] = {}
    for path in sorted(options.directory.glob("*.json")):
        networks.setdefault(path.stem.rsplit("_", 1)[0], []).append(path.stem)
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}")
    print(f"allowed: a relative error of {tolerance}, and {FACTOR} times the noise of {precision}")
    report = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    report |= {"tolerance": tolerance, "precision": precision, "rounds": options.rounds, "repeats": options.repeats}
    report["results"] = {}
    for network in options.networks.split(",") if options.networks else networks:
        steps = [load(options.directory, name) for name in networks[network]]
        found = measure(steps, options, tolerance, precision)
        report["results"] |= found
        heads = (
            f"{'step':20}{'ms':>10}{'ratio':>7}{'compile s':>11}{'CPU loss':>10}{'loss':>9}{'error':>10}{'allowed':>9}"
        )
        print(f"{heads}  worst result")
        for name, row in found.items():
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            theirs, here = row["course"]
            figures = f"{row['median_ms']:10.3f}{ratio:>7}{row['compile_s']:11.1f}{theirs:10.4f}{here:9.4f}"
            figures += f"{row['error']:10.1e}{row['share']:9.0%}"
            print(f"{name:20}{figures}  {row['worst']}{'' if row['ok'] else '  FAILED'}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["results"] and all(row["ok"] for row in report["results"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
