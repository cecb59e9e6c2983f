"""Exported training steps: what their files say, and that JAX computes the same."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from benchmarks import exported as programs
from benchmarks import gpu_step
from tests.helpers import assert_close

JAX = os.environ.get("BELLMAN_TF_JAX_PYTHON")
SCRIPT = pathlib.Path(gpu_step.__file__).with_name("gpu_run_exported.py")
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "adam": lambda: btf.GTDDP(0.01, curvature="adam"),
    "kfac": lambda: btf.GTDDP(0.1, curvature=btf.curvature.KFAC(invert_every=2)),
    "ekfac": lambda: btf.GTDDP(0.1, curvature=btf.curvature.EKFAC(invert_every=2)),
}


def step_with(row):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(10)])
    return gpu_step.compiled(model, OPTIMIZERS[row](), (6,), 4)


def exported(row, directory, warm=2):
    """A step after two others, so that K-FAC factorises in it: the step, its description and its values."""
    step = step_with(row)
    written = gpu_step.export(step, directory, f"mlp_{row}", warm, course=5)
    description = json.loads((directory / f"mlp_{row}.json").read_text())
    assert description == written
    with np.load(directory / f"mlp_{row}.npz") as values:
        return step, description, dict(values)


@pytest.mark.parametrize("row", ["sgd", "kfac"])
def test_files_agree_with_the_model_and_each_other(row, tmp_path):
    step, description, values = exported(row, tmp_path)
    arguments, results = description["arguments"], description["results"]
    model = step.model
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    names = [argument["name"] for argument in arguments]
    assert names[:2] == ["x", "y"]
    assert len(set(names)) == len(names)
    untouched = {variable.path for variable in variables} - set(names)
    clamps = set() if row == "sgd" else {model.optimizer.clamped_values.path}  # of `value_hessian="outer_product"`
    assert untouched == clamps
    assert len(names) == 2 + len(variables) - len(untouched)
    for i, argument in enumerate(arguments):
        assert values[f"argument_{i}"].shape == tuple(argument["shape"])
        assert values[f"argument_{i}"].dtype == argument["dtype"]
    assert (results[0]["name"], results[0]["replaces"]) == ("loss", None)
    for result in results:
        if result["name"].endswith("kernel"):
            assert 0 < result["noise"]["float32"] < result["noise"]["tf32"] < 1
        elif result["name"].endswith("iteration"):
            assert result["noise"] == {"float32": 0, "tf32": 0}
    for i, result in enumerate(results[1:], 1):
        assert names[result["replaces"]] == result["name"]
        assert values[f"result_{i}"].shape == tuple(arguments[result["replaces"]]["shape"])
    replaced = {result["name"] for result in results[1:]}
    assert {variable.path for variable in model.trainable_variables} <= replaced
    assert len(values) == len(arguments) + len(results)
    module = (tmp_path / f"mlp_{row}.stablehlo").read_bytes()
    assert module.startswith(b"ML\xefR\rStableHLO_v1.0.0")
    assert len(module) == description["bytes"]


def test_results_are_one_step_of_gradient_descent(tmp_path):
    _, description, values = exported("sgd", tmp_path)
    start = {entry["name"]: values[f"argument_{i}"] for i, entry in enumerate(description["arguments"])}
    after = {entry["name"]: values[f"result_{i}"] for i, entry in enumerate(description["results"])}
    kernels = [start[name] for name in start if name.endswith("kernel")]
    biases = [start[name] for name in start if name.endswith("bias")]
    h = np.tanh(start["x"] @ kernels[0] + biases[0])
    logits = h @ kernels[1] + biases[1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.eye(10)[start["y"]]
    gradient = h.T @ (p - labels) / 4
    last = [name for name in start if name.endswith("kernel")][1]
    assert_close(after[last], kernels[1] - 0.1 * gradient, rtol=1e-6)
    assert_close(after["loss"], -np.log((p * labels).sum(1)).mean(), rtol=1e-6)
    counter = next(name for name in start if name.endswith("iteration"))
    assert (start[counter], after[counter]) == (2, 3)


def test_a_fresh_step_is_small_and_its_kernels_are_drawn_again(tmp_path, monkeypatch):
    """Kernels from their seed, large results at some places: what is stored is what the step starts with and gives."""
    monkeypatch.setattr(programs, "LARGE", 20)
    step, description, values = exported("kfac", tmp_path, warm=0)
    drawn = [i for i, argument in enumerate(description["arguments"]) if "drawn" in argument]
    assert [description["arguments"][i]["shape"] for i in drawn] == [[6, 5], [5, 10]]
    assert not {f"argument_{i}" for i in drawn} & set(values)
    large = [i for i, result in enumerate(description["results"]) if np.prod(result["shape"]) > 20]
    assert large and {f"places_{i}" for i in large} == {name for name in values if name.startswith("places")}
    kernels = []
    for i in drawn:
        entry = description["arguments"][i]
        normal = np.random.default_rng(entry["drawn"]["seed"]).standard_normal(entry["shape"], np.float32)
        kernels.append(entry["drawn"]["scale"] * normal)
    logits = np.tanh(step.x @ kernels[0]) @ kernels[1]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), step.y]
    assert_close(values["result_0"], losses.mean(), rtol=1e-5)
    assert description["course"][0] == pytest.approx(losses.mean(), rel=1e-5)
    assert len(description["course"]) == 5 and description["course"][-1] < description["course"][0]


def test_a_function_is_exported_with_what_it_captures(tmp_path):
    shift = tf.Variable(np.arange(30.0))
    function = tf.function(lambda x: (tf.reduce_sum(x * shift), x * shift), jit_compile=True, autograph=False)
    written = programs.write_function(tmp_path, "one", "one", function, [tf.ones([30], tf.float64)])
    with np.load(tmp_path / "one.npz") as values:
        assert_close(values["argument_1"], np.arange(30.0), rtol=0)
        assert_close(values["result_1"], np.arange(30.0), rtol=1e-15)
    assert written["course"] == [435.0]
    assert 0 < written["results"][1]["noise"]["float32"] < 1e-3
    assert [entry["shape"] for entry in written["arguments"]] == [[30], [30]]


def test_aliases_of_a_module():
    hlo = "HloModule step, input_output_alias={ {1}: (3, {}, may-alias), {2}: (5, {}, may-alias) }, layout={}\n {9}: x"
    assert programs.replaced_arguments(hlo) == {1: 3, 2: 5}


def test_captured_constants_are_arguments(tmp_path):
    """A tensor that the model holds is neither lost nor taken for a variable."""
    shift = keras.ops.convert_to_tensor(np.arange(6, dtype="float32"))
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(10)(keras.layers.Lambda(lambda x: x + shift)(inputs))
    step = gpu_step.compiled(keras.Model(inputs, outputs), keras.optimizers.SGD(0.1), (6,), 4)
    _, description, sources = gpu_step.portable(step)
    captured = [i for i, argument in enumerate(description["arguments"]) if argument["kind"] == "captured"]
    assert [np.array_equal(sources[i], np.arange(6)) for i in captured] == [True]


def test_direct_timing():
    report = gpu_step.timed({row: step_with(row) for row in ("sgd", "adam")}, rounds=2, repeats=2)
    assert report["sgd"]["ratio"] == 1.0
    assert report["adam"]["ratio"] > 0
    assert all(entry["median_ms"] > 0 and entry["first_call_s"] > 0 for entry in report.values())


def wrong(source, directory, name, result):
    """A copy of an exported step in which one of the CPU's results is another."""
    description = json.loads((directory / f"{source}.json").read_text())
    with np.load(directory / f"{source}.npz") as values:
        values = dict(values)
    i = next(i for i, entry in enumerate(description["results"]) if entry["name"].endswith(result))
    before = values[f"argument_{description['results'][i]['replaces']}"]
    change = values[f"result_{i}"] - before
    values[f"result_{i}"] = before + (2 * change if before.dtype.kind == "i" else 1.05 * change)
    (directory / f"{name}.json").write_text(json.dumps(description | {"name": name}))
    (directory / f"{name}.stablehlo").write_bytes((directory / f"{source}.stablehlo").read_bytes())
    np.savez(directory / f"{name}.npz", **values)


