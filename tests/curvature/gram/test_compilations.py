"""Steps with sketched convolutions under XLA: one program, whatever the step."""

import os
import pathlib
import subprocess
import sys

import pytest

STEPS = """
import numpy as np, keras, tensorflow as tf, bellman_tf as btf
layers, rng = keras.layers, np.random.default_rng(0)
x, y = tf.constant(rng.normal(size=(8, 6, 6, 2)), tf.float32), tf.constant(rng.integers(0, 3, 8))
inputs = keras.Input((6, 6, 2))
h = layers.Conv2D(4, 3, strides=2, activation="relu")(layers.Conv2D(4, 3, padding="same", activation="relu")(inputs))
model = btf.Model(inputs, layers.Dense(3)(layers.Flatten()(h)))
optimizer = btf.GTDDP(OPTIONS, gram="sketch")
model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True)
assert sum(form.startswith("sketch") for form in optimizer.describe_grams(model.game)) == 2
for _ in range(10):
    model.train_on_batch(x, y)
assert int(optimizer.iterations) == 10
"""


OPTIONS = {
    "identity": "1e-3, curvature='identity'",
    "adam": "1e-3, curvature='adam'",
    "kfac": "1e-3, curvature='kfac'",
    "momentum": "1e-3, curvature='identity', momentum=0.9, nesterov=True",
    "adamw inside": "inner_optimizer=keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, 20))",
    "lion inside": "inner_optimizer=keras.optimizers.Lion(1e-4)",
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_ten_steps_compile_once(options, tmp_path):
    """XLA writes every program that it compiles into a folder: in a process of its own, for its flags are read once."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = STEPS.replace("OPTIONS", options)
    root = pathlib.Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, check=True)
    programs = [path.name for path in tmp_path.glob("*before_optimizations.txt") if "one_step_on_data" in path.name]
    assert len(programs) == 1, programs
