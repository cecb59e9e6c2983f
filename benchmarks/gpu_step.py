"""The compiled training step for a GPU: exported as StableHLO anywhere, or timed where TensorFlow has a GPU.

    python -m benchmarks.gpu_step --out DIRECTORY [--networks cnn,resnet18,vit] [--rows sgd,identity,adam,kfac,ekfac]
    python benchmarks/gpu_run_exported.py DIRECTORY          where JAX has an accelerator; TensorFlow is not needed
    python -m benchmarks.gpu_step --direct [--networks ...]  where TensorFlow has an accelerator, or on its CPU

An exported step is a pure function `(x, y, variables...) -> (loss, changed variables...)`, of all variables that the
step reads or writes, in the three files `NETWORK_ROW.*` of `exported.py`. The JSON file also has the losses of
`--course` steps on the same batch.

The starting values are those after `--warm` steps. Where that is 0, nothing has been learnt yet, and large kernels are
drawn by NumPy from a seed in the JSON file instead of being stored: ResNet-18's files would be too large to carry. The
CPU's results come from TensorFlow's own kernels, without XLA. With the defaults the exported step factorises: K-FAC's
and EKFAC's matrices are renewed at steps 0, 10, 20, ...
"""

import argparse
import dataclasses
import json
import pathlib
import re
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from benchmarks import exported, step_time
from benchmarks.networks import PROBLEMS