@pytest.mark.skipif(not JAX, reason="BELLMAN_TF_JAX_PYTHON names no interpreter that has JAX")
def test_jax_computes_the_same(tmp_path):
    for row in OPTIMIZERS:
        exported(row, tmp_path)
    wrong("mlp_sgd", tmp_path, "kernel_sgd", "kernel")
    wrong("mlp_sgd", tmp_path, "counter_sgd", "iteration")

    def run(networks):
        report = tmp_path / "report.txt"
        command = [JAX, SCRIPT, tmp_path, "--networks", networks, "--rounds", "2", "--repeats", "2", "--out", report]
        environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
        status = subprocess.run(command, env=environment, check=False).returncode
        return status, json.loads(report.read_text())["results"]

    status, results = run("mlp")
    assert status == 0
    assert list(results) == [f"mlp_{row}" for row in sorted(OPTIMIZERS)]
    assert all(entry["ok"] and entry["error"] < 1e-3 for entry in results.values()), results
    assert results["mlp_sgd"]["ratio"] == 1.0
    status, results = run("kernel,counter")
    assert status == 1
    assert [entry["ok"] for entry in results.values()] == [False, False]
    assert results["kernel_sgd"]["error"] == pytest.approx(0.05, rel=0.1)


def test_the_second_script_stands_alone():
    imports = [
        node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {"jax", "numpy"}
