"""`GTDDP` inside Keras: options it refuses, saved state that does not fit, bad batches, precision policies."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import thinned
from tests.strategies.networks import cross_entropy, labels, mlp, normal, residual_cnn


def data(batch=8):
    return normal(batch, 6), labels(batch)


def compiled(optimizer=None, make=mlp, **options):
    model = make()
    model.compile(optimizer=optimizer or btf.GTDDP(), **{**cross_entropy(), **options})
    return model


LIMITS = btf.curvature.GramLimits(sketch_above=0, memory=2**20)
BAD_OPTIONS = [
    ({"learning_rate": -1.0}, "`learning_rate` must be a finite number >= 0"),
    ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number"),
    ({"curvature": "hessian"}, "`curvature` must be one of 'identity'"),
    ({"curvature": 3}, "`curvature` must be one of"),
    ({"information": "perfect"}, "`information` must be one of 'open'"),
    ({"value_hessian": "exact"}, "`value_hessian` must be one of"),
    ({"terminal_hessian": "exact"}, "`terminal_hessian` must be one of 'matched', 'outer_product', 'full' or a rank"),
    ({"terminal_hessian": 0}, "`terminal_hessian` must be an integer >= 1"),
    ({"terminal_hessian": True}, "`terminal_hessian` must be one of"),
    ({"group_size": 0}, "`group_size` must be an integer >= 1"),
    ({"group_size": 2.0}, "`group_size` must be an integer >= 1"),
    ({"group_size": 2, "value_hessian": "block_diagonal"}, "`group_size` must be None with"),
    ({"value_hessian": "outer_product", "terminal_hessian": "full"}, "`terminal_hessian` must be 'matched' or"),
    ({"bilinear": 1}, "`bilinear` must be True or False"),
    ({"gram": "small"}, "`gram` must be one of"),
    ({"gram_memory": 0}, "`gram_memory` must be an integer >= 1"),
    ({"gram_memory": 1e9}, "`gram_memory` must be an integer >= 1"),
    ({"gram": LIMITS, "gram_memory": 2**20}, "`gram_memory` must be left out with gram=GramLimits"),
    ({"weight_decay": -0.1}, "`weight_decay` must be a finite number >= 0"),
    ({"clipnorm": "1"}, "`clipnorm` must be a finite number"),
    ({"global_clipnorm": 1.0, "rollout": "nonlinear"}, "`global_clipnorm` must be None with rollout='nonlinear'"),
    ({"value_hessian": "outer_product", "rollout": "linear"}, "`rollout` must be 'nonlinear' with"),
    ({"bilinear": True, "rollout": "linear"}, "`rollout` must be 'nonlinear' with bilinear=True"),
    ({"rollout": "circular"}, "`rollout` must be one of"),
    ({"outer_scale": "total"}, "`outer_scale` must be one of"),
    ({"outer_gain": "sample"}, "`outer_gain` must be one of"),
    ({"value_damping": -1.0}, "`value_damping` must be a finite number >= 0"),
    ({"value_damping": 1.0, "value_hessian": "outer_product"}, "`value_damping` must be 0 unless"),
    ({"value_hessian": "per_sample", "rollout": "linear"}, "`rollout` must be 'nonlinear' with"),
    ({"loss_scale_factor": 2.0}, "`loss_scale_factor` must be None"),
    ({"gradient_accumulation_steps": 1}, "`gradient_accumulation_steps` must be an integer >= 2"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_are_checked_when_it_is_made(options, message):
    with pytest.raises(ValueError) as raised:
        btf.GTDDP(**options)
    assert str(raised.value).startswith(message)
    assert "Received: " in str(raised.value)


def refuses(model, x, y, message):
    """A batch is refused with a message, and no weight has moved."""
    before = [v.numpy() for v in model.variables]
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, y)
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.variables, before, strict=True))


def test_a_rank_above_the_output_is_refused():
    refuses(compiled(btf.GTDDP(terminal_hessian=7)), *data(), "`rank` must be an integer from 1 to 3")


def test_an_empty_batch_is_refused():
    model = compiled()
    refuses(model, *data(0), "`x` must hold at least one sample")
    assert np.isfinite(model.train_on_batch(*data()))


@pytest.mark.parametrize("terminal_hessian", ["matched", "outer_product", 2, "full"])
def test_a_loss_without_a_batch_axis_takes_the_step_of_its_mean_over_samples(terminal_hessian):
    def scalar(y, z):
        return keras.ops.mean(keras.ops.square(z))

    def per_sample(y, z):
        return keras.ops.mean(keras.ops.square(z), axis=-1)

    moved = []
    for loss in (scalar, per_sample):
        keras.utils.set_random_seed(0)
        model = compiled(btf.GTDDP(terminal_hessian=terminal_hessian), loss=loss)
        before = [v.numpy() for v in model.trainable_variables]
        model.train_on_batch(*data())
        moved.append([v.numpy() - old for v, old in zip(model.trainable_variables, before, strict=True)])
    for one, other in zip(*moved, strict=True):
        assert np.abs(one).max() > 1e-4
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_wrong_shapes_and_dtypes_are_refused():
    x, y = data()
    refuses(compiled(), x[:, :4], y, "expected axis -1 of input shape to have value 6")
    refuses(compiled(loss="mse"), x, np.zeros((8, 2), "float32"), "shape|Dimensions|Incompatible")


def test_the_sizes_from_which_on_gram_matrices_are_approximated_are_options():
    model = residual_cnn()
    forms = lambda **options: set(btf.GTDDP(curvature="identity", **options).describe_grams(model.game))
    assert any("sketch" in form for form in forms(gram=LIMITS))
    assert not any("sketch" in form for form in forms())
    again = btf.GTDDP.from_config(btf.GTDDP(gram=LIMITS).get_config())
    assert again.options.gram_limits == LIMITS
    assert again.options.gram == "auto"
    assert btf.GTDDP.from_config(btf.GTDDP(gram="exact", gram_memory=9).get_config()).options.gram_limits.memory == 9
    for size in ({"sketch_above": -1}, {"buckets": 0}, {"memory": 0.5}):
        with pytest.raises(ValueError, match="must be an integer"):
            btf.curvature.GramLimits(**size)


def test_dynamic_loss_scaling_is_refused():
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(ValueError, match="`optimizer` must not be wrapped in dynamic loss scaling"):
        compiled()


def test_mixed_bfloat16_keeps_state_and_weights_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = compiled(make=residual_cnn)
    x, y = normal(8, 6, 6, 2), labels(8)
    losses = model.fit(x, y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    floats = [v for v in (*model.variables, *model.optimizer.variables) if "float" in v.dtype]
    assert {v.dtype for v in floats} == {"float32"}
    rounded = [
        np.array_equal(v.numpy(), tf.cast(tf.cast(v.numpy(), tf.bfloat16), tf.float32))
        for v in model.trainable_variables
    ]
    assert not all(rounded), "new weights have passed through bfloat16"


def test_it_compiles_from_its_registered_name():
    model = compiled("bellman_tf>GTDDP")
    assert type(model.optimizer) is btf.GTDDP
    assert np.isfinite(model.train_on_batch(*data()))


def test_members_of_the_family_fix_the_information():
    assert btf.DDPNOpt().options.information == "feedback"
    assert btf.KFAC().options.information == "open"


@pytest.mark.parametrize(
    ("make", "other", "name"),
    [(btf.KFAC, "adam", "KFAC"), (btf.KFAC, btf.curvature.EKFAC(), "KFAC"), (btf.EKFAC, "kfac", "EKFAC")],
)
def test_a_baseline_is_what_its_name_says(make, other, name):
    with pytest.raises(ValueError, match=rf"`curvature` must be .* or a bellman_tf.curvature.{name}. Received: "):
        make(curvature=other)


@pytest.mark.parametrize(
    "other", [btf.GTDDP(curvature="rmsprop"), btf.GTDDP(curvature="identity"), btf.GTDDP(use_ema=True)]
)
def test_state_of_another_optimizer_does_not_load(other):
    model, stranger = compiled(btf.GTDDP()), compiled(other)
    model.train_on_batch(*data())
    stranger.train_on_batch(*data())
    store: dict = {}
    stranger.optimizer.save_own_variables(store)
    before = [v.numpy() for v in model.optimizer.variables]
    with pytest.warns(UserWarning, match="Skipping variable loading.* because it has 17 variables whereas"):
        model.optimizer.load_own_variables(store)
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.optimizer.variables, before, strict=True))


def test_state_of_other_shapes_does_not_load():
    model = compiled()
    wider = btf.Sequential([layers.Input((6,)), layers.Dense(8), layers.Dense(5), layers.Dense(3)])
    wider.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(*data())
    wider.train_on_batch(*data())
    store: dict = {}
    wider.optimizer.save_own_variables(store)
    with pytest.raises(ValueError, match="`store` must hold shape"):
        model.optimizer.load_own_variables(store)


def test_state_of_as_many_variables_of_another_metric_does_not_load():
    model, stranger = compiled(btf.GTDDP()), compiled(btf.GTDDP(curvature="adam"))
    model.train_on_batch(*data())
    stranger.train_on_batch(*data())
    store: dict = {}
    stranger.optimizer.save_own_variables(store)
    before = [v.numpy() for v in model.optimizer.variables]
    assert len(stranger.optimizer.variables) == len(before)
    with pytest.warns(UserWarning, match="Skipping variable loading.* saved by an optimizer of another kind"):
        model.optimizer.load_own_variables(store)
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.optimizer.variables, before, strict=True))
    del store["layout"]  # a file of an earlier version
    with pytest.raises(ValueError, match="`store` must hold shape"):
        model.optimizer.load_own_variables(store)


def test_a_copy_of_a_built_optimizer_does_not_go_into_a_model_of_other_shapes():
    model = compiled()
    model.train_on_batch(*data())
    shallow = btf.Sequential([layers.Input((6,)), layers.Dense(3)])
    wider = btf.Sequential([layers.Input((6,)), layers.Dense(8), layers.Dense(5), layers.Dense(3)])
    for other, message in ((shallow, "`model` must give gtddp.* the 17 variables"), (wider, "`store` must hold shape")):
        other.compile(optimizer=copy.deepcopy(model.optimizer), **cross_entropy())
        before = other.get_weights()
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                other.train_on_batch(*data())
        assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))


def test_a_copy_goes_into_a_model_that_is_built_while_it_trains():
    def delayed():
        return btf.Sequential([layers.Dense(7, activation="tanh"), layers.Dense(3)])

    models = [delayed(), delayed()]
    models[0].compile(optimizer=btf.GTDDP(), **cross_entropy())
    x, y = data()
    models[0].train_on_batch(x, y)
    models[1].compile(optimizer=copy.deepcopy(models[0].optimizer), **cross_entropy())
    for _ in range(2):
        models[1].train_on_batch(x, y)
    assert int(models[1].optimizer.iterations) == 3, "the state is handed over once, not at every step"


@pytest.mark.parametrize(
    ("bad", "options"), thinned([np.nan, np.inf], [{}, {"jit_compile": True}, {"run_eagerly": True}])
)
def test_a_bad_batch_leaves_no_trace_but_a_count(bad, options):
    model = compiled(make=residual_cnn, metrics=["accuracy", "sparse_categorical_crossentropy"], **options)
    x, y = normal(8, 6, 6, 2), labels(8)
    poisoned = x.copy()
    poisoned[0, 1, 2, 0] = bad
    first = model.train_on_batch(x, y, return_dict=True)
    before = {v.path: v.numpy() for v in (*model.variables, *model.optimizer.variables)}
    logs = model.train_on_batch(poisoned, y, return_dict=True)
    assert np.isnan(logs.pop("loss"))  # nothing has been accepted since the metrics were reset
    assert all(np.isfinite(value) for value in logs.values())
    for variable in (*model.variables, *model.optimizer.variables):
        if not ({"rejected_batches", "rejected_in_a_row"} & set(variable.path.split("/")) or "seed" in variable.path):
            assert np.array_equal(variable.numpy(), before[variable.path]), variable.path
    assert int(model.optimizer.rejected_batches) == 1
    model.reset_metrics()
    assert model.train_on_batch(x, y, return_dict=True)["loss"] < first["loss"]


def test_a_first_bad_batch_does_not_poison_the_metrics():
    model = compiled(metrics=["sparse_categorical_crossentropy"])
    x, y = data()
    bad = x.copy()
    bad[1] = np.nan
    history = model.fit(
        np.concatenate([bad, x]), np.concatenate([y, y]), batch_size=8, shuffle=False, verbose=0
    ).history
    assert np.isfinite(list(history.values())).all()
    assert int(model.optimizer.rejected_batches) == 1


def test_an_overflowing_gradient_is_a_bad_batch_too():
    model = compiled()
    x, y = data()
    model.train_on_batch(x, y)
    before = model.get_weights()
    model.train_on_batch(np.sign(x) * np.float32(3e38), y)
    assert int(model.optimizer.rejected_batches) == 1
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
