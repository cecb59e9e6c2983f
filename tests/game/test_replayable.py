"""The nonlinear roll-out refuses every model that a replay of its trace would train wrongly, and no other."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.game.stages import TracedGame
from tests.game.unreplayable import KINDS, FrozenNormalisation, RawTensorFlow, Tied, TwoLayers
from tests.helpers import assert_close, thinned
from tests.strategies.networks import NETWORKS, normal
from tests.zoo import ZOO, sgd_step

BATCH = 8


def nonlinear(rate=0.03, **options):
    return btf.GTDDP(rate, **{"curvature": "identity", "rollout": "nonlinear", **options})


def stepped(make, x, y, optimizer, eager=True, **compile_options):
    """Trainable values after one step from the same weights."""
    keras.utils.set_random_seed(0)
    model = make()
    if not model.built:
        model(x)
    model.compile(optimizer=optimizer, run_eagerly=eager, **compile_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train_on_batch(x, y)
    return [v.numpy() for v in model.trainable_variables]


def assert_sgd_at_a_vanishing_rate(make, x, y, optimizer, loss, rate=1e-7):
    """The step of `optimizer`, made for a rate, is that of Keras's SGD; what the model writes itself is left out."""
    start, theirs = (stepped(make, x, y, keras.optimizers.SGD(r), **loss()) for r in (0.0, rate))
    mine = stepped(make, x, y, optimizer(rate), **loss())
    gradients = [(a - b) / rate for a, b in zip(theirs, start, strict=True)]
    scale = max(np.max(np.abs(g)) for g in gradients)
    assert scale > 1e-3
    for k, (a, b, g) in enumerate(zip(mine, start, gradients, strict=True)):
        assert_close((a - b) / rate, g, rtol=1e-4, atol=1e-5 * scale, label=f"variable {k}")


def targets(kind, x):
    """Targets of the shape of the outputs."""
    keras.utils.set_random_seed(0)
    shape = tuple(kind.make()(x).shape)
    return normal(*shape, seed=7)


# ---- what is refused


@pytest.mark.parametrize("name", KINDS)
def test_it_is_refused_with_the_culprit_and_the_way_out(name):
    kind = KINDS[name]
    x, y = kind.inputs(BATCH), targets(kind, kind.inputs(BATCH))
    model = kind.make()
    model(x)
    model.compile(optimizer=nonlinear(), loss=kind.loss(), run_eagerly=True)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(ValueError, match=kind.names) as refused:
        model.train_on_batch(x, y)
    assert "`rollout` must be 'linear'" in str(refused.value)
    assert "Pass rollout='linear'" in str(refused.value)
    assert not model.optimizer.built
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.variables, before, strict=True))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", thinned([name for name, kind in KINDS.items() if kind.repeatable]))
def test_it_trains_under_the_default(name):
    kind = KINDS[name]
    x = kind.inputs(BATCH)
    make = lambda rate: btf.GTDDP(rate, curvature="identity")
    assert_sgd_at_a_vanishing_rate(kind.make, x, targets(kind, x), make, lambda: {"loss": kind.loss()})


def test_the_refusal_comes_from_fit_too():
    """There the trace is made while a function is traced; what it holds as constants must still be values."""
    model = Tied()
    model.compile(optimizer=nonlinear(), loss="mse")
    x = KINDS["tied head"].inputs(BATCH)
    with pytest.raises(ValueError, match="table/embeddings.*constant"):
        model.fit(x, normal(BATCH, 5, 12), verbose=0)


def test_a_game_that_is_refused_can_still_be_looked_at():
    model = Tied()
    model(KINDS["tied head"].inputs(BATCH))
    game = TracedGame(model)
    assert game.refusal
    lines = []
    game.summary(print_fn=lines.append)
    assert "dense" in lines[0]
    assert game.alignments.count == 1


def test_vanilla_ddp_names_the_optimizer_that_can():
    model = Tied()
    model(KINDS["tied head"].inputs(2))
    model.compile(optimizer=btf.DDP(), loss="mse")
    with pytest.raises(ValueError, match="table/embeddings.*Use GTDDP"):
        model.train_on_batch(KINDS["tied head"].inputs(2), normal(2, 5, 12))


