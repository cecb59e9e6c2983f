"""The papers' form against `verification/references/published.py`, in float64, three steps each."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.curvature import Full
from tests.helpers import assert_close, thinned
from tests.training.test_step import RATE, block, chain, data, follow, players
from verification.references import published as reference
from verification.references.training import softmax_cost

pytestmark = pytest.mark.usefixtures("_float64")
READINGS = [
    *[("outer_product", scale, gain) for scale in ("mean", "batch", "sample") for gain in ("batch", "own")],
    *[("full", scale, "batch") for scale in ("mean", "batch", "sample")],  # the first two are one
    ("full", "sample", "own"), ("matched", "mean", "batch"), ("matched", "batch", "own"), (1, "mean", "own"),
]  # fmt: skip


def both(rate=RATE, information="cooperative", **readings):
    """The optimizer and the reference in one reading."""
    names = {"terminal": "terminal_hessian", "scale": "outer_scale", "gain": "outer_gain"}
    ours = {names.get(name, name): value for name, value in readings.items()}
    outer = readings.get("terminal", "outer_product") in {"outer_product", "matched"} and "value_damping" not in ours
    ours = {"value_hessian": "outer_product" if outer else "per_sample", "terminal_hessian": "outer_product"} | ours
    optimizer = btf.GTDDP(rate, curvature="identity", information=information, **ours)

    def step(network, x, costs, rate):
        return reference.train_step(network, x, costs, rate, information=information, **readings)

    return optimizer, step


@pytest.mark.parametrize(("terminal", "scale", "gain"), thinned(READINGS))
def test_every_reading_is_the_per_sample_recursion(terminal, scale, gain):
    follow(block, *both(terminal=terminal, scale=scale, gain=gain))


@pytest.mark.parametrize("information", ["feedback", "cooperative_open"])
@pytest.mark.parametrize("terminal", ["outer_product", "full"])
def test_every_information_structure(information, terminal):
    follow(block, *both(terminal=terminal, information=information))


@pytest.mark.parametrize(
    ("terminal", "scale"), thinned([("outer_product", "mean"), ("matched", "sample"), ("full", "mean")])
)
def test_a_tikhonov_term_on_the_value_hessian(terminal, scale):
    damping = 0.3 if scale == "sample" else 0.05
    optimizer, step = both(terminal=terminal, scale=scale, value_damping=damping)
    follow(block, optimizer, step)
    plain = btf.GTDDP(RATE, curvature="identity", value_hessian="per_sample", terminal_hessian=terminal,
                      outer_scale=scale)  # fmt: skip
    with pytest.raises(AssertionError, match="weights of"):
        follow(block, plain, step)


@pytest.mark.parametrize("terminal", ["outer_product", "full"])
def test_clamps_are_counted(terminal):
    rate, total = 40.0, []
    optimizer, step = both(rate, terminal=terminal, scale="sample")

    def counted(*arguments):
        new, loss, clamps = step(*arguments)
        total.append(clamps)
        return new, loss

    follow(chain, optimizer, counted, rate=rate)
    assert sum(total) > 0
    assert int(optimizer.clamped_values) == sum(total)


@pytest.mark.parametrize(
    ("terminal", "scale", "gain"),
    [("outer_product", "mean", "batch"), ("outer_product", "sample", "own"), ("full", "mean", "own")],
)
def test_regularizers_enter_every_reading(terminal, scale, gain):
    optimizer, step = both(terminal=terminal, scale=scale, gain=gain)

    def make():
        model, stages = block()
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.regularizer = layer.bias.regularizer = keras.regularizers.L2(0.0625)
        return model, stages

    def with_own_cost(network, x, costs, rate):
        new, loss, _ = reference.train_step(
            network, x, costs, rate, terminal=terminal, scale=scale, gain=gain,
            regularizer_gradient=lambda part: 0.125 * part,
        )  # fmt: skip
        return new, loss + 0.0625 * sum(np.sum(part**2) for _, U in network for part in U)

    follow(make, optimizer, with_own_cost)


@pytest.mark.parametrize(("scale", "terminal"), thinned(["mean", "sample"], ["outer_product", "full"]))
def test_the_metric_is_made_of_the_values_slope(terminal, scale):
    """`E[Q_u Q_u']`, not that of the back-propagated gradients: DDPN Table 2, DDP1 Eq. 15."""
    damping = 1.0
    optimizer = btf.GTDDP(
        RATE, curvature=Full(damping=damping, decay=0.0), terminal_hessian=terminal, outer_scale=scale,
        value_hessian="outer_product" if terminal == "outer_product" else "per_sample",
    )  # fmt: skip

    def metric(Q_u):
        return Q_u.T @ Q_u / len(Q_u) + damping * np.eye(Q_u.shape[1])

    def step(network, x, costs, rate):
        return reference.train_step(network, x, costs, rate, terminal=terminal, scale=scale, metric=metric)

    follow(chain, optimizer, step)


@pytest.mark.parametrize("terminal", ["outer_product", "full"])
def test_one_sample_is_no_special_case(terminal):
    x, labels = data()
    keras.utils.set_random_seed(3)
    model, stages = chain()
    optimizer, step = both(terminal=terminal)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network = [(f, players(model, names)) for names, f in stages]
    expected, _, _ = step(network, x[:1], [softmax_cost(labels[0])], RATE)
    model.train_on_batch(x[:1], labels[:1])
    for (names, _), parts in zip(stages, expected, strict=True):
        for actual, matrix in zip(players(model, names), parts, strict=True):
            assert_close(actual, matrix, rtol=1e-9)


def test_states_too_large_for_a_tikhonov_term_are_refused():
    model = btf.Sequential([layers.Input((4,)), layers.Dense(600, activation="tanh"), layers.Dense(3)])
    optimizer = btf.GTDDP.as_published(terminal_hessian="full", value_hessian="per_sample", value_damping=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="`value_damping` must be 0 for networks with states of more than 512 numbers"):
        model.train_on_batch(*data())
