"""Gradient accumulation: with optimizers of Keras, through bad batches, saving, replicas; what is refused."""

import copy

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import bellman_tf as btf
from tests.helpers import assert_close, some_slow
from tests.optimizers.inside import MAKE
from tests.replicas.training import compiled as replicated
from tests.training.accumulating import (
    INSIDE,
    K,
    M,
    accumulating,
    assert_same_weights,
    compiled,
    small,
    train,
    x,
    y,
)

# ---- another optimizer inside, which accumulates


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
