"""Another Keras optimizer inside: which metric it gets, that it is left as it is, and that it is guarded."""

import copy
import pickle

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row, some_slow, thinned
from tests.optimizers.inside import MAKE, compiled, state, train, x, y
from tests.strategies.networks import cross_entropy, labels, mlp, normal, residual_cnn
from verification.references import inner as reference

DESCRIBED = {
    "sgd": "sgd", "momentum": "sgd", "nesterov": "sgd", "rmsprop": "rmsprop", "centered": "rmsprop", "adam": "adam",
    "amsgrad": "adam", "adamw": "adam", "nadam": "nadam", "schedule": "sgd",
}  # fmt: skip
SOME = [name for name in ("momentum", "adamw", "nadam", "muon", "multi", "own", "schedule") if name in MAKE]
RARE = [name for name in MAKE if name not in (*SOME, "rmsprop", "lion", "schedule free")]


def mostly(*usual):
    """All of them, those that are not named in the slow suite."""
    return some_slow(MAKE, *(name for name in MAKE if name not in usual))


often = pytest.mark.parametrize("name", mostly("momentum", "adamw", "muon", "multi", "schedule free"))


@pytest.fixture(params=some_slow(MAKE, *RARE), name="name")
def _name(request):
    return request.param


# ---- the metric of every family


def test_every_optimizer_has_its_family(name):
    model = compiled(btf.GTDDP(inner_optimizer=MAKE[name]()))
    expected = [f"{DESCRIBED.get(name, 'scaled')} inside"] * 3
    if name == "multi":
        expected = ["sgd inside", "adam inside", "scaled inside"]  # the last has a kernel and a bias of two optimizers
    assert model.optimizer.describe(model.game) == expected
    train(model, 1)
    assert [block.describe() for block in model.optimizer.blocks] == expected


def test_a_subclass_with_a_rule_of_its_own_is_known_by_its_steps_alone():
    class Kept(optimizers.Adam):
        pass

    class Changed(optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, learning_rate * gradient)

    for kind, expected in ((Kept, "adam inside"), (Changed, "scaled inside")):
        model = compiled(btf.GTDDP(inner_optimizer=kind(0.01)))
        assert set(model.optimizer.describe(model.game)) == {expected}


BETAS = {"beta_1": reference.BETA_1, "beta_2": reference.BETA_2}
ADAM_ARGUMENTS = {**BETAS, "epsilon": reference.EPSILON}
RULES = {
    "sgd": (optimizers.SGD, {}, reference.SGD, {}),
    "momentum": (optimizers.SGD, {"momentum": 0.875}, reference.SGD, {"momentum": 0.875}),
    "gain": (optimizers.SGD, {"momentum": 0.875}, reference.SGD, {"momentum": 0.875, "gain": True}),
    "rmsprop": (optimizers.RMSprop, {"rho": reference.RHO, "epsilon": reference.EPSILON}, reference.RMSprop, {}),
    "adam": (optimizers.Adam, ADAM_ARGUMENTS, reference.Adam, {}),
    "amsgrad": (optimizers.Adam, {**ADAM_ARGUMENTS, "amsgrad": True}, reference.Adam, {"largest": True}),
    "adamw": (optimizers.AdamW, {**ADAM_ARGUMENTS, "weight_decay": 0.125}, reference.Adam, {"decay": 0.125}),
    "nadam": (optimizers.Nadam, ADAM_ARGUMENTS, reference.Nadam, {}),
    "lion": (optimizers.Lion, BETAS, reference.Lion, {}),
}


@pytest.mark.parametrize(
    ("rule", "jit"),
    [
        pytest.param(rule, jit, marks=pytest.mark.slow if jit and rule not in {"gain", "adamw"} else [])
        for rule in RULES
        for jit in (False, True)
    ],
)
@pytest.mark.usefixtures("_float64")
def test_its_steps_are_those_of_the_reference(rule, jit):
    """Own costs, and the second and third step, whose metric comes from the first."""
    kind, arguments, known, options = RULES[rule]
    penalty, rate = 2.0**-6, 0.25 if kind is optimizers.SGD else 2.0**-5
    keras.utils.set_random_seed(3)
    own = {"kernel_regularizer": keras.regularizers.L2(penalty)}
    model = btf.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(5, activation="tanh", **own),
            layers.Dense(3),
        ]
    )
    metric = {} if "gain" in options else {"inner_metric": "rate"}  # "gain" is the default
    model.compile(btf.GTDDP(inner_optimizer=kind(rate, **arguments), **metric), **cross_entropy(), jit_compile=jit)
    weights = [w + 0.1 for w in model.get_weights()]
    model.set_weights(weights)
    inputs, targets = np.random.default_rng(1).normal(size=(6, 4)), labels(6)
    parts = np.cumsum([w.size for w in weights])
    chosen = known(int(parts[-1]), parts[:-1], rate, **options)
    expected, weighed = reference.train(chosen, weights, inputs, targets, penalty, 3)
    assert np.ptp(weighed[-1]) > 0.02 * weighed[-1].mean()  # the samples do weigh differently
    train(model, 3, (inputs, targets))
    for actual, wanted in zip(model.get_weights(), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-7 if rule == "nadam" else 1e-11)


