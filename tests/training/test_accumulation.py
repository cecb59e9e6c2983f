"""Gradient accumulation: against the dense reference, the batch in groups, and Keras's own optimizers."""

import copy

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers, optimizers

import bellman_tf as btf
from bellman_tf.bellman import rollout
from bellman_tf.curvature.block import StepScalars, running_mean
from tests.bellman.sample_games import start, terms, tolerance
from tests.helpers import assert_close
from tests.optimizers.inside import MAKE
from tests.replicas.training import compiled as replicated
from tests.strategies.networks import cross_entropy, labels, normal
from verification.problems.games import games
from verification.references import accumulation as reference
from verification.references import rollout as dense


def some_slow(cases, *slow):
    """Parameters of a test, some of which repeat what others show and run in the slow suite only."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]


K, M = 3, 4  # micro-batches of an update, samples of a micro-batch
x, y = normal(36, 6), labels(36)


def small():
    penalty = keras.regularizers.L2(0.01)
    return btf.Sequential(
        [layers.Input((6,)), layers.Dense(5, activation="tanh", kernel_regularizer=penalty), layers.Dense(3)]
    )


def compiled(optimizer, make=small, **options):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(optimizer, **cross_entropy(), **{"jit_compile": False, **options})
    return model


def train(model, size=M, samples=slice(0, 36)):
    inputs, targets = x[samples], y[samples]
    for k in range(0, len(inputs), size):
        model.train_on_batch(inputs[k : k + size], targets[k : k + size])
    return model


def assert_same_weights(model, other, rtol=1e-5, variables="trainable_variables"):
    for v, w in zip(getattr(model, variables), getattr(other, variables), strict=True):
        if v.dtype.startswith("float"):
            assert_close(v.numpy(), w.numpy(), rtol=rtol, atol=1e-7, label=v.path)


# ---- the mathematics


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("beta", "nesterov", "jit"), [(0.0, False, False), (0.75, False, False), (0.75, True, True)])
def test_it_is_the_dense_step_of_all_micro_batches(beta, nesterov, jit):
    penalty, rate = 2.0**-6, 0.25
    model = btf.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(5, activation="tanh", kernel_regularizer=keras.regularizers.L2(penalty)),
            layers.Dense(3),
        ]
    )
    options = {"momentum": beta, "nesterov": nesterov, "gradient_accumulation_steps": K}
    model.compile(btf.GTDDP(rate, curvature="identity", **options), **cross_entropy(), jit_compile=jit)
    weights = [w + 0.1 for w in model.get_weights()]
    model.set_weights(weights)
    random = np.random.default_rng(1)
    batches = [[(random.normal(size=(5, 4)), random.integers(0, 3, 5)) for _ in range(K)] for _ in range(3)]
    for batch in (micro for step in batches for micro in step):
        model.train_on_batch(*batch)
    expected = reference.train(weights, batches, penalty, rate, beta, nesterov)
    for actual, wanted in zip(model.get_weights(), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-11)


STRUCTURES = [(True, True), (True, False), (False, True), (False, False)]


@hypothesis.given(games(), st.integers(2, 9), st.sampled_from(STRUCTURES))
def test_gram_matrices_over_k_make_the_group_of_a_larger_batch(game, k, structure):
    """In every structure of information the moves are those of the dense step whose samples count 1 / (k m)."""
    joint, feedback = structure
    terminal, (G, l) = start(game), terms(game, joint=joint)
    v = rollout.roll_out(terminal, G / k, l, joint=joint, feedback=feedback, diagonal=game.root is None).numpy()
    step = dense.execute(
        game.gradient, game.hessian, game.stacked_stages(), joint=joint, feedback=feedback,
        batch_size=k * game.batch_size,
    )  # fmt: skip
    ours, theirs, unit = [], [], []
    for t, stage in enumerate(game.stages):
        for i, p in enumerate(stage.players):
            w = (v[t, 0] if joint else v[t, i, 0]) / k
            ours.append(-np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ w))
            unit.append(np.linalg.solve(p.metric, p.l_u))
            theirs.append(step.moves[t][i])
    scale = max(np.abs(np.concatenate([*theirs, *unit])).max(), np.finfo(float).tiny)
    stiffness = np.max(terminal.L.numpy()) ** 2 * np.linalg.norm(sum(game.grams()[0]), 2)
    bound = tolerance(game) + np.finfo(float).eps * stiffness
    assert_close(np.concatenate(ours) / scale, np.concatenate(theirs) / scale, atol=bound)


@hypothesis.given(
    k=st.integers(2, 7), t=st.integers(0, 50), decay=st.floats(0, 0.99), period=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_a_mean_takes_up_micro_batches_as_if_all_at_once(k, t, decay, period, seed):
    old, *values = np.random.default_rng(seed).normal(size=(k + 1, 3))
    iteration, one = tf.constant(t, tf.int64), tf.constant(1.0, tf.float64)
    expected = running_mean(old, np.mean(values, axis=0), StepScalars(iteration, one).mean_rate(decay, period))
    mean = tf.constant(old)
    for j, value in enumerate(values):
        scalars = StepScalars(iteration, one, micro_batch=tf.constant(j, tf.int64), micro_batches=k)
        mean = running_mean(mean, value, scalars.mean_rate(decay, period))
    assert_close(mean, expected, atol=1e-13 * (1 + np.abs([old, *values]).max()))


# ---- the batch in groups of a micro-batch

GROUPED = {
    "identity": lambda **o: btf.GTDDP(0.3, curvature="identity", **o),
    "adam": lambda **o: btf.GTDDP(0.05, curvature="adam", **o),
    "rmsprop": lambda **o: btf.GTDDP(0.05, curvature="rmsprop", terminal_hessian=2, **o),
    "momentum, decay, clipping": lambda **o: btf.GTDDP(
        0.1, curvature="identity", momentum=0.9, nesterov=True, weight_decay=0.1, global_clipnorm=0.2, **o
    ),
    "feedback, Adam": lambda **o: btf.DDPNOpt(0.05, curvature="adam", **o),
    "per sample": lambda **o: btf.GTDDP(
        0.3, curvature="identity", **{**o, "group_size": None, "value_hessian": "block_diagonal"}
    ),
}


@pytest.mark.parametrize("case", some_slow(GROUPED, "rmsprop", "per sample", "identity"))
def test_it_equals_the_batch_in_groups(case):
    micro = train(compiled(GROUPED[case](gradient_accumulation_steps=K)))
    whole = train(compiled(GROUPED[case](group_size=M)), K * M)
    assert int(micro.optimizer.iterations) == int(whole.optimizer.iterations) == 3
    assert_same_weights(micro, whole)


@pytest.mark.parametrize("information", ["open", "cooperative"])
@pytest.mark.parametrize("curvature", some_slow(["kfac", "full"], "full"))
def test_statistics_of_samples_are_those_of_the_batch(information, curvature):
    """Open-loop the updates are equal, too; else the first one is, but for the first games' Gram matrices."""
    options = {"curvature": curvature, "information": information, "rollout": "linear"}
    micro = compiled(btf.GTDDP(0.1, gradient_accumulation_steps=K, **options))
    whole = compiled(btf.GTDDP(0.1, group_size=None if information == "open" else M, **options))
    samples = slice(0, 36) if information == "open" else slice(0, K * M)
    train(micro, M, samples)
    train(whole, K * M, samples)
    if information == "open":
        assert_same_weights(micro, whole)
    for found, wanted in zip(*(m.optimizer.state for m in (micro, whole)), strict=True):
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_cross_moments_of_players_that_act_together_are_those_of_the_batch():
    def branches():
        inputs = keras.Input((6,))
        both = [layers.Dense(4, activation="tanh", name=name)(inputs) for name in ("left", "right")]
        return btf.Model(inputs, layers.Dense(3)(layers.Add()(both)))

    options = {"curvature": btf.curvature.KFAC(cooperative="exact"), "information": "open", "rollout": "linear"}
    micro = train(compiled(btf.GTDDP(0.1, gradient_accumulation_steps=K, **options), branches))
    whole = train(compiled(btf.GTDDP(0.1, **options), branches), K * M)
    assert len(micro.optimizer.couplings) == 1
    assert_same_weights(micro, whole, 1e-4)


