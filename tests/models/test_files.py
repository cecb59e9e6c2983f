"""Clones, pickles, `.keras`, `.h5` and weights files: a game comes back, or words that help; never a bare error."""

import pickle
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, thinned
from tests.strategies.networks import Subclassed, cross_entropy, labels, normal

FIT = {"batch_size": 4, "shuffle": False, "verbose": 0}


def sequential(cls=btf.Sequential):
    return cls([layers.Input((6,)), layers.Dense(5, activation="tanh"), layers.Dense(3)])


def functional(cls=btf.Model):
    inputs = layers.Input((6,))
    return cls(inputs, layers.Dense(3)(layers.Dense(5, activation="tanh")(inputs)))


MAKERS = {"sequential": sequential, "functional": functional, "subclassed": Subclassed}


def data():
    return normal(8, 6), labels(8)


def trained(make, optimizer=btf.GTDDP, steps=1):
    model = make()
    model.compile(optimizer=optimizer(), **cross_entropy())
    model.fit(*data(), epochs=steps, **FIT)
    return model


def state(model):
    return [np.array(v) for v in (*model.variables, *model.optimizer.variables)]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---- clones


@pytest.mark.parametrize("name", ["functional", "subclassed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_clone_is_a_game_of_the_same_class(name, compiled):
    model = trained(MAKERS[name])
    if not compiled:
        model = MAKERS[name]()
        model(data()[0])
    clone = keras.models.clone_model(model)
    assert type(clone) is type(model)
    assert clone.compiled == compiled
    clone.compile(optimizer=clone.optimizer if compiled else btf.GTDDP(), **cross_entropy())
    clone.set_weights(model.get_weights())
    clone.fit(*data(), **FIT)
    assert len(clone.game.players) == len(model.game.players)
    assert not set(map(id, clone.variables)) & set(map(id, model.variables))


def test_keras_clones_a_sequential_model_to_its_own_class():
    """Which is Keras's way with any subclass; the clone becomes a game with `as_game`."""

    class Own(keras.Sequential):
        pass

    for model in (sequential(Own), sequential()):
        assert type(keras.models.clone_model(model)) is keras.Sequential
    game = btf.as_game(keras.models.clone_model(sequential()))
    game.compile(optimizer=btf.GTDDP(), **cross_entropy())
    assert np.isfinite(game.train_on_batch(*data()))


def test_a_compiled_clone_of_a_sequential_model_predicts_and_says_how_to_train():
    model = trained(sequential)
    with pytest.warns(UserWarning, match="GTDDP is in a plain Keras model.*bellman_tf.as_game"):
        clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(clone.evaluate(*data(), verbose=0), model.evaluate(*data(), verbose=0), rtol=1e-6)
    with pytest.raises(ValueError, match="as_game"):
        clone.fit(*data(), **FIT)
    assert type(keras.models.clone_model(trained(sequential, keras.optimizers.Adam)).optimizer) is keras.optimizers.Adam


# ---- files


def plain_twin(name):
    return {"sequential": lambda: sequential(keras.Sequential), "functional": lambda: functional(keras.Model)}[name]()


@pytest.mark.parametrize("name", ["sequential", "functional"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:.*HDF5.*")
def test_a_legacy_h5_file_gives_a_game_and_its_training_state(name, compiled, tmp_path):
    model = trained(MAKERS[name]) if compiled else MAKERS[name]()
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    assert type(loaded) is type(model)
    assert loaded.compiled == compiled
    assert equal(model.get_weights(), loaded.get_weights())
    assert keras.models.load_model(tmp_path / "model.h5", compile=False).compiled is False
    if compiled:
        assert equal(state(model), state(loaded))
        for one in (model, loaded):
            one.fit(*data(), epochs=2, **FIT)
        assert equal(state(model), state(loaded))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("name", ["sequential", "functional"])
def test_a_plain_model_saved_with_our_optimizer_loads_and_says_how_to_train(name, suffix, tmp_path):
    model = plain_twin(name)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.save(tmp_path / f"model.{suffix}")
    with pytest.warns(UserWarning, match="can evaluate and predict.*bellman_tf.as_game"):
        loaded = keras.models.load_model(tmp_path / f"model.{suffix}")
    assert_close(loaded.evaluate(*data(), verbose=0), model.evaluate(*data(), verbose=0), rtol=1e-6)
    with pytest.raises(ValueError, match="bellman_tf.as_game"):
        loaded.fit(*data(), **FIT)
    game = btf.as_game(loaded)
    game.compile(optimizer=btf.GTDDP(), **cross_entropy())
    assert np.isfinite(game.train_on_batch(*data()))


def test_names_of_legacy_files_do_not_shadow_kerass_own(tmp_path):
    sequential(keras.Sequential).save(tmp_path / "model.h5")
    assert type(keras.models.load_model(tmp_path / "model.h5")) is keras.Sequential


@pytest.mark.parametrize("name", MAKERS)
def test_a_pickled_model_trains_on_as_if_it_had_not_been(name):
    model = trained(MAKERS[name])
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    assert equal(state(model), state(again))
    for one in (model, again):
        one.fit(*data(), **FIT)
    assert equal(state(model), state(again))


def wrapped():
    class Inner(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head = layers.Dense(3)

        def call(self, x):
            return self.head(x)

    return btf.as_game(keras.saving.register_keras_serializable("bellman_tf_tests")(Inner)())


@pytest.mark.parametrize("make", thinned([*MAKERS.values(), lambda: btf.as_game(functional(keras.Model)), wrapped]))
def test_a_float16_model_loads_clones_and_trains_on(make, tmp_path):
    """Keras saves no `auto_scale_loss`, without which `compile` refuses the policy."""
    keras.config.set_dtype_policy("mixed_float16")
    model = make()
    model.compile(btf.GTDDP(), **cross_entropy(), auto_scale_loss=False)
    model.fit(*data(), **FIT)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for again in (loaded, pickle.loads(pickle.dumps(model))):
        assert type(again) is type(model)
        assert equal(state(model), state(again))
    for one in (model, loaded):
        one.fit(*data(), **FIT)
    assert int(loaded.optimizer.iterations) == 4
    assert equal(state(model), state(loaded))
    if not isinstance(model, keras.Sequential):
        assert isinstance(keras.models.clone_model(model).optimizer, btf.GTDDP)


OPTIMIZERS = {
    "Adam": keras.optimizers.Adam,
    "SGD": keras.optimizers.SGD,
    "GTDDP": btf.GTDDP,
    "KFAC": btf.KFAC,
    "adam": lambda: btf.GTDDP(curvature="adam"),
    "rmsprop": lambda: btf.GTDDP(curvature="rmsprop"),
    "identity": lambda: btf.GTDDP(curvature="identity", use_ema=True),
}


SAVED_AND_OTHER = [
    ("Adam", "GTDDP"),
    ("SGD", "GTDDP"),
    ("GTDDP", "Adam"),
    ("GTDDP", "adam"),  # as many variables
    ("GTDDP", "rmsprop"),
    ("adam", "GTDDP"),
    ("rmsprop", "GTDDP"),
    ("KFAC", "identity"),
]


@pytest.mark.parametrize(("saved", "other", "built"), thinned(SAVED_AND_OTHER, [False, True]))
def test_weights_of_another_optimizer_load_with_kerass_warning(saved, other, built, tmp_path):
    model = trained(sequential, OPTIMIZERS[saved])
    model.save_weights(tmp_path / "some.weights.h5")
    new = sequential()
    new.compile(optimizer=OPTIMIZERS[other](), **cross_entropy())
    if built:
        new.fit(*data(), **FIT)
    before = [np.array(v) for v in new.optimizer.variables]
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        new.load_weights(tmp_path / "some.weights.h5")
    assert equal(model.get_weights(), new.get_weights())
    assert equal(before, [np.array(v) for v in new.optimizer.variables])
    assert np.array_equal(model(data()[0]), new(data()[0]))
    new.fit(*data(), **FIT)


def test_a_checkpoint_of_weights_loads_before_the_first_step_as_with_adam(tmp_path):
    said = []
    for optimizer in (keras.optimizers.Adam, btf.GTDDP):
        path = str(tmp_path / f"{optimizer.__name__}.weights.h5")
        model = sequential()
        model.compile(optimizer=optimizer(), **cross_entropy())
        model.fit(*data(), callbacks=[keras.callbacks.ModelCheckpoint(path, save_weights_only=True)], **FIT)
        new = sequential()
        new.compile(optimizer=optimizer(), **cross_entropy())
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", UserWarning)
            new.load_weights(path)
        said.append([str(w.message).split(" '")[0] for w in seen if w.category is UserWarning])
        assert_close(new.evaluate(*data(), verbose=0), model.evaluate(*data(), verbose=0), rtol=1e-6)
    assert said[0] == said[1] == ["Skipping variable loading for optimizer"]


def test_matching_state_loads_exactly_and_without_a_word(tmp_path):
    model, new = trained(sequential), trained(sequential, steps=2)
    model.save_weights(tmp_path / "some.weights.h5")
    new.load_weights(tmp_path / "some.weights.h5")  # warnings are errors here
    assert equal(state(model), state(new))


def test_other_shapes_are_refused_with_the_variable_and_the_way_out(tmp_path):
    model = trained(sequential)
    store: dict = {}
    model.optimizer.save_own_variables(store)
    place = next(key for key, value in store.items() if np.ndim(value) == 2)
    store[place] = np.zeros((2, 2), "float32")
    before = state(model)
    with pytest.raises(ValueError, match=r"`store` must hold shape .* for gtddp.*player_0.*skip_mismatch=True"):
        model.optimizer.load_own_variables(store)
    assert equal(before, state(model))


def test_random_generators_of_another_number_are_left_alone_in_words():
    def dropped():
        return btf.Sequential([layers.Input((6,)), layers.Dropout(0.5), layers.Dense(5), layers.Dense(3)])

    def undropped():
        return btf.Sequential([layers.Input((6,)), layers.Dense(5), layers.Dense(3)])

    model, other = trained(undropped), trained(dropped, steps=2)
    store: dict = {}
    other.optimizer.save_own_variables(store)
    with pytest.warns(UserWarning, match="Skipping 1 saved random generators.*the model has 0"):
        model.optimizer.load_own_variables(store)
    assert int(model.optimizer.iterations) == int(other.optimizer.iterations) == 4


def test_state_of_another_kind_with_the_same_number_of_variables_is_known_by_its_counters():
    model = trained(sequential)
    store: dict = {}
    model.optimizer.save_own_variables(store)
    counters = [k for k, v in enumerate(model.optimizer.variables) if v is model.optimizer.rejected_batches]
    store[str(counters[0])] = np.zeros((6, 5), "float32")  # where Adam has the momentum of the first kernel
    before = state(model)
    with pytest.warns(UserWarning, match="Skipping variable loading.*saved by an optimizer of another kind"):
        model.optimizer.load_own_variables(store)
    assert equal(before, state(model))
