"""The whole step with joint metrics against `verification/references/cooperative.py`, in float64, three steps each."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.curvature import EKFAC, KFAC
from bellman_tf.training.game_step import GameStep
from tests.helpers import assert_close, round_of, slow_row, thinned
from verification.references import cooperative as reference
from verification.references import training

RATE, DAMPING, DECAY = 0.3, 0.05, 0.7


pytestmark = pytest.mark.usefixtures("_float64")


def dense(x, W):
    return x @ W[:-1] + W[-1]


def block(width=2):
    """`width` players in the second stage, each tanh; the third stage reads them side by side."""
    names = [f"side_{n}" for n in range(width)]
    units = [2, 3, 2][:width]
    inputs = layers.Input((4,))
    x = layers.Dense(3, activation="tanh", name="first")(inputs)
    sides = [layers.Dense(u, activation="tanh", name=name)(x) for name, u in zip(names, units, strict=True)]
    model = btf.Model(inputs, layers.Dense(3, name="last")(layers.Concatenate()([*sides, x])))
    everything = slice(None)
    stages = [
        (("first",), lambda x, U: np.tanh(dense(x, U[0]))),
        (tuple(names), lambda x, U: np.concatenate([*(np.tanh(dense(x, W)) for W in U), x])),
        (("last",), lambda x, U: dense(x, U[0])),
    ]
    return model, stages, [[everything], [everything] * width, [everything]]


def weights(model, names):
    found = [model.get_layer(name=name) for name in names]
    return [np.vstack([layer.kernel.numpy(), layer.bias.numpy()[None]]) for layer in found]


def data(batch=6):
    rng = np.random.default_rng(4)
    return rng.normal(size=(batch, 4)), rng.integers(0, 3, batch)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def curvature(kind, make=KFAC, **options):
    return make(damping=DAMPING, decay=DECAY, invert_every=1, cooperative=kind, **options)


def follow(optimizer, step, joint_kind, *, width=2, sign=1, rtol=1e-9):
    """Trains three steps both ways and compares losses and weights after each."""
    keras.utils.set_random_seed(3)
    model, stages, reads = block(width)
    x, y = data()
    costs = [training.softmax_cost(label) for label in y]
    model.compile(optimizer=optimizer, loss=cross_entropy())
    parameters = [weights(model, names) for names, _ in stages]
    joint = reference.Stages(reads, DAMPING, DECAY, joint_kind, sign)
    for _ in range(3):
        network = [(f, U) for (_, f), U in zip(stages, parameters, strict=True)]
        parameters, expected_loss = step(network, x, costs, RATE, joint)
        assert_close(model.train_on_batch(x, y), expected_loss, rtol=rtol, label="loss")
        for (names, _), expected in zip(stages, parameters, strict=True):
            for actual, matrix in zip(weights(model, names), expected, strict=True):
                assert_close(actual, matrix, rtol=rtol, label=f"weights of {names}")
    return model


def with_options(**options):
    return lambda *arguments: reference.train_step(*arguments, **options)


KINDS = [("exact", 1), ("published", 1), ("published", -1), ("rescale", 1), (False, 1)]


@pytest.mark.parametrize(("kind", "sign", "information"), thinned(KINDS, ["cooperative", "open"]))
def test_a_step_is_the_dense_one(kind, sign, information):
    optimizer = btf.GTDDP(
        RATE, curvature=curvature(kind, cooperative_sign=sign), information=information, rollout="nonlinear"
    )
    follow(optimizer, with_options(information=information), kind, sign=sign)


def test_a_step_with_a_full_terminal_hessian():
    optimizer = btf.GTDDP(RATE, curvature=curvature("exact"), terminal_hessian="full", rollout="nonlinear")
    follow(optimizer, with_options(terminal="full"), "exact")


def test_three_players_solve_to_the_tolerance():
    follow(
        btf.GTDDP(RATE, curvature=curvature("exact"), rollout="nonlinear"), with_options(), "exact", width=3, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["exact", "published"])
def test_the_papers_recursion_takes_joint_metrics(kind):
    optimizer = btf.GTDDP.as_published(RATE, curvature=curvature(kind), outer_scale="sample")
    follow(optimizer, reference.published_step, kind)


@pytest.mark.parametrize("make", [KFAC, EKFAC])
@pytest.mark.parametrize("kind", ["exact", "published"])
def test_the_recursion_sees_the_gram_matrix_of_the_joint_metric(kind, make):
    """Sum over the stage of what the step hands to the recursion: `Q' M^{-1} Q`, M^{-1} column by column."""
    keras.utils.set_random_seed(3)
    model, _, _ = block()
    model.compile(btf.GTDDP(RATE, curvature=curvature(kind, make), rollout="nonlinear"), cross_entropy())
    model.optimizer.build(model.trainable_variables)
    step = GameStep(round_of(model, tuple(map(tf.constant, data()))))
    step.differentiate()
    policy = step._sample_backward()
    [together] = {id(t): t for t in step.batch.together.values()}.values()
    captures = [step.derivatives.captures[player.index] for player in together.players]
    q = np.concatenate([np.reshape(part, (6, -1)) for c in captures for part in c.per_sample()], axis=1)
    shapes = [[v.shape for v in player.variables] for player in together.players]
    sizes = [int(np.prod(shape)) for own in shapes for shape in own]
    columns = []
    for unit in np.eye(sum(sizes)):
        pieces = iter(np.split(unit, np.cumsum(sizes)[:-1]))
        solved = together.metric.solve([[tf.constant(next(pieces).reshape(s)) for s in own] for own in shapes])
        columns.append(np.concatenate([np.ravel(part) for own in solved for part in own]))
    M_inv = np.array(columns)
    assert_close(M_inv, M_inv.T, rtol=1e-10)
    assert np.linalg.eigvalsh(M_inv).min() > 0
    grams = policy._solved[2]
    assert_close(grams[1], q @ M_inv @ q.T, rtol=1e-9)


def test_a_bilinear_step_reads_every_players_new_input():
    """The joint direction is formed before the second player's turn, from the state that the first stage has made."""
    read = {}
    for bilinear in (False, True):
        keras.utils.set_random_seed(3)
        model, _, _ = block()
        model.compile(
            btf.GTDDP(RATE, curvature=curvature("exact"), bilinear=bilinear, rollout="nonlinear"), cross_entropy()
        )
        model.optimizer.build(model.trainable_variables)
        step = GameStep(round_of(model, tuple(map(tf.constant, data()))))
        seen = read[bilinear] = []

        def gradient(player, w, inputs=None, *, seen=seen, inner=step._gradient):
            seen.append((player.name, inputs))
            return inner(player, w, inputs)

        step._gradient = gradient
        step.run()
    sides = {key: [inputs for name, inputs in seen if name.startswith("side")] for key, seen in read.items()}
    assert sides[False] == [None, None]
    first, second = sides[True]
    assert_close(first, second, rtol=1e-15)  # both read the new output of the first layer
    old = step.derivatives.forward.arguments[id(step.game.players[1].calls[0])][0][0]
    assert np.abs(first - old).max() > 1e-3