def test_between_factorisations_kfac_equals_the_batch_in_groups():
    curvature = btf.curvature.KFAC(invert_every=100)
    micro = train(compiled(btf.GTDDP(0.1, curvature=curvature, gradient_accumulation_steps=K)), M, slice(0, K * M))
    whole = compiled(btf.GTDDP(0.1, curvature=curvature, group_size=M))
    whole.set_weights(micro.get_weights())
    whole.optimizer.build(whole.trainable_variables)
    for own, other in zip(*(m.optimizer._store.variables for m in (micro, whole)), strict=True):
        other.assign(own)
    whole.optimizer.iterations.assign(1)
    train(micro, M, slice(K * M, 36))
    train(whole, K * M, slice(K * M, 36))
    assert_same_weights(micro, whole)


def test_ekfac_has_the_factors_of_the_batch_and_trains():
    micro = compiled(btf.GTDDP(0.05, curvature="ekfac", gradient_accumulation_steps=K))
    whole = compiled(btf.GTDDP(0.05, curvature="ekfac", group_size=M))
    before = micro.evaluate(x, y, verbose=0, batch_size=36)
    train(micro, M, slice(0, K * M))
    train(whole, K * M, slice(0, K * M))
    for found, wanted in zip(*(m.optimizer.state for m in (micro, whole)), strict=True):
        for a, b in zip(found[:2], wanted[:2], strict=True):  # bases of few samples are not unique
            assert_close(a, b, rtol=2e-5)
    for _ in range(2):
        train(micro)
    assert micro.evaluate(x, y, verbose=0, batch_size=36) < 0.9 * before


