"""What ties an optimizer to a model: the variables and players it was built for, and models that it refuses."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.strategies.networks import cross_entropy, labels, mlp, normal


def test_a_frozen_layer_after_building_is_noticed():
    model = mlp()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    x, y = normal(8, 6), labels(8)
    model.train_on_batch(x, y)
    model.layers[0].trainable = False
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(x, y)
    model.layers[0].trainable = True
    model.make_train_function(force=True)
    with pytest.raises(ValueError, match="`model` must have the trainable variables"):
        model.train_function(iter([(x, y)]))


def test_layers_of_two_precisions_are_refused():
    model = btf.Sequential([keras.Input((2,)), layers.Dense(4, dtype="float64"), layers.Dense(3)])
    before = model.get_weights()
    model.compile(btf.GTDDP(0.1), loss="mse")
    with pytest.raises(ValueError, match=r"`model` must have trainable variables of one dtype\. Received"):
        model.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


class Moody(btf.Model):
    """Runs on sequences of any length, as long as nobody changes its attributes."""

    def __init__(self):
        super().__init__()
        self.head, self.largest, self.flipped = layers.Dense(2), None, False

    def call(self, x):
        x = keras.ops.mean(x, axis=1)
        if self.largest is not None and float(keras.ops.max(keras.ops.abs(x))) > self.largest:
            raise ValueError("larger than ever seen")
        return keras.ops.flip(self.head(x), axis=0) if self.flipped else self.head(x)


def after_one_step():
    model = Moody()
    model.compile(btf.GTDDP(0.1), "mse", run_eagerly=True)
    model.train_on_batch(np.ones((4, 5, 3), "float32"), np.zeros((4, 2), "float32"))
    x = np.full((4, 6, 3), 0.01, "float32")
    model(x)  # another length: the next step reads the game anew
    return model, (x, np.zeros((4, 2), "float32"))


def test_another_length_is_followed():
    model, longer = after_one_step()
    before = model.optimizer.players
    model.train_on_batch(*longer)
    assert model.optimizer.players[0] is model.game.players[0] is not before[0]
    assert int(model.optimizer.iterations) == 2


def test_a_call_that_has_changed_is_said_to_have_changed():
    model, longer = after_one_step()
    model.flipped = True
    with pytest.raises(ValueError, match="The model's `call` has changed: compile it with another GTDDP"):
        model.train_on_batch(*longer)


def test_a_model_that_cannot_be_looked_at_any_more_is_not_said_to_have_changed():
    model, longer = after_one_step()
    before = model.get_weights()
    model.largest = 0.05  # the made-up samples are larger
    with pytest.raises(ValueError, match="could not be looked at: .*larger than ever seen") as raised:
        model.train_on_batch(*longer)
    assert "`optimizer` must be new, or have been built for these players" in str(raised.value)
    assert "has changed" not in str(raised.value)
    assert "compile it with another GTDDP" in str(raised.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize(
    "make",
    [btf.GTDDP, lambda: btf.GTDDP(inner_optimizer=keras.optimizers.Adam()), lambda: btf.GTDDP(information="open")],
)
def test_scales_of_float8_are_refused_and_nothing_has_moved(make):
    """Keras writes their gradient into them; a step along it makes a largest absolute value negative."""
    model = btf.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(3)])
    model.layers[0].quantize("float8")
    model.compile(make(), "mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"no scales of float8.*inputs_scale.*after `fit`"):
        model.fit(np.ones([4, 4]), np.ones([4, 3]), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
