"""Trains, saves and loads with the installed wheel alone: `python -I .ci/wheel.py`, from outside the checkout."""

import importlib.metadata
import importlib.util
import pathlib
import sys
import tempfile

import keras
import numpy as np

import bellman_tf as btf

package = pathlib.Path(btf.__file__).parent
assert package.is_relative_to(sys.prefix), f"imported from {package}, not from the environment"
assert importlib.metadata.version("bellman_tf") == btf.__version__
names = {file.parts[0] for file in importlib.metadata.files("bellman_tf")}
own = {name for name in names if not name.endswith(".dist-info")}
assert own == {"bellman_tf"}, f"the wheel installs {sorted(own)}"
for file in ("py.typed", "NOTATION.md"):
    assert (package / file).is_file(), f"{file} is missing"
for other in ("scipy", "hypothesis", "verification", "keras_examples", "benchmarks", "tests"):
    assert importlib.util.find_spec(other) is None, f"{other} is here: this is not a clean environment"

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
y = (x[:, 0] * x[:, 1] > 0).astype("int32")
inputs = keras.Input((8,))
hidden = keras.layers.Dense(16, activation="tanh")(inputs)
hidden = keras.layers.Add()([hidden, keras.layers.Dense(16, activation="tanh")(hidden)])
model = btf.Model(inputs, keras.layers.Dense(2)(hidden))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=btf.GTDDP(0.1), loss=loss)
first, *_, last = model.fit(x, y, batch_size=32, epochs=5, verbose=0).history["loss"]
assert last < 0.7 * first, f"the loss went from {first} to {last}"

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
assert type(loaded.optimizer) is btf.GTDDP
assert np.array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))
print(f"bellman_tf {btf.__version__} from its wheel: loss {first:.3f} to {last:.3f}, saved, loaded")
