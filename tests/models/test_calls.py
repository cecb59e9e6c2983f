"""`call` stays the user's own: any signature, any structure of inputs, restored after every step."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.game.execution import recorded
from tests.helpers import assert_close, thinned
from tests.models.nets import KINDS, batches, inputs_of, net
from tests.strategies.networks import cross_entropy, labels, normal


@pytest.mark.parametrize(("kind", "optimizer"), thinned(KINDS, [keras.optimizers.SGD, btf.GTDDP]))
@pytest.mark.filterwarnings("ignore:.*trains these layers open-loop.*")
def test_any_signature_trains_and_exports_as_in_keras(kind, optimizer, tmp_path, capsys):
    plain, mine = net(keras.Model, kind), net(btf.Model, kind)
    plain.compile(optimizer=keras.optimizers.SGD(0.1), **cross_entropy())
    mine.compile(optimizer=optimizer(), **cross_entropy())
    plain.fit(batches(kind), verbose=0, shuffle=False)
    mine.fit(batches(kind), verbose=0, shuffle=False)
    assert mine._build_shapes_dict == plain._build_shapes_dict
    assert type(mine).call.__code__ is type(net(btf.Model, kind)).call.__code__, "the class holds the user's function"
    x = keras.tree.map_structure(tf.convert_to_tensor, inputs_of(kind))
    expected = mine(x)
    if kind == "named tuple":
        return  # Keras's export takes it apart
    mine.export(tmp_path / "export", verbose=False)
    reloaded = tf.saved_model.load(str(tmp_path / "export"))
    served = reloaded.serve(x)
    assert_close(served, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_open_loop_equals_sgd(kind):
    weights = []
    for base, optimizer in (
        (keras.Model, keras.optimizers.SGD(0.1)),
        (btf.Model, btf.GTDDP(0.1, information="open", curvature="identity")),
    ):
        keras.utils.set_random_seed(0)
        model = net(base, kind)
        model.compile(optimizer=optimizer, **cross_entropy())
        model.fit(batches(kind), epochs=3, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for expected, actual in zip(*weights, strict=True):
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_model_called_by_keyword_is_known_too():
    model = net(btf.Model, "own name")
    model(t=normal(8, 4))
    assert [player.kind for player in model.game.players] == ["dense", "dense"]


def test_call_is_restored_when_it_raises():
    class Failing(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)
            self.broken = False

        def call(self, t):
            if self.broken:
                raise RuntimeError("broken on purpose")
            return self.head(t)

    model = Failing()
    x, y = normal(8, 4), labels(8)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(x, y)
    attributes, before = set(model.__dict__), model(x)
    model.broken = True
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    with pytest.raises(RuntimeError, match="broken on purpose"), recorded(model, lambda inputs: model.head(1 / 0)):
        type(model).call(model, x)
    with pytest.raises(ZeroDivisionError), recorded(model, lambda inputs: 1 / 0):
        model(x)
    assert "call" not in model.__dict__
    assert attributes <= set(model.__dict__)
    model.broken = False
    assert np.array_equal(model(x), before)
    model.compile(optimizer="adam", **cross_entropy())
    assert np.isfinite(model.train_on_batch(x, y))


def test_other_threads_run_the_models_own_call():
    model, x = net(btf.Model, "own name"), normal(8, 4)
    expected, seen = model(x), []
    with recorded(model, lambda inputs: inputs * 0):
        thread = threading.Thread(target=lambda: seen.append(model(x)))
        thread.start()
        thread.join()
        assert np.array_equal(model(x), x * 0)
    assert np.array_equal(seen[0], expected)


# ---- the game is read anew


@pytest.mark.parametrize("same", [False, True], ids=["another optimizer", "the same optimizer"])
def test_an_attribute_changed_before_compile_is_seen(same):
    class Gain(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)
            self.gain = 1.0

        def call(self, t):
            return self.head(t) * self.gain

    x, y = normal(8, 4), labels(8)
    model = Gain()
    model.compile(optimizer=btf.GTDDP(1e-6, curvature="identity"), **cross_entropy())
    model.train_on_batch(x, y)
    model.gain = 10.0
    again = model.optimizer if same else btf.GTDDP(1e-6, curvature="identity")
    model.compile(optimizer=again, **cross_entropy())
    expected = model.evaluate(x, y, verbose=0)
    assert_close(model.train_on_batch(x, y), expected, rtol=1e-6)


class Order(btf.Model):
    """Two layers of one shape in either order."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = layers.Dense(4, name="a"), layers.Dense(4, name="b"), layers.Dense(3)
        self.turned = False

    def call(self, t):
        return self.head(self.a(self.b(t)) if self.turned else self.b(self.a(t)))


def test_a_built_optimizer_does_not_go_on_with_other_players():
    x, y = normal(8, 4), labels(8)
    model = Order()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(x, y)
    model.turned = True
    model.compile(optimizer=model.optimizer, **cross_entropy())
    names = [player.name for player in model.game.players[:2]]
    if names == ["a", "b"]:  # the state belongs to the right layers
        model.train_on_batch(x, y)
    else:
        with pytest.raises(ValueError, match="`optimizer` must be new, or have been built for these players"):
            model.train_on_batch(x, y)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    assert np.isfinite(model.train_on_batch(x, y))


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_freezing_and_unfreezing_is_seen_and_frozen_layers_are_never_called_open_loop(kind):
    if kind == "subclassed":
        model = Order()
        model(normal(8, 4))
        first = model.a
    else:
        first = layers.LSTM(4)  # has no Gram form
        model = btf.Sequential([layers.Input((2, 4)), first, layers.Dense(3)])
    whole = [player.name for player in model.game.players]
    assert first.name in whole
    first.trainable = False
    assert [player.name for player in model.game.players] == [name for name in whole if name != first.name]
    assert not model.game.open_loop_players
    lines = []
    model.game_summary(print_fn=lines.append)
    assert "open-loop" not in lines[0]
    assert first.name not in lines[0].split()
    x = normal(8, 4) if kind == "subclassed" else normal(8, 2, 4)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.fit(x, labels(8), verbose=0)  # warnings are errors here
    first.trainable = True
    assert [player.name for player in model.game.players] == whole