def players_of_two_heads():
    inputs = keras.Input((6,))
    h = layers.Dense(4, activation="tanh", name="trunk")(inputs)
    return btf.Model(inputs, [layers.Dense(3, name=name)(h) for name in ("left", "right")])


def test_players_with_losses_of_their_own_equal_the_batch_in_groups():
    rules = {"left": ["left"], "right": ["right"]}
    models = []
    for options, size in (({"gradient_accumulation_steps": K}, M), ({"group_size": M}, K * M)):
        keras.utils.set_random_seed(0)
        model = players_of_two_heads()
        model.compile(btf.DDPNOpt(0.3, curvature="identity", player_losses=rules, **options), "mse", jit_compile=False)
        for k in range(0, 24, size):
            model.train_on_batch(x[k : k + size], [x[k : k + size, :3], x[k : k + size, 3:]])
        models.append(model)
    assert_same_weights(*models)


# ---- another optimizer inside, which accumulates

INSIDE = ["momentum", "adam", "lion", "schedule", *(["multi"] if "multi" in MAKE else [])]


def accumulating(name):
    inner = MAKE[name]()
    for part in inner.optimizers if name == "multi" else [inner]:
        part.gradient_accumulation_steps = K  # read when it is built
    return inner


@pytest.mark.parametrize("name", some_slow(INSIDE, "adam", "lion", "schedule"))
def test_an_inner_optimizer_accumulates(name):
    micro = train(compiled(btf.GTDDP(inner_optimizer=accumulating(name))))
    inner = MAKE[name]()
    if name == "schedule":  # Keras's schedules count micro-batches
        rates = [float(accumulating(name)._learning_rate(k)) for k in range(K - 1, 9, K)]
        inner = optimizers.SGD(rates[0], momentum=0.5)
    whole = compiled(btf.GTDDP(inner_optimizer=inner, group_size=M))
    for step in range(3):
        if name == "schedule":
            inner.learning_rate = rates[step]
        train(whole, K * M, slice(step * K * M, (step + 1) * K * M))
    assert int(micro.optimizer.iterations) == 3
    assert_same_weights(micro, whole)


def test_it_belongs_to_the_inner_optimizer():
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be left out with an inner optimizer"):
        btf.GTDDP(inner_optimizer="sgd", gradient_accumulation_steps=2)
    if "multi" not in MAKE:
        return
    inner = MAKE["multi"]()
    inner.optimizers[0].gradient_accumulation_steps = 2
    with pytest.raises(ValueError, match="must be the same in all optimizers"):
        btf.GTDDP(inner_optimizer=inner)


# ---- Keras's own semantics

