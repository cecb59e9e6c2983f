"""Alignments chosen while training, and fictitious players against an explicit game on split weights."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row
from tests.strategies.networks import cross_entropy, labels, normal


def branches(activation="tanh"):
    """A branch of one layer beside one of three."""
    keras.utils.set_random_seed(0)
    inputs = layers.Input((6,))
    x = layers.Dense(5, activation=activation, name="stem")(inputs)
    y = x
    for k in range(3):
        y = layers.Dense(5, activation=activation, name=f"long_{k}")(y)
    y = layers.Dropout(0.1, seed=1)(y)
    z = layers.Dense(5, activation=activation, name="short")(x)
    return btf.Model(inputs, layers.Dense(3, name="head")(layers.Add()([y, z])))


def trained(steps=3, rate=0.5, network=branches, **options):
    model = network()
    model.compile(btf.DGNOpt(rate, **{"curvature": "identity", **options}), **cross_entropy())
    losses = [model.train_on_batch(normal(8, 6), labels(8)) for _ in range(steps)]
    return model, np.ravel(losses)


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def test_the_earliest_alignment_is_gtddp():
    model = branches()
    model.compile(btf.GTDDP(0.5, curvature="identity"), **cross_entropy())
    for _ in range(3):
        model.train_on_batch(normal(8, 6), labels(8))
    np.testing.assert_array_equal(flat(trained()[0]), flat(model))


def test_a_mapping_by_name_is_a_placement():
    np.testing.assert_array_equal(flat(trained(alignment={"short": 3})[0]), flat(trained(alignment="alap")[0]))


def test_with_the_nonlinear_pass_placements_differ():
    early, late = (flat(trained(alignment=alignment)[0]) for alignment in ("asap", "alap"))
    assert np.linalg.norm(early - late) > 1e-4 * np.linalg.norm(early)


@pytest.mark.usefixtures("_float64")
def test_placements_agree_to_the_order_in_which_the_network_is_linear():
    """Claims GTDDP-R1: the linear roll-out is the same for all; what is left is second order in the step's size."""
    gaps = []
    for rate in (1e-3, 1e-4):
        start = flat(branches())
        early, late = (flat(trained(1, rate, alignment=alignment)[0]) for alignment in ("asap", "alap"))
        gaps.append(np.linalg.norm(early - late) / np.linalg.norm(early - start))
    assert gaps[1] < gaps[0] / 50  # the relative gap falls like the square of the rate, or faster


@pytest.mark.parametrize("jit", [False, slow_row(True)])
def test_an_adaptive_step_is_the_step_of_the_alignment_it_drew(jit):
    model = branches()
    optimizer = btf.DGNOpt(0.5, curvature="identity", alignment="adaptive", seed=3, most_alignments=2)
    model.compile(optimizer, **cross_entropy(), jit_compile=jit)
    pulls, placements = np.zeros(2), optimizer.placements(model.game)
    names = [model.game.alignments.named(p) for p in placements]
    steps = 1 if jit else 2
    for _ in range(steps):
        before = model.get_weights(), [s.numpy() for s in model.seed_variables()]
        model.train_on_batch(normal(8, 6), labels(8))
        [drawn] = np.flatnonzero(optimizer.pulls.numpy() - pulls)
        pulls = optimizer.pulls.numpy()
        fixed = branches()
        fixed.compile(btf.DGNOpt(0.5, curvature="identity", alignment=names[drawn]), **cross_entropy(), jit_compile=jit)
        fixed.set_weights(before[0])
        for variable, value in zip(fixed.seed_variables(), before[1], strict=True):
            variable.assign(value)
        fixed.train_on_batch(normal(8, 6), labels(8))
        assert_close(flat(model), flat(fixed), rtol=1e-5)
    assert pulls.sum() == steps


def test_an_adaptive_step_traces_once_and_resumes_identically(tmp_path):
    model, _ = trained(2, alignment="adaptive", step_control="levenberg_marquardt", most_alignments=2)
    traces, step = [], model.train_step
    object.__setattr__(model, "train_step", lambda data: (traces.append(1), step(data))[1])
    model.train_function = None
    for _ in range(3):
        model.train_on_batch(normal(8, 6), labels(8))
    assert len(traces) == 1
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, again):
        for _ in range(2):
            each.train_on_batch(normal(8, 6), labels(8))
    np.testing.assert_array_equal(flat(model), flat(again))
    np.testing.assert_array_equal(model.optimizer.pulls, again.optimizer.pulls)
    assert int(again.optimizer.pulls.numpy().sum()) == 7