def test_regularizers_of_one_player_move_the_other():
    moved = {}
    for kind in ("exact", False):
        for strength in (0.0, 0.5):
            keras.utils.set_random_seed(3)
            model, _, _ = block()
            model.get_layer("side_0").kernel.regularizer = keras.regularizers.L2(strength) if strength else None
            model.compile(btf.GTDDP(RATE, curvature=curvature(kind), information="open"), cross_entropy())
            model.train_on_batch(*data())
            moved[kind, strength] = weights(model, ["side_1"])[0]
    assert np.array_equal(moved[False, 0.0], moved[False, 0.5])
    assert np.abs(moved["exact", 0.0] - moved["exact", 0.5]).max() > 1e-4


@pytest.mark.filterwarnings("ignore:.*Skipping variable loading.*")
@pytest.mark.parametrize("kind", ["exact", *(slow_row(kind) for kind in ("published", "rescale"))])
def test_it_saves_mid_run_and_continues_identically(kind, tmp_path):
    model, _, _ = block(3 if kind == "exact" else 2)
    curved = EKFAC(cooperative=kind, invert_every=3) if kind == "rescale" else KFAC(cooperative=kind, invert_every=3)
    model.compile(btf.GTDDP(RATE, curvature=curved), cross_entropy())
    x, y = data()
    for _ in range(2):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.curvature == curved
    for trained in (model, loaded):
        for _ in range(3):
            trained.train_on_batch(x, y)
    states = [(*trained.variables, *trained.optimizer.variables) for trained in (model, loaded)]
    for a, b in zip(*states, strict=True):
        assert np.array_equal(a, b), a.path


