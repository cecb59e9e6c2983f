"""Programs exported as StableHLO: the three files that `gpu_run_exported.py` reads.

NAME.stablehlo   portable StableHLO (versioned bytecode)
NAME.json        names, shapes and types of all arguments and results; which argument each result replaces, and its
noise: the norm of its change when the inputs are off by a `NOISE`
NAME.npz         starting values (`argument_0`, ...) and the CPU's results (`result_0`, ...), of a large result at
some places only (`places_0`, ...)
"""

import json
import pathlib
import re

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.mlir.stablehlo import stablehlo

LARGE = 4096  # entries: a larger result is stored at so many random places
DRAWS = 3  # the noise is the largest of so many draws
# Relative errors of the inputs that stand for float32 on another device and for products of 10-bit mantissas (TF32).
NOISE = {"float32": 1e-6, "tf32": 5e-4}
STABLEHLO_VERSION = "1.0.0"  # readers of this and later versions accept the files
_ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}, may-alias\)")


def arguments_of(
    function: tf.types.experimental.PolymorphicFunction, inputs: list[tf.Tensor]
) -> list[tf.Variable | tf.Tensor]:
    """What the arguments of a compiled function's module stand for.

    Args:
        function: the function.
        inputs: its own arguments.

    Returns:
        The inputs, then the variables and tensors that it captures.
    """
    concrete = function.get_concrete_function(*inputs)
    variables = {id(variable.handle): variable for variable in concrete.variables}
    return [*inputs, *(variables.get(id(capture), capture) for capture in concrete.captured_inputs)]


def replaced_arguments(hlo: str) -> dict[int, int]:
    """Which argument each result of a compiled `tf.function` replaces.

    Args:
        hlo: text of the module; its first line says which results may live in which argument's buffer.

    Returns:
        Argument's number for each result's number; a result without one is what the function returns.
    """
    return {int(result): int(argument) for result, argument in _ALIAS.findall(hlo.split("\n", 1)[0])}


def versioned(module: str) -> bytes:
    """A module in the versioned form of StableHLO, which later readers accept.

    TensorFlow's own "stablehlo_serialized" carries no version and uses a second dialect, `mhlo`, in two places: for
    attributes of the module, which are left out, and for copies of results, which become reshapes to the same shape.

    Args:
        module: text, stage "stablehlo" of a compiled `tf.function`.

    Returns:
        Bytecode.
    """
    module = re.sub(r"^(module @\S+) attributes \{mhlo\..*\} \{$", r"\1 {", module, flags=re.MULTILINE)
    module = re.sub(r"= mhlo\.copy (%\S+) : (tensor<\S*>)", r"= stablehlo.reshape \1 : (\2) -> \2", module)
    return stablehlo.serialize_portable_artifact_str(module, STABLEHLO_VERSION)


def places_of(sizes: list[int]) -> dict[int, np.ndarray]:
    """Where large results are compared.

    Args:
        sizes: entries of each result.

    Returns:
        For the number of each result of more than `LARGE` entries so many random places of its flat array.
    """
    rng = np.random.default_rng(2)
    return {i: rng.integers(size, size=LARGE, dtype=np.int32) for i, size in enumerate(sizes) if size > LARGE}


def sampled(results: list[np.ndarray], places: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The results, of large ones the entries at their places."""
    return [value.flat[places[i]] if i in places else value for i, value in enumerate(results)]


def write_function(
    directory: pathlib.Path,
    name: str,
    baseline: str,
    function: tf.types.experimental.PolymorphicFunction,
    inputs: list[tf.Tensor],
    noisy: float = NOISE["float32"],
) -> dict:
    """Writes a function of tensors that changes no variable.

    Args:
        directory: made if it does not exist.
        name: of the files, without their ends.
        baseline: name of what its time is divided by.
        function: compiled by XLA; returns a tensor or a tuple of tensors.
        inputs: its arguments, the first a floating one.
        noisy: relative error of the first argument whose effect is the noise of the results.

    Returns:
        What the JSON file says. The course is the first entry of the first result.
    """
    like = tf.nest.flatten(function(*inputs))
    places = places_of([int(tf.size(result)) for result in like])

    def results(x: tf.Tensor) -> list[np.ndarray]:
        return sampled([result.numpy() for result in tf.nest.flatten(function(x, *inputs[1:]))], places)

    expected, rng, noise = results(inputs[0]), np.random.default_rng(1), np.zeros(len(like))
    for _ in range(DRAWS):
        other = results(inputs[0] * tf.constant(1 + noisy * rng.normal(size=inputs[0].shape), inputs[0].dtype))
        gaps = [np.linalg.norm(np.subtract(a, b, dtype=np.float64)) for a, b in zip(other, expected, strict=True)]
        noise = np.maximum(noise, gaps)
    arguments = arguments_of(function, inputs)

    def described(kind: str, values: list[tf.Tensor]) -> list[dict]:
        return [
            {"name": f"{kind}_{i}", "kind": "input", "shape": list(value.shape), "dtype": value.dtype.name}
            for i, value in enumerate(values)
        ]

    same = {"replaces": None, "unique": True}
    description = {
        "name": name,
        "baseline": baseline,
        "course": [float(expected[0].flat[0])],
        "arguments": described("argument", arguments),
        "results": [
            same | entry | {"noise": dict.fromkeys(NOISE, float(size))}
            for entry, size in zip(described("result", like), noise, strict=True)
        ],
    }
    module = versioned(function.experimental_get_compiler_ir(*inputs)(stage="stablehlo"))
    values = [value.numpy() for value in arguments]
    return write(directory, module, description, values, expected, places)


def write(
    directory: pathlib.Path,
    module: bytes,
    description: dict,
    arguments: list[np.ndarray],
    results: list[np.ndarray],
    places: dict[int, np.ndarray],
) -> dict:
    """Writes the three files of an exported program.

    Args:
        directory: made if it does not exist.
        module: portable StableHLO.
        description: its "name" names the files; arguments that it calls "drawn" are not stored.
        arguments: starting values.
        results: the CPU's, sampled at `places`.
        places: of `places_of`.

    Returns:
        What the JSON file says: the description, versions and the module's size.
    """
    entries = zip(description["arguments"], arguments, strict=True)
    values = {f"argument_{i}": value for i, (entry, value) in enumerate(entries) if "drawn" not in entry}
    values |= {f"result_{i}": value for i, value in enumerate(results)}
    values |= {f"places_{i}": chosen for i, chosen in places.items()}
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "stablehlo": STABLEHLO_VERSION}
    description = description | versions | {"bytes": len(module)}
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / description["name"]
    file.with_suffix(".stablehlo").write_bytes(module)
    file.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n")
    np.savez_compressed(file.with_suffix(".npz"), **values)
    return description