def test_a_bad_batch_teaches_nothing():
    model, _ = trained(2, alignment="adaptive")
    x = normal(8, 6)
    x[0, 0] = np.nan
    before = [v.numpy() for v in model.optimizer._memory]
    model.train_on_batch(x, labels(8))
    for was, now in zip(before, model.optimizer._memory, strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_held_out_reward_chooses_the_next_alignment():
    model, _ = trained(2, alignment="adaptive", reward="held_out")
    assert model.optimizer.pulls.numpy().sum() == 0
    for reward in (0.2, 0.9, 0.4):
        model.optimizer.give_reward(reward)
        model.train_on_batch(normal(8, 6), labels(8))
    assert model.optimizer.pulls.numpy().sum() == 3
    with pytest.raises(ValueError, match="`reward` must"):
        model.optimizer.give_reward(float("nan"))


def test_a_network_without_movable_players_trains():
    def chain():
        return btf.Sequential([layers.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(3)])

    model, losses = trained(alignment="adaptive", network=chain)
    assert np.isfinite(losses).all()
    assert model.game.alignments.count == 1


@pytest.mark.parametrize("players", [1, 2, 5])
@pytest.mark.usefixtures("_float64")
def test_fictitious_players_are_an_explicit_game_on_split_weights(players):
    """theta = theta_1 + ... + theta_N, every pair coupled by the curvature C, gamma I for each: solved jointly."""
    keras.utils.set_random_seed(4)
    model = btf.Sequential([layers.Input((3,)), layers.Dense(2)])
    config = btf.curvature.Full(damping=0.3)
    model.compile(btf.DGNOpt(0.7, players=players, curvature=config, information="open"), "mse")
    x, y = normal(6, 3).astype("float64"), normal(6, 2).astype("float64")
    [layer] = model.layers
    before = np.concatenate([layer.kernel.numpy().ravel(), layer.bias.numpy()])
    error = model.predict(x, verbose=0) - y  # gradient of each sample's mean over two outputs
    q = np.array([np.concatenate([np.outer(a, e).ravel(), e]) for a, e in zip(x, error, strict=True)])
    C, g = q.T @ q / 6, q.mean(axis=0)
    joint = np.kron(np.ones((players, players)), C) + 0.3 * np.eye(players * len(g))
    each = np.linalg.solve(joint, np.tile(g, players)).reshape(players, -1)
    model.train_on_batch(x, y)
    after = np.concatenate([layer.kernel.numpy().ravel(), layer.bias.numpy()])
    assert_close(after, before - 0.7 * each.sum(axis=0), rtol=1e-9)


def test_without_damping_players_multiply_the_rate():
    twice = flat(trained(rate=0.1, players=2)[0])
    np.testing.assert_array_equal(twice, flat(trained(rate=0.2)[0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"players": 0}, "`players` must"),
        ({"alignment": "soon"}, "`alignment` must"),
        ({"reward": "praise"}, "`reward` must"),
        ({"most_alignments": 0}, "`most_alignments` must"),
        ({"seed": -1}, "`seed` must"),
        ({"bandit": "two-armed"}, "`bandit`"),
        ({"alignment": "adaptive", "information": "open"}, "`alignment` must"),
    ],
)
def test_options_outside_their_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        btf.DGNOpt(**options)


@pytest.mark.parametrize("alignment", [{"nobody": 1}, {"short": 4}, {"stem": 1}])
def test_impossible_placements_are_refused_and_weights_stay(alignment):
    model = branches()
    before = flat(model)
    model.compile(btf.DGNOpt(alignment=alignment), **cross_entropy())
    with pytest.raises(ValueError, match="`alignment` must .* Received"):
        model.train_on_batch(normal(8, 6), labels(8))
    np.testing.assert_array_equal(before, flat(model))