SCHEDULE = optimizers.schedules.ExponentialDecay(0.2, 4, 0.5)
OPEN = {
    "sgd": (
        "identity",
        lambda **o: optimizers.SGD(SCHEDULE, momentum=0.9, **o),
        {"weight_decay": 0.1, "clipnorm": 0.3},
    ),
    "adam": (
        "adam",
        lambda **o: optimizers.Adam(SCHEDULE, **o),
        {"clipvalue": 0.05, "use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 2},
    ),
    "rmsprop": ("rmsprop", lambda **o: optimizers.RMSprop(SCHEDULE, **o), {"global_clipnorm": 0.2, "use_ema": True}),
}


@pytest.mark.parametrize("case", some_slow(OPEN, "rmsprop"))
def test_open_loop_it_is_that_of_keras(case):
    def net():
        options = {"kernel_constraint": keras.constraints.MaxNorm(0.8), "kernel_regularizer": "l2"}
        parts = [layers.Dense(5, activation="tanh", **options), layers.BatchNormalization(), layers.Dense(3)]
        return btf.Sequential([layers.Input((6,)), *parts])

    curvature, theirs, options = OPEN[case]
    options = {"gradient_accumulation_steps": K, **options}
    ours = btf.GTDDP(
        SCHEDULE, curvature=curvature, information="open", momentum=0.9 if case == "sgd" else 0.0, **options
    )
    models = [compiled(ours, net), compiled(theirs(**options), net)]
    samples = slice(0, 32)  # ends in the middle of an update
    for model in models:
        train(model, M, samples)
    assert int(models[0].optimizer.iterations) == int(models[1].optimizer.iterations) == 2
    assert_same_weights(*models, 1e-5, "variables")
    if "use_ema" in options:
        kept = [m.optimizer._model_variables_moving_average for m in models]
        for v, w in zip(*kept, strict=True):
            assert_close(v.numpy(), w.numpy(), rtol=1e-5, label=v.path)


@pytest.mark.parametrize("options", some_slow([{"jit_compile": True}, {"run_eagerly": True}], {"run_eagerly": True}))
def test_however_it_is_run(options):
    make = lambda: btf.GTDDP(0.1, curvature="kfac", momentum=0.5, gradient_accumulation_steps=K)
    expected, actual = train(compiled(make())), train(compiled(make(), **options))
    assert_same_weights(actual, expected)


def test_weights_stay_between_the_updates_and_one_trace_serves_all_steps():
    model, traces = compiled(btf.GTDDP(0.1, gradient_accumulation_steps=K)), []
    step = model.train_step
    object.__setattr__(model, "train_step", lambda data: (traces.append(1), step(data))[1])
    first = model.get_weights()
    train(model, M, slice(0, 2 * M))
    assert all(np.array_equal(a, b) for a, b in zip(first, model.get_weights(), strict=True))
    train(model, M, slice(2 * M, 3 * M))
    assert not np.array_equal(first[0], model.get_weights()[0])
    assert len(traces) == 1


# ---- batches that are not finite

STATES = {
    "adam": lambda: btf.GTDDP(0.05, curvature="adam", gradient_accumulation_steps=K),
    "kfac": lambda: btf.GTDDP(0.05, curvature="kfac", gradient_accumulation_steps=K),
    "Adam inside": lambda: btf.GTDDP(inner_optimizer=optimizers.Adam(0.05, gradient_accumulation_steps=K)),
    "Lion inside": lambda: btf.GTDDP(inner_optimizer=optimizers.Lion(0.05, gradient_accumulation_steps=K)),
}


@pytest.mark.parametrize("case", some_slow(STATES, "adam", "Lion inside"))
def test_a_bad_micro_batch_is_left_out(case):
    model, other = compiled(STATES[case]()), compiled(STATES[case]())
    bad = x[:M].copy()
    bad[1, 2] = np.nan
    for k in range(0, 24, M):
        if k in {M, 2 * M, 5 * M}:  # in the middle of an update, and where it is due
            model.train_on_batch(bad, y[:M])
        for each in (model, other):
            train(each, M, slice(k, k + M))
    assert int(model.optimizer.rejected_batches) == 3
    assert int(model.optimizer.iterations) == 2
    counts = {id(model.optimizer.rejected_batches)}
    pairs = zip(model.optimizer.variables, other.optimizer.variables, strict=True)
    for v, w in [*pairs, *zip(model.variables, other.variables, strict=True)]:
        assert id(v) in counts or np.array_equal(v.numpy(), w.numpy()), v.path


@pytest.mark.parametrize("inner", [False, True])
def test_an_update_that_is_not_finite_is_dropped_whole(inner):
    """A gradient of 1e25 is finite and its square is not: without the drop every later batch would be rejected."""

    def make():
        if inner:
            theirs = optimizers.Adam(0.05, gradient_accumulation_steps=K)
            return compiled(btf.GTDDP(inner_optimizer=theirs, information="open"))
        return compiled(btf.GTDDP(0.05, curvature="adam", information="open", gradient_accumulation_steps=K))

    model, other = make(), make()
    for each in (model, other):
        train(each, M, slice(0, K * M))
    before = model.get_weights()
    heavy = np.full(M, 1e25, "float32")
    model.train_on_batch(x[:M], y[:M], sample_weight=heavy)
    train(model, M, slice(M, 3 * M))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert int(model.optimizer.rejected_batches) == K
    assert int(model.optimizer.iterations) == 1
    for each in (model, other):
        train(each, M, slice(K * M, 2 * K * M))
    assert int(model.optimizer.iterations) == 2
    assert_same_weights(model, other, 0.0)


# ---- saving


@pytest.mark.parametrize("case", ["kfac", "Adam inside"])
def test_it_resumes_in_the_middle_of_an_update(case, tmp_path):
    model = train(compiled(STATES[case]()), M, slice(0, 4 * M))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    copied = compiled(copy.deepcopy(model.optimizer))
    copied.set_weights(model.get_weights())
    assert loaded.optimizer.options.micro_batches == K
    for each in (model, loaded, copied):
        train(each, M, slice(4 * M, 9 * M))
    for each in (loaded, copied):
        pairs = zip(model.optimizer.variables, each.optimizer.variables, strict=True)
        for v, w in [*pairs, *zip(model.variables, each.variables, strict=True)]:
            assert np.array_equal(v.numpy(), w.numpy()), v.path


# ---- what is refused, and what is not shown

REFUSED = {
    "nonlinear": ({"rollout": "nonlinear"}, "`gradient_accumulation_steps` must be None with rollout='nonlinear'"),
    "published": ({"value_hessian": "outer_product"}, "`gradient_accumulation_steps` must be None with rollout="),
    "step control": ({"step_control": "levenberg_marquardt"}, "`step_control` must be None with gradient accumulation"),
    "one": ({"gradient_accumulation_steps": 1}, "`gradient_accumulation_steps` must be an integer >= 2"),
    "fraction": ({"gradient_accumulation_steps": 2.5}, "`gradient_accumulation_steps` must be an integer >= 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_with_it_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        btf.GTDDP(**{"gradient_accumulation_steps": 2, **options})


@pytest.mark.parametrize("inner", some_slow([False, True], True))
def test_a_monitor_shows_weights_and_no_decrease(inner):
    options = {"curvature": "identity", "learning_rate": 0.3, "gradient_accumulation_steps": K}
    if inner:
        options = {"inner_optimizer": optimizers.SGD(0.3, gradient_accumulation_steps=K)}
    model = compiled(btf.GTDDP(**options))
    monitor = btf.callbacks.GameMonitor()
    logs = model.fit(x, y, batch_size=M, verbose=0, shuffle=False, callbacks=[monitor]).history
    assert {"weight_spread", "leverage"} <= set(logs)
    assert logs["leverage"][0] > 0
    assert not {"actual_reduction", "predicted_reduction", "reduction_ratio"} & set(logs)


# ---- several replicas


@pytest.mark.parametrize("curvature", some_slow(["adam", "identity"], "identity"))
def test_replicas_that_accumulate_equal_the_batch_in_groups(curvature):
    """Two replicas with K micro-batches each: 2 K groups."""
    options = {"curvature": curvature, "weight_decay": 0.1, "global_clipnorm": 0.2}
    accumulating = {"gradient_accumulation_steps": K, **options}
    both, _ = replicated(2, lambda: btf.GTDDP(0.1, **accumulating), small, jit_compile=False)
    one, _ = replicated(1, lambda: btf.GTDDP(0.1, group_size=M, **options), small, jit_compile=False)
    for model, size in ((both, 2 * M), (one, 2 * M * K)):
        model.fit(np.tile(x, (2, 1))[:48], np.tile(y, 2)[:48], batch_size=size, shuffle=False, verbose=0)
    assert_same_weights(both, one)


def test_keras_cannot_accumulate_on_replicas():
    with pytest.raises(ValueError, match="Keras's optimizers cannot accumulate gradients on several replicas"):
        replicated(2, lambda: btf.GTDDP(inner_optimizer=optimizers.SGD(0.1, gradient_accumulation_steps=K)))