# Of `tests/zoo`, what a replay would get wrong; every other model must follow the gradient.
REFUSED = {
    "spectral_normalization", "tied_embedding", "position_table", "own_weight", "raw_tensorflow", "python_branches",
    "folded", "folded_then_flat", "time_major", "time_major_square", "time_major_four", "reversed", "contrast",
    "one_batch_of_two", "folded_outputs", "counting", "inference_inside", "stateful_rnn", "moving_loss",
    "added_penalty", "own_penalty", "second_call", "without_regularizers",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("name", ZOO)
def test_no_model_of_the_zoo_trains_silently_wrong(name):
    rate, case = 1e-4, ZOO[name]._replace(eager=True)
    optimizer = nonlinear(rate)
    if name in REFUSED:
        with pytest.raises(ValueError, match="`rollout` must be 'linear'"):
            case.step(btf.Model, optimizer)
        return
    expected = sgd_step(case, rate)
    bound = 100 * rate * max(np.abs(step).max() for step in expected) + 2e-7  # leverage, of order rate; rounding
    for mine, theirs in zip(case.step(btf.Model, optimizer), expected, strict=True):
        assert_close(mine, theirs, atol=bound)


class Counting(layers.Layer):
    def __init__(self):
        super().__init__()
        self.count = 0

    def call(self, x):
        self.count += 1
        return x


def test_it_is_checked_once():
    """Also where the first batch tells the game of the size of its inputs."""
    inputs, counting = layers.Input((6,)), Counting()
    model = btf.Model(inputs, layers.Dense(3)(counting(inputs)))
    model.compile(optimizer=nonlinear(), loss="mse", run_eagerly=True)
    counting.count = 0
    model.optimizer.build(model.trainable_variables)
    assert counting.count == 3
    model.train_on_batch(normal(BATCH, 6), normal(BATCH, 3))
    assert counting.count == 5


# ---- what is read once and may have changed


class Gain(TwoLayers):
    def prepare(self):
        self.gain = 1.0

    def between(self, h):
        return h * self.gain


def test_an_attribute_that_changed_after_compile_is_refused_until_the_next():
    x, y = normal(BATCH, 6), normal(BATCH, 3, seed=1)
    model = Gain()
    model(x)
    model.compile(optimizer=nonlinear(), loss="mse", run_eagerly=True)
    model.train_on_batch(x, y)
    nodes = len(model.first._inbound_nodes)
    model.train_on_batch(x, y)
    assert len(model.first._inbound_nodes) == nodes
    model.gain = 10.0
    with pytest.raises(ValueError, match=r"(?s)two_layers.*'multiply' are no longer 1.0 but 10.0.*rollout='linear'"):
        model.train_on_batch(x, y)
    expected = np.mean((model(x).numpy() - y) ** 2)
    model.compile(optimizer=nonlinear(), loss="mse", run_eagerly=True)
    assert model.train_on_batch(x, y) == pytest.approx(expected, rel=1e-5)


# ---- the open-loop step replays nothing


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("make", [RawTensorFlow, FrozenNormalisation])
def test_the_open_loop_step_is_not_refused_unless_a_metric_reads_the_replay(make):
    x, y = normal(BATCH, 6), normal(BATCH, 3, seed=1)
    open_loop = lambda rate: nonlinear(rate, information="open")
    assert_sgd_at_a_vanishing_rate(make, x, y, open_loop, lambda: {"loss": "mse"})
    model = FrozenNormalisation()
    model(x)
    model.compile(optimizer=nonlinear(information="open", curvature="kfac"), loss="mse", run_eagerly=True)
    with pytest.raises(ValueError, match="'norm' is given training=False"):
        model.train_on_batch(x, y)


# ---- what is not refused


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "raw tensorflow"])
def test_plain_networks_are_replayed_and_follow_the_gradient(name):
    network = NETWORKS[name]
    x, y = network.data(4)
    assert_sgd_at_a_vanishing_rate(network.make, x, y, nonlinear, network.compile)


def masked():
    inputs = layers.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = layers.MultiHeadAttention(2, 2, dropout=0.1)(x, x, use_causal_mask=True)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(layers.LayerNormalization()(x))
    return btf.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def inference_in_a_functional_model():
    """Keras itself hands `training` of the model to its layers."""
    inputs = layers.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(6)(inputs), training=False)
    return btf.Model(inputs, layers.Dense(3)(layers.Dropout(0.5, seed=1)(x)))


def augmented():
    middle = [layers.RandomFlip(seed=1), layers.Rescaling(1 / 255), layers.Conv2D(3, 3), layers.BatchNormalization()]
    middle += [layers.SpatialDropout2D(0.2, seed=2), layers.GaussianNoise(0.1, seed=3), layers.MaxPooling2D()]
    return btf.Sequential([layers.Input((8, 8, 3)), *middle, layers.Flatten(), layers.Dense(3)])


class HoldsGraph(TwoLayers):
    """A constant that is one."""

    def prepare(self):
        self.adjacency = normal(6, 6)

    def between(self, h):
        return keras.ops.matmul(h, self.adjacency)


class Wrapped(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = layers.Dense(6), layers.BatchNormalization(), layers.Dense(3)

    def call(self, x):
        return self.head(self.norm(self.first(x), training=False))


REPLAYED = {
    "masks": (masked, lambda: np.array([[1, 2, 3, 0], [4, 5, 0, 0]])),
    "inference in a functional model": (inference_in_a_functional_model, lambda: normal(2, 6)),
    "augmentation": (augmented, lambda: normal(2, 8, 8, 3)),
    "a graph held by the model": (HoldsGraph, lambda: normal(2, 6)),
    "a model around a model": (lambda: btf.as_game(Wrapped()), lambda: normal(2, 6)),
    "sparse inputs": (
        lambda: btf.Model(i := layers.Input((6,), sparse=True), layers.Dense(3)(layers.Dense(4)(i))),
        lambda: None,
    ),
}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", REPLAYED)
def test_other_models_are_not_refused(name, policy):
    keras.mixed_precision.set_global_policy(policy)
    make, inputs = REPLAYED[name]
    model = make()
    if not model.built:
        model(inputs())
    assert TracedGame(model).refusal == ""


def test_the_check_leaves_weights_statistics_and_seeds_alone():
    """It runs the model three times."""
    network = NETWORKS["residual cnn"]
    model = network.make()
    before = [v.numpy() for v in model.variables] + [v.numpy() for v in model.seed_variables()]
    assert TracedGame(model).refusal == ""
    after = [*model.variables, *model.seed_variables()]
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(after, before, strict=True))