# ---- it is left as it is


@often
@pytest.mark.parametrize("network", [mlp, slow_row(residual_cnn)])
def test_open_loop_it_is_keras_with_that_optimizer(name, network):
    assert_open_loop_is_keras(name, network)


def test_open_loop_convolutions_are_keras_with_adamw_too():
    assert_open_loop_is_keras("adamw", residual_cnn)


def assert_open_loop_is_keras(name, network):
    data = (x, y) if network is mlp else (normal(8, 6, 6, 2), labels(8))
    plain = compiled(MAKE[name](), network)
    ours = compiled(btf.GTDDP(inner_optimizer=MAKE[name](), information="open"), network)
    train(plain, 4, data)
    train(ours, 4, data)
    for expected, actual in zip(plain.variables, ours.variables, strict=True):
        assert np.array_equal(expected.numpy(), actual.numpy()), expected.path


@pytest.mark.parametrize(
    "some",
    mostly("muon", "schedule free"),
)
def test_it_trains_and_graph_and_xla_agree(some):
    models = [compiled(btf.GTDDP(inner_optimizer=MAKE[some]()), jit_compile=jit) for jit in (False, True)]
    losses = [train(model, 5) for model in models]
    assert losses[0][-1] < losses[0][0]
    for first, second in zip(*(model.get_weights() for model in models), strict=True):
        assert_close(second, first, atol=2e-5)  # steps of Lion and Muon hang on signs and an iteration in bfloat16


def test_rates_averages_and_exclusions_reach_it():
    inner = optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.5, weight_decay=0.5)
    model = compiled(btf.GTDDP(inner_optimizer=inner))
    optimizer = model.optimizer
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    optimizer.learning_rate = 0.002
    assert float(inner.learning_rate) == pytest.approx(0.002)
    inner.learning_rate = 0.0
    assert float(optimizer.learning_rate) == 0.0
    before = model.get_weights()
    train(model, 2)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    inner.learning_rate = 0.1
    train(model, 2)
    moved = model.get_weights()
    callback = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=1e9)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[callback])
    assert float(inner.learning_rate) < 0.1
    assert int(inner.iterations) == int(optimizer.iterations) == 7
    averages = [v.numpy() for v in inner._model_variables_moving_average]
    assert all(np.array_equal(a, b) for a, b in zip(averages, model.get_weights(), strict=True))  # put there by fit
    assert not np.array_equal(moved[0], averages[0])


def test_the_learning_rate_of_a_schedule_is_that_of_its_iterations():
    model = compiled(btf.GTDDP(inner_optimizer=MAKE["schedule"]()))
    train(model, 2)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


# ---- guarded


@pytest.mark.parametrize("jit", [False, slow_row(True)])
def test_a_bad_batch_changes_neither_weights_nor_its_state(name, jit):
    assert_a_bad_batch_changes_nothing(name, jit)


def test_a_bad_batch_changes_nothing_under_xla_either():
    assert_a_bad_batch_changes_nothing("adamw", True)


def assert_a_bad_batch_changes_nothing(name, jit):
    model = compiled(btf.GTDDP(inner_optimizer=MAKE[name]()), jit_compile=jit)
    train(model, 2)
    optimizer = model.optimizer
    before = state(model)
    bad = x.copy()
    bad[2, 3] = np.inf
    model.train_on_batch(bad, y)
    assert int(optimizer.rejected_batches) == 1
    counts = {id(optimizer.rejected_batches), id(optimizer.rejected_in_a_row)}
    for variable, old in zip((*model.variables, *optimizer.variables), before, strict=True):
        if id(variable) not in counts:
            assert np.array_equal(variable.numpy(), old), variable.path
    if name == "own":
        assert float(optimizer.inner_optimizer.seen) == 2 * 6
    assert np.isfinite(train(model, 1)[0])
    assert int(optimizer.iterations) == 3


@pytest.mark.parametrize("jit", [False, True])
def test_a_finite_gradient_whose_square_is_not_is_a_bad_batch_too(jit):
    inputs = keras.Input((6,))
    model = btf.Model(inputs, layers.Dense(1, use_bias=False)(inputs))
    inner = optimizers.Adam(0.01)
    model.compile(btf.GTDDP(inner_optimizer=inner, information="open"), loss="mae", jit_compile=jit)
    targets = normal(8, 1)
    model.train_on_batch(x, targets)
    before = state(model)
    model.train_on_batch(x * np.float32(1e25), targets)
    assert int(model.optimizer.rejected_batches) == 1
    assert all(np.isfinite(v.numpy()).all() for v in inner.variables)
    changed = [not np.array_equal(a, b) for a, b in zip(before, state(model), strict=True)]
    assert sum(changed) == 2  # both counters


