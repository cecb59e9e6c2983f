"""What every optimizer of the package must do; a new one joins by adding a row."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.strategies.networks import Subclassed, cross_entropy, labels, mlp, normal

ROWS = {
    "GTDDP": btf.GTDDP,
    "GTDDP ekfac": lambda: btf.GTDDP(0.05, curvature="ekfac"),
    "GTDDP adam": lambda: btf.GTDDP(0.01, curvature="adam", terminal_hessian=2),
    "GTDDP rmsprop": lambda: btf.GTDDP(0.01, curvature="rmsprop", value_hessian="block_diagonal"),
    "GTDDP full": lambda: btf.GTDDP(0.3, curvature="full", group_size=3, gram_memory=2**10),
    "GTDDP as published": lambda: btf.GTDDP.as_published(0.03),
    "GTDDP nonlinear": lambda: btf.GTDDP(0.03, rollout="nonlinear"),
    "GTDDP with AdamW inside": lambda: btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(0.03)),
    "GTDDP nesterov": lambda: btf.GTDDP(0.01, momentum=0.7, nesterov=True),
    "DDPNOpt": btf.DDPNOpt,
    "DDPNOpt with Lion inside": lambda: btf.DDPNOpt(inner_optimizer=keras.optimizers.Lion(0.01)),
    "DGNOpt": lambda: btf.DGNOpt(0.05, players=2),
    "KFAC": lambda: btf.KFAC(0.1),
    "EKFAC": lambda: btf.EKFAC(0.1),
    "DDP": lambda: btf.DDP(0.5, line_search=3),
    "EMSA": lambda: btf.baselines.EMSA(0.5, rho=3.0, iterations=3),
    "KWNG": btf.baselines.KWNG,
}


ONE_OF_EACH_CLASS = ("GTDDP", "GTDDP nonlinear", "DDPNOpt with Lion inside", "EKFAC", "DDP", "EMSA", "KWNG")
OTHER_STATE = ("GTDDP adam", "GTDDP nesterov", "GTDDP with AdamW inside")


def rows(*usual):
    """All rows; those that are not named are in the slow suite."""
    return [pytest.param(ROWS[row], id=row, marks=[] if row in usual else pytest.mark.slow) for row in ROWS]


one_of_each_class = pytest.mark.parametrize("make", rows(*ONE_OF_EACH_CLASS))
one_of_each_state = pytest.mark.parametrize("make", rows(*ONE_OF_EACH_CLASS, *OTHER_STATE))
every_row = pytest.mark.parametrize("make", rows(*ROWS))


def network():
    return btf.Sequential(
        [layers.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dropout(0.2, seed=1), layers.Dense(3)]
    )


def data(batch=8):
    return normal(batch, 6), labels(batch)


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables, *model.seed_variables())]


@one_of_each_class
def test_it_decreases_a_quadratic(make):
    model = btf.Sequential([layers.Input((4,)), layers.Dense(2)])
    model.compile(optimizer=make(), loss="mse")
    x = normal(16, 4)
    history = model.fit(x, x[:, :2] * 2.0, batch_size=16, epochs=15, verbose=0, shuffle=False).history["loss"]
    assert history[-1] < 0.9 * history[0]
    assert all(np.isfinite(history))


@one_of_each_class
def test_it_traces_once(make):
    model, traces = network(), []
    model.compile(optimizer=make(), **cross_entropy())
    step = model.train_step
    object.__setattr__(model, "train_step", lambda data: (traces.append(1), step(data))[1])
    model.train_on_batch(*data())
    model.train_on_batch(*data())
    assert len(traces) == 1


@one_of_each_state
@pytest.mark.filterwarnings("ignore:.*Skipping variable loading.*")
def test_it_saves_mid_run_and_continues_identically(make, tmp_path):
    x, y = data()
    model = network()
    model.compile(optimizer=make(), **cross_entropy())
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x, y, **fit)
    model.save(tmp_path / "model.keras")
    model.fit(x, y, epochs=2, **fit)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert type(loaded.optimizer) is type(model.optimizer)
    loaded.fit(x, y, epochs=2, **fit)
    for expected, actual in zip(state(model), state(loaded), strict=True):
        assert np.array_equal(expected, actual)


@every_row
def test_its_configuration_makes_the_round_trip(make):
    optimizer = make()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert again.options == optimizer.options
    assert again.curvature == optimizer.curvature


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}
# All three go through one `__reduce__`: the usual suite copies these, the first in all ways.
COPIED = ("GTDDP with AdamW inside", "GTDDP", "DDP", "EMSA")


def _slow(row, way):
    usual = row == COPIED[0] or (way == "pickle" and row in COPIED)
    return [] if usual else pytest.mark.slow


each_copy = pytest.mark.parametrize(
    ("make", "copied"),
    [
        pytest.param(ROWS[row], copied, id=f"{row}-{way}", marks=_slow(row, way))
        for row in ROWS
        for way, copied in COPIES.items()
    ],
)


@each_copy
def test_a_fresh_copy_is_another_optimizer_of_the_same_options(make, copied):
    optimizer = make()
    optimizer.learning_rate = 0.25
    again = copied(copied(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert not set(map(id, again.variables)) & set(map(id, optimizer.variables))
    model = network()
    model.compile(optimizer=again, **cross_entropy())
    assert np.isfinite(model.train_on_batch(*data()))
    assert int(optimizer.iterations) == 0


@each_copy
def test_a_copy_made_mid_run_goes_on_in_a_model_of_the_same_shape(make, copied):
    x, y = data()
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    models = [network(), network()]
    models[0].compile(optimizer=make(), **cross_entropy())
    models[0].fit(x, y, **fit)
    again = copied(copied(models[0].optimizer))  # a copy that waits for its model can be copied itself
    assert int(again.iterations) == int(models[0].optimizer.iterations) == 2
    models[1].compile(optimizer=again, **cross_entropy())
    models[1].set_weights(models[0].get_weights())
    for own, other in zip(*(model.seed_variables() for model in models), strict=True):
        other.assign(own)  # random generators belong to a model, not to a copy of its optimizer
    for model in models:
        model.fit(x, y, epochs=2, **fit)
    for expected, actual in zip(*map(state, models), strict=True):
        assert np.array_equal(expected, actual)


@one_of_each_state
def test_a_bad_batch_changes_nothing_but_the_counter(make):
    x, y = data()
    model = network()
    model.compile(optimizer=make(), **cross_entropy())
    model.train_on_batch(x, y)
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    bad = x.copy()
    bad[2, 3] = np.inf
    model.train_on_batch(bad, y)
    assert int(model.optimizer.rejected_batches) == 1
    for variable, old in zip((*model.variables, *model.optimizer.variables), before, strict=True):
        counts = {id(model.optimizer.rejected_batches), id(model.optimizer.rejected_in_a_row)}
        if id(variable) not in counts and "seed" not in variable.path:
            assert np.array_equal(variable.numpy(), old), variable.path
    assert np.isfinite(model.train_on_batch(x, y))
    assert int(model.optimizer.iterations) == 2


@every_row
def test_it_needs_the_layers(make):
    model = keras.Sequential([layers.Input((6,)), layers.Dense(3)])
    model.compile(optimizer=make(), **cross_entropy())
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"model = bellman_tf.as_game\(model\)"):
        model.fit(*data(), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("make", rows("GTDDP", "EKFAC"))
def test_it_belongs_to_one_model(make):
    optimizer = make()
    model = mlp()
    model.compile(optimizer=optimizer, **cross_entropy())
    model.train_on_batch(*data())
    with pytest.raises(ValueError, match="`optimizer` must be new, or have been built for this model"):
        mlp().compile(optimizer=optimizer, **cross_entropy())
    model.compile(optimizer=optimizer, **cross_entropy())  # its own model may be compiled again
    model.train_on_batch(*data())


@pytest.mark.parametrize("make", [btf.GTDDP, btf.EKFAC])
@pytest.mark.parametrize("kind", [mlp, Subclassed])
def test_other_kinds_of_models_continue_identically_too(kind, make, tmp_path):
    x, y = data()
    model = kind()
    model.compile(optimizer=make(), **cross_entropy())
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    for expected, actual in zip(state(model), state(loaded), strict=True):
        assert np.array_equal(expected, actual)


@keras.saving.register_keras_serializable("bellman_tf_tests")
class Unseen(btf.Model):
    """A subclassed model that fit builds: nobody has called it or given it a shape before."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.head = layers.Dense(4, activation="tanh"), layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))


def test_a_subclassed_model_built_by_fit_loads_with_its_optimizer(tmp_path):
    x, y = data()
    model = Unseen()
    model.compile(optimizer=btf.DDPNOpt(0.03), **cross_entropy())
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for mine, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(mine.numpy(), theirs.numpy())
    assert np.array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))
