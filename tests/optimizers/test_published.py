"""What `as_published` makes of every class, and that `docs/papers.md` says so."""

import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.curvature import EKFAC, KFAC
from tests.strategies.networks import cross_entropy, labels, normal

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "papers.md"


def described(optimizer):
    """Value Hessian, terminal Hessian, information, form of the Gram matrices."""
    options = optimizer.options
    return options.value_hessian, options.terminal_hessian, options.information, options.gram


OUTER = ("outer_product", "outer_product")


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (btf.GTDDP.as_published(), (*OUTER, "cooperative", "exact")),
        (btf.DGNOpt.as_published(), (*OUTER, "cooperative", "exact")),
        (btf.DDPNOpt.as_published(), (*OUTER, "feedback", "exact")),
        (btf.DDPNOpt.as_published(paper="ddp"), ("per_sample", "full", "feedback", "exact")),
        (btf.DDPNOpt.as_published(terminal_hessian="full"), ("per_sample", "full", "feedback", "exact")),
        (btf.DGNOpt.as_published(terminal_hessian=2), ("per_sample", 2, "cooperative", "exact")),
        (btf.DDPNOpt.as_published(value_damping=0.1), ("per_sample", "outer_product", "feedback", "exact")),
        (btf.GTDDP.as_published(information="open"), ("batch", "matched", "open", "exact")),
        (btf.KFAC.as_published(), ("batch", "matched", "open", "exact")),
        (btf.EKFAC.as_published(gram="auto"), ("batch", "matched", "open", "auto")),
        (btf.KFAC.as_published(paper="gtddp"), (*OUTER, "cooperative", "exact")),
    ],
)
def test_the_letter_is_a_setting(optimizer, expected):
    assert described(optimizer) == expected
    again = type(optimizer).from_config(optimizer.get_config())
    assert described(again) == expected and again.curvature == optimizer.curvature


def test_cross_blocks_and_whole_patches_are_the_papers():
    patches = {"convolution": "patches"}
    assert btf.GTDDP.as_published().curvature == KFAC(cooperative="published", **patches)
    assert btf.GTDDP.as_published(curvature="ekfac").curvature == EKFAC(cooperative="published", **patches)
    assert btf.DGNOpt.as_published().curvature == KFAC(cooperative="published", cooperative_sign=-1, **patches)
    assert btf.DGNOpt.as_published(paper="gtddp").curvature.cooperative_sign == 1
    for alone in (btf.DDPNOpt.as_published(), btf.KFAC.as_published(), btf.GTDDP.as_published(information="feedback")):
        assert alone.curvature == KFAC(**patches)
    assert btf.GTDDP.as_published(curvature=KFAC()).curvature == KFAC()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(btf.GTDDP.as_published()))
    assert again.curvature == KFAC(cooperative="published", **patches)


def test_rates_are_those_of_the_class():
    assert float(btf.KFAC.as_published().learning_rate) == pytest.approx(0.01)
    assert float(btf.GTDDP.as_published(0.2).learning_rate) == pytest.approx(0.2)


def test_vanilla_ddp_has_a_line_search_and_linearised_dynamics():
    dense = btf.DDP.as_published(value_damping=0.5).dense
    assert (dense.second_order, dense.line_search, dense.value_damping) == (False, 10, 0.5)
    assert btf.DDP.as_published(line_search=0).dense.line_search == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: btf.GTDDP.as_published(paper="adam"), "`paper` must be one of 'ddp', 'ddpnopt', 'gtddp', 'dgnopt'"),
        (lambda: btf.DDP.as_published(paper="gtddp"), "`paper` must be 'ddp' or 'ddpnopt'"),
    ],
)
def test_a_paper_that_is_not_one_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def pair():
    """Two convolutions of one stage, then a shortcut."""
    inputs = layers.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    h = layers.Conv2D(3, 3, padding="same", activation="relu", name="stream")(x)
    s = layers.Conv2D(3, 1, name="shortcut")(x)
    x = layers.Add()([layers.Conv2D(3, 3, padding="same")(h), s])
    return btf.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_convolutions_of_one_stage_have_a_joint_metric_and_its_gram_matrix():
    model = pair()
    model.compile(btf.GTDDP.as_published(0.01), **cross_entropy())
    x, y = normal(8, 6, 6, 2), labels(8)
    losses = [float(model.train_on_batch(x, y)) for _ in range(6)]
    assert losses[-1] < losses[0]
    [coupling] = model.optimizer.couplings
    assert {model.game.players[k].name for k in coupling.players} == {"stream", "shortcut"}
    assert coupling.joint_gram
    plain = pair()
    plain.compile(btf.GTDDP.as_published(0.01, gram="auto"), **cross_entropy())
    plain.train_on_batch(x, y)
    assert not plain.optimizer.couplings[0].joint_gram  # 36 positions of 57 numbers are above the limit


def test_adaptive_alignment_is_rewarded_with_accuracies():
    inputs = layers.Input((4,))
    x = layers.Dense(3, activation="tanh")(inputs)
    h = layers.Dense(3, activation="tanh")(layers.Dense(3, activation="tanh")(x))
    model = btf.Model(inputs, layers.Dense(3)(layers.Add()([h, layers.Dense(3)(x)])))
    optimizer = btf.DGNOpt.as_published(0.01, alignment="adaptive")
    assert optimizer.reward == "held_out"
    model.compile(optimizer, metrics=["accuracy"], **cross_entropy())
    x, y = normal(16, 4), labels(16)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[btf.callbacks.AlignmentReward(x, y, every=1)])
    assert int(optimizer.pulls.numpy().sum()) == 6
    assert optimizer.pulls.shape[0] == 2


CALLS = re.findall(r"`((?:btf|keras)\.[^`]+\))`", PAGE.read_text())


def test_the_page_names_calls():
    assert len(CALLS) >= 20


def evaluated(call):
    return eval(call, {"btf": btf, "keras": keras})  # noqa: S307


@pytest.mark.parametrize("call", CALLS)
def test_calls_of_the_page_make_what_their_config_makes(call):
    optimizer = evaluated(call)
    again = type(optimizer).from_config(optimizer.get_config())
    assert keras.saving.serialize_keras_object(again) == keras.saving.serialize_keras_object(optimizer)
    if isinstance(optimizer, btf.GTDDP):
        assert re.search(r"\.as_(published|cited)\(", call)


@pytest.mark.slow
@pytest.mark.parametrize("call", sorted(set(CALLS)))
def test_calls_of_the_page_train(call):
    keras.utils.set_random_seed(1)
    optimizer = evaluated(call)
    inputs = layers.Input((4,))
    x = layers.Dense(4, activation="tanh")(inputs)
    x = layers.Add()([layers.Dense(4, activation="tanh")(layers.Dense(4, activation="tanh")(x)), layers.Dense(4)(x)])
    model = btf.Model(inputs, layers.Dense(3)(x))
    model.compile(optimizer, **cross_entropy())
    x, y = normal(8, 4), labels(8)
    first = float(model.train_on_batch(x, y))
    assert np.isfinite(first) and float(model.train_on_batch(x, y)) < first