# ---- saved and copied


@often
@pytest.mark.filterwarnings("ignore:.*Skipping variable loading.*")
def test_saved_in_the_middle_it_goes_on_identically(name, tmp_path):
    model = compiled(btf.GTDDP(inner_optimizer=MAKE[name]()))
    train(model, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer.inner_optimizer) is type(model.optimizer.inner_optimizer)
    for each in (model, loaded):
        each.jit_compile = False
        train(each, 3)
    for expected, actual in zip(state(model), state(loaded), strict=True):
        assert np.array_equal(expected, actual)


def test_its_configuration_makes_the_round_trip(name):
    optimizer = btf.DDPNOpt(inner_optimizer=MAKE[name](), group_size=4, inner_metric="gain")
    optimizer_again = type(optimizer).from_config(optimizer.get_config())
    assert optimizer_again.get_config() == optimizer.get_config()
    assert optimizer_again.inner_optimizer is not optimizer.inner_optimizer


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer))}


@pytest.mark.parametrize(("some", "copied"), thinned(SOME, COPIES, every=3))
def test_a_copy_made_mid_run_goes_on_in_a_model_of_the_same_shape(some, copied):
    first = compiled(btf.GTDDP(inner_optimizer=MAKE[some]()))
    train(first, 2)
    again = COPIES[copied](COPIES[copied](first.optimizer))
    assert not set(map(id, again.variables)) & set(map(id, first.optimizer.variables))
    second = compiled(again)
    second.set_weights(first.get_weights())
    for model in (first, second):
        train(model, 2)
    for expected, actual in zip(*map(state, (first, second)), strict=True):
        assert np.array_equal(expected, actual)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_legacy_file_holds_its_state(tmp_path):
    model = compiled(btf.GTDDP(inner_optimizer=MAKE["adamw"]()))
    train(model, 2)
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    assert type(loaded.optimizer.inner) is type(model.optimizer.inner)
    for expected, variable in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(expected.numpy(), variable.numpy())
    train(model, 1)
    train(loaded, 1)
    for expected, weight in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert np.array_equal(expected, weight)


# ---- options that cannot go together

REFUSED = {
    "curvature": (
        {"curvature": "kfac"},
        "`curvature` must be left out with an inner optimizer: its step is the metric",
    ),
    "learning_rate": ({"learning_rate": 0.1}, "`learning_rate` must be left out .* it has its own"),
    "clipnorm": ({"clipnorm": 1.0}, "`clipnorm` must be left out"),
    "use_ema": ({"use_ema": True}, "`use_ema` must be left out"),
    "step_control": ({"step_control": "levenberg_marquardt"}, "`step_control` must be None with an inner optimizer"),
    "nonlinear": ({"rollout": "nonlinear"}, "`rollout` must be 'linear' with an inner optimizer"),
    "bilinear": ({"bilinear": True}, "`rollout` must be 'linear' with an inner optimizer"),
    "metric": ({"inner_metric": "best"}, "`inner_metric` must be one of 'rate', 'gain'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_with_it_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        btf.GTDDP(inner_optimizer=MAKE["adam"](), **options)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (3, "`inner_optimizer` must be None, a `keras.optimizers.Optimizer` or the name of one"),
        (btf.GTDDP, "`inner_optimizer` must be an optimizer that moves variables by their gradients alone"),
        (
            lambda: optimizers.LossScaleOptimizer(MAKE["adam"]()),
            "`inner_optimizer` must be an optimizer that moves variables",
        ),
        (lambda: optimizers.SGD(loss_scale_factor=2.0), "loss_scale_factor` must be None"),
    ],
)
def test_what_cannot_be_one_is_refused(inner, message):
    with pytest.raises(ValueError, match=message):
        btf.GTDDP(inner_optimizer=inner() if callable(inner) else inner)


def test_agents_share_no_inner_optimizer():
    with pytest.raises(ValueError, match="`players` must be 1 with an inner optimizer"):
        btf.DGNOpt(players=2, inner_optimizer=MAKE["adam"]())


def test_an_inner_optimizer_of_another_model_is_refused():
    inner = MAKE["adam"]()
    train(compiled(btf.GTDDP(inner_optimizer=inner)), 1)
    other = compiled(btf.GTDDP(inner_optimizer=inner))
    with pytest.raises(ValueError, match="`inner_optimizer` must be new, or have been built for this model"):
        train(other, 1)


def test_displacements_without_an_end_have_no_gain():
    model = compiled(btf.GTDDP(inner_optimizer=optimizers.SGD(0.1, momentum=1.0)))
    with pytest.raises(ValueError, match="`inner_metric` must be 'rate' with momentum=1"):
        train(model, 1)


def test_a_name_is_enough():
    assert isinstance(btf.GTDDP(inner_optimizer="adamw").inner_optimizer, optimizers.AdamW)