NETWORKS = ("cnn", "resnet18", "vit")
# Row here: row of `step_time.optimizers`.
ROWS = {
    "sgd": "keras sgd",
    "identity": "linear identity",
    "adam": "linear adam",
    "kfac": "linear kfac",
    "ekfac": "linear ekfac",
}
BATCH = {"resnet18": 128}  # instead of the network's own, which suits a CPU
WARM = {"resnet18": 0}  # steps before the starting values are read, if not 10
# State that an eigendecomposition determines only up to signs, order and rotations: stored, not to be compared.
NOT_UNIQUE = ("_basis", "_scalings")


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled model and one batch for it.

    Attributes:
        model: compiled, its optimizer built.
        x: inputs, (B, ...).
        y: labels, (B,).
    """

    model: keras.Model
    x: tf.Tensor
    y: tf.Tensor

    def function(self, jit: bool) -> tf.types.experimental.PolymorphicFunction:
        """The training step as a `tf.function` of a batch.

        Args:
            jit: compile with XLA.

        Returns:
            Function `(x, y) -> loss`, the loss as `fit` shows it (a running mean).
        """

        def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return self.model.train_step((x, y))["loss"]

        return tf.function(step, jit_compile=jit, autograph=False)


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer, shape: tuple[int, ...], batch: int) -> Step:
    """A step on random inputs with labels 0 to 9.

    Args:
        model: ten outputs, logits.
        optimizer: not built.
        shape: one sample's.
        batch: B.

    Returns:
        The step, not run yet.
    """
    if not type(optimizer).__module__.startswith("keras"):
        model = btf.as_game(model)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True)
    optimizer.build(model.trainable_variables)  # looks at the model's layers
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(batch, *shape)), tf.float32)
    return Step(model, x, tf.constant(rng.integers(0, 10, size=batch)))


def step_of(network: str, row: str, batch: int, kfac_every: int) -> Step:
    """The step of a network of `step_time`.

    Args:
        network: of `NETWORKS`.
        row: of `ROWS`.
        batch: B, 0 for the network's own.
        kfac_every: steps between factorisations of K-FAC and EKFAC.

    Returns:
        The step, not run yet.
    """
    keras.utils.set_random_seed(0)
    problem = PROBLEMS[network]
    optimizer = step_time.optimizers(kfac_every)[ROWS[row]] or keras.optimizers.SGD(0.01)
    return compiled(problem.network(), optimizer, problem.shape, batch or BATCH.get(network, problem.batch))


def names_of(step: Step) -> dict[int, tuple[str, str]]:
    """Name and kind of every variable of a step.

    Args:
        step: whose variables exist.

    Returns:
        Name and kind ("model", "optimizer" or "metric") for the `id` of the TensorFlow variable.
    """
    model = step.model
    groups = {"metric": model.metrics_variables, "optimizer": model.optimizer.variables, "model": model.variables}
    return {id(v.value): (v.path, kind) for kind, variables in groups.items() for v in variables}


def portable(step: Step) -> tuple[bytes, dict, list[tf.Variable | tf.Tensor]]:
    """The step as StableHLO and a description of its arguments and results.

    Args:
        step: whose variables exist.

    Returns:
        Versioned bytecode; "arguments" and "results" for the JSON file; for each argument the tensor or variable that
        it stands for.

    Raises:
        ValueError: if the module's arguments are not the batch and the captured tensors, in this order, or if one of
            its results, the loss apart, replaces no argument.
    """
    function = step.function(jit=True)
    ir = function.experimental_get_compiler_ir(step.x, step.y)
    hlo = ir(stage="hlo")
    sources = exported.arguments_of(function, [step.x, step.y])
    names = names_of(step) | {id(step.x): ("x", "input"), id(step.y): ("y", "input")}
    arguments = []
    for source in sources:
        name, kind = names.get(id(source), (f"captured_{len(arguments)}", "captured"))
        arguments.append({"name": name, "kind": kind, "shape": list(source.shape), "dtype": source.dtype.name})
    layout = re.sub(r"/\*.*?\*/", "", hlo.split("entry_computation_layout={(", 1)[1].split(")->", 1)[0])
    shapes = re.findall(r"\[([\d,]*)\]", layout)
    if [",".join(map(str, argument["shape"])) for argument in arguments] != shapes:
        raise ValueError(f"the module's arguments have shapes {shapes}, the batch and the captures {arguments}")
    replaced = exported.replaced_arguments(hlo)
    if sorted(replaced) != list(range(1, len(replaced) + 1)):
        raise ValueError(f"results and the arguments that they replace: {replaced}; result 0 alone may lack one")
    results = [{"name": "loss", "shape": [], "dtype": "float32", "replaces": None, "unique": True}]
    for number in range(1, len(replaced) + 1):
        like = {key: arguments[replaced[number]][key] for key in ("name", "shape", "dtype")}
        results.append(like | {"replaces": replaced[number], "unique": not like["name"].endswith(NOT_UNIQUE)})
    return exported.versioned(ir(stage="stablehlo")), {"arguments": arguments, "results": results}, sources


def drawn(sources: list[tf.Variable | tf.Tensor], arguments: list[dict]) -> None:
    """Replaces large kernels by random ones of the same spread, which the description's reader draws as well.

    Args:
        sources: for each argument the tensor or variable that it stands for; kernels are assigned.
        arguments: their descriptions; a replaced one gets "drawn", a seed and a factor of the normal numbers.
    """
    for i, (source, argument) in enumerate(zip(sources, arguments, strict=True)):
        if (
            argument["kind"] == "model"
            and argument["name"].endswith("kernel")
            and np.prod(source.shape) > exported.LARGE
        ):
            argument["drawn"] = {"seed": i, "scale": float(np.std(source.numpy()))}
            normal = np.random.default_rng(i).standard_normal(source.shape, np.float32)
            source.assign(np.float32(argument["drawn"]["scale"]) * normal)


def export(step: Step, directory: pathlib.Path, name: str, warm: int, course: int) -> dict:
    """Writes a step's three files.

    Args:
        step: the step; its variables move.
        directory: made if it does not exist.
        name: of the files, without their ends.
        warm: steps before the starting values are read; with 0 large kernels are drawn.
        course: steps whose losses are recorded.

    Returns:
        What the JSON file says.
    """
    function = step.function(jit=False)
    for _ in range(warm):
        function(step.x, step.y)
    step.model.reset_metrics()
    module, description, sources = portable(step)
    if not warm:
        drawn(sources, description["arguments"])
    start = [source.numpy() for source in sources]
    replaced = [result["replaces"] for result in description["results"][1:]]
    rng = np.random.default_rng(1)
    places = exported.places_of([1, *(start[i].size for i in replaced)])

    def begin() -> None:
        for i in replaced:
            sources[i].assign(start[i])

    def after(x: tf.Tensor) -> list[np.ndarray]:
        begin()
        return exported.sampled([function(x, step.y).numpy(), *(sources[i].numpy() for i in replaced)], places)

    results = after(step.x)
    for result in description["results"]:
        result["noise"] = dict.fromkeys(exported.NOISE, 0.0)
    for kind, size in exported.NOISE.items():
        for _ in range(exported.DRAWS):
            noisy = after(step.x * tf.constant(1 + size * rng.normal(size=step.x.shape), step.x.dtype))
            for result, value, other in zip(description["results"], results, noisy, strict=True):
                noise = float(np.linalg.norm((other - value).astype(np.float64)))
                result["noise"][kind] = max(result["noise"][kind], noise)
    begin()
    losses = [float(function(step.x, step.y)) for _ in range(course)]
    description = {
        "name": name,
        "baseline": f"{name.rsplit('_', 1)[0]}_sgd",
        "batch": len(step.y),
        "warm_steps": warm,
        "loss": float(results[0]),
        "course": losses,
        **description,
    }
    return exported.write(directory, module, description, start, results, places)


def timed(steps: dict[str, Step], rounds: int, repeats: int) -> dict:
    """Times jitted steps in turns on whatever device TensorFlow has.

    Args:
        steps: for each row.
        rounds: blocks of each row.
        repeats: steps of a block; the host waits for the device at its end.

    Returns:
        For each row the time of the first call (trace and compilation), s, the median of a step, ms, and its ratio to
        the first row's.
    """
    functions, report = {}, {}
    for row, step in steps.items():
        functions[row] = step.function(jit=True)
        start = time.perf_counter()
        functions[row](step.x, step.y).numpy()
        report[row] = {"first_call_s": round(time.perf_counter() - start, 2)}
        functions[row](step.x, step.y).numpy()
    times: dict[str, list[float]] = {row: [] for row in steps}
    for _ in range(rounds):
        for row, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                loss = functions[row](step.x, step.y)
            loss.numpy()
            times[row].append((time.perf_counter() - start) / repeats)
    first = statistics.median(next(iter(times.values())))
    for row, seconds in times.items():
        median = statistics.median(seconds)
        report[row] |= {"median_ms": round(1e3 * median, 4), "ratio": round(median / first, 3)}
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--out", type=pathlib.Path, help="directory for exported steps")
    way.add_argument("--direct", action="store_true", help="time the jitted steps with TensorFlow, here")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rows", default=",".join(ROWS), help="with --direct ratios are to the first")
    parser.add_argument("--batch", type=int, default=0, help="default: 128, vit 64")
    parser.add_argument("--warm", type=int, help="--out: steps before the starting values are read; 10, resnet18 0")
    parser.add_argument("--course", type=int, default=30, help="--out: steps whose losses are recorded")
    parser.add_argument("--kfac-every", type=int, default=10, help="steps between factorisations")
    parser.add_argument("--rounds", type=int, default=20, help="--direct: blocks timed")
    parser.add_argument("--repeats", type=int, default=10, help="--direct: steps in a block")
    options = parser.parse_args()
    rows = options.rows.split(",")
    if options.direct:
        print(f"devices: {[device.name for device in tf.config.list_logical_devices()]}")
    for network in options.networks.split(","):
        steps = {row: step_of(network, row, options.batch, options.kfac_every) for row in rows}
        if options.direct:
            for row, entry in timed(steps, options.rounds, options.repeats).items():
                print(f"{network} {row}: {json.dumps(entry)}", flush=True)
            continue
        warm = WARM.get(network, 10) if options.warm is None else options.warm
        for row, step in steps.items():
            written = export(step, options.out, f"{network}_{row}", warm, options.course)
            print(f"{written['name']}: {written['bytes']} bytes, {len(written['arguments'])} arguments", flush=True)


if __name__ == "__main__":
    main()
