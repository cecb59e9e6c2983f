"""The benchmark scripts run: what reads the inside of a step here, the whole commands in the slow suite."""

import pathlib
import subprocess
import sys

import keras
import pytest
from keras import layers

import bellman_tf as btf
from benchmarks import gram_error
from tests.strategies.networks import labels, normal

COMMANDS = [
    "batch_scaling --quick --out {tmp}/out.json --plot {tmp}/out.png",
    "embedding --rounds 1",
    "factorisation --rounds 1",
    "gram_error --steps 0 --batch 8 --cases 'transformer, kfac' --out {tmp}/out.json",
    "gram_loss --quick",
    "operations --rows open",
    "regret --quick --out {tmp}/out.json --plot {tmp}/out.png",
    "row_products --rounds 1",
    "scaling_global --devices 4",
    "scaling_model --devices 4",
    "step_time --models mlp --rows 'keras sgd,linear kfac' --rounds 1 --jit off --out {tmp}/out.json",
    "trajectory_parts --horizon 10 --starts 4 --repeats 2",
]


@pytest.mark.parametrize(("curvature", "kind"), [("identity", "positions"), ("kfac", "mixtures"), ("adam", "wide")])
def test_errors_of_gram_matrices_are_measured_on_a_step(curvature, kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 8))
    h = layers.Flatten()(layers.Dense(6, "tanh", name="positions")(inputs))
    model = btf.Model(inputs, layers.Dense(3, name="wide")(h))
    gram = "features" if kind == "mixtures" else "auto"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(btf.GTDDP(0.01, curvature=curvature, gram=gram), loss)
    x, y = normal(6, 4, 8), labels(6)
    model.train_on_batch(x, y)
    *rows, whole = gram_error.measure(model, x, y, kind)
    assert [row["layer"] for row in rows] == ["wide" if kind == "wide" else "positions"]
    [title, *_] = (form[0] for form in gram_error.FORMS[kind])
    assert 0 < rows[0][title]["G"] < 2 and 0 < whole[title]["weights"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_the_command_runs(command, tmp_path):
    root = pathlib.Path(__file__).parents[1]
    line = f"{sys.executable} -m benchmarks.{command.format(tmp=tmp_path)}"
    done = subprocess.run(["bash", "-c", line], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