def test_a_bad_batch_leaves_the_cross_moments_alone():
    model, _, _ = block()
    model.compile(btf.GTDDP(RATE, curvature=KFAC(cooperative="exact")), cross_entropy())
    x, y = data()
    model.train_on_batch(x, y)
    before = [v.numpy() for v in model.optimizer.state[-1]]
    x[2, 1] = np.nan
    model.train_on_batch(x, y)
    assert all(np.array_equal(v, old) for v, old in zip(model.optimizer.state[-1], before, strict=True))


def images():
    """Two convolutions of unequal size in one stage, and two of equal size in the next."""
    inputs = layers.Input((8, 8, 2))
    a = layers.Conv2D(3, 3, strides=2, padding="same", name="wide")(inputs)
    b = layers.Conv2D(3, 3, strides=4, padding="same", name="narrow")(inputs)
    c = layers.Conv2D(2, 3, strides=2, padding="same", name="left")(a)
    d = layers.Conv2D(2, 1, strides=2, name="right")(a)
    outputs = layers.Dense(3, name="head")(layers.Flatten()(layers.Concatenate()([b, c, d])))
    return btf.Model(inputs, outputs)


def test_the_summary_says_who_is_coupled(capsys):
    model = images()
    model.compile(btf.GTDDP(curvature=KFAC(cooperative="exact", convolution="patches")), cross_entropy())
    model.game_summary()
    text = capsys.readouterr().out
    assert "kfac 19 (x) 3 (uncoupled: 16 positions against 4)" in text
    assert "kfac 19 (x) 3 (uncoupled: 4 positions against 16)" in text
    assert "kfac 28 (x) 2, exact with right" in text
    assert "kfac 4 (x) 2, exact with left" in text
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 2))
    losses = [float(model.train_on_batch(x, data()[1])) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert len(model.optimizer.couplings) == 1


def test_players_that_an_alignment_takes_apart_act_alone():
    """The shortcut may act later than its partner: then each has its own metric, and the moments go on."""
    steps = {}
    for kind in ("exact", False):
        keras.utils.set_random_seed(3)
        inputs = layers.Input((4,))
        x = layers.Dense(3, activation="tanh", name="first")(inputs)
        h = layers.Dense(3, activation="tanh", name="second")(layers.Dense(3, activation="tanh", name="main")(x))
        model = btf.Model(inputs, layers.Dense(3)(layers.Add()([h, layers.Dense(3, name="shortcut")(x)])))
        for alignment in ("asap", "alap"):
            keras.utils.set_random_seed(4)
            twin = keras.models.clone_model(model)
            twin.compile(btf.DGNOpt(RATE, curvature=curvature(kind), alignment=alignment), cross_entropy())
            for _ in range(2):
                twin.train_on_batch(*data())
            steps[kind, alignment] = np.concatenate([w.ravel() for w in twin.get_weights()])
            if kind:
                assert np.abs(twin.optimizer.state[-1][0]).max() > 0
    assert np.array_equal(steps["exact", "alap"], steps[False, "alap"])
    assert not np.allclose(steps["exact", "asap"], steps[False, "asap"])


@pytest.mark.parametrize("alignment", [slow_row("random"), "adaptive"])
def test_alignments_may_change_under_way(alignment):
    inputs = layers.Input((4,))
    x = layers.Dense(3, activation="tanh")(inputs)
    h = layers.Dense(3, activation="tanh")(layers.Dense(3, activation="tanh")(x))
    model = btf.Model(inputs, layers.Dense(3)(layers.Add()([h, layers.Dense(3)(x)])))
    curved = KFAC(cooperative="exact", invert_every=2)
    model.compile(btf.DGNOpt(RATE, curvature=curved, alignment=alignment), cross_entropy())
    losses = [float(model.train_on_batch(*data())) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_players_with_their_own_values_do_not_cooperate():
    with pytest.raises(ValueError, match=r"`cooperative` must be False with information='feedback'"):
        btf.DDPNOpt(curvature=KFAC(cooperative="exact"))


def test_without_cooperation_nothing_is_coupled():
    model, _, _ = block()
    model.compile(btf.GTDDP(curvature="kfac"), cross_entropy())
    model.train_on_batch(*data())
    assert model.optimizer.couplings == []
    assert len(model.optimizer.state) == len(model.game.players)
