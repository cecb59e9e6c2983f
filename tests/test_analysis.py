"""Feedback gains in factored form against dense ones, and the ablation of information structures."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.strategies.networks import cross_entropy, labels, normal
from verification.references import dense, vanilla

RATE = 0.4


pytestmark = pytest.mark.usefixtures("_float64")


def chain():
    keras.utils.set_random_seed(1)
    hidden = [layers.Dense(4, activation="tanh", name="a"), layers.Dense(3, activation="tanh", name="b")]
    model = btf.Sequential([layers.Input((5,)), *hidden, layers.Dense(3, name="c")])
    model.compile(btf.GTDDP(RATE, curvature="identity"), **cross_entropy())
    return model


def dense_gains(model, x, y):
    """K of every layer on the stacked state, from the dense recursion."""
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.layers]
    states, derivatives = vanilla.forward(x, weights)
    p = np.exp(states[-1]) / np.exp(states[-1]).sum(axis=1, keepdims=True)
    H = np.einsum("bi,ij->bij", p, np.eye(3)) - np.einsum("bi,bj->bij", p, p)
    v, M = dense.augment(p - np.eye(3)[y], H)
    gains = []
    for F_x, F_u, *_ in reversed(derivatives):
        gradient, hessian = dense.expand(v, M, F_x, F_u, l_uu=np.eye(F_u.shape[1]) / RATE)
        k, K = dense.minimise(gradient, hessian, F_x.shape[1])
        v, M = dense.follow(gradient, hessian, k, K)
        gains.insert(0, K)
    return gains


@pytest.mark.parametrize(("layer", "position"), [("b", 1), ("c", 2)])
def test_the_spectrum_is_that_of_the_dense_gain(rng, layer, position):
    model, x, y = chain(), rng.normal(size=(6, 5)), rng.integers(0, 3, 6)
    expected = np.linalg.svd(dense_gains(model, x, y)[position], compute_uv=False)
    for given in (y, None):  # the Hessian of softmax does not see the labels
        ours = btf.analysis.feedback_spectrum(model, x, layer, given)
        count = min(len(ours), len(expected))
        assert_close(ours[:count], expected[:count], rtol=1e-9)
        assert np.all(ours[count:] < 1e-9 * ours[0])


@pytest.mark.parametrize(("layer", "position", "width"), [("b", 1, 4), ("c", 2, 3)])
def test_the_maps_are_singular_vectors_of_the_common_response(rng, layer, position, width):
    model, x, y = chain(), rng.normal(size=(6, 5)), rng.integers(0, 3, 6)
    common = dense_gains(model, x, y)[position] @ np.tile(np.eye(width), (6, 1))
    _, values, directions = np.linalg.svd(common)
    maps = btf.analysis.feedback_maps(model, x, layer, count=2)
    assert maps.shape == (2, width) and values[1] > 1e-3 * values[0]
    assert_close(np.abs(maps @ directions[:2].T), np.eye(2), atol=1e-7)


def test_maps_of_convolutions_have_the_shape_of_images(rng):
    keras.utils.set_random_seed(1)
    convolutions = [layers.Conv2D(3, 3, activation="tanh"), layers.Conv2D(2, 3, name="second"), layers.Flatten()]
    model = btf.Sequential([layers.Input((7, 7, 1)), *convolutions, layers.Dense(3)])
    model.compile(btf.GTDDP(RATE, curvature="kfac"), **cross_entropy())
    x = rng.normal(size=(4, 7, 7, 1))
    before = model.get_weights()
    assert btf.analysis.feedback_maps(model, x, "second", count=3).shape == (3, 5, 5, 3)
    images = btf.analysis.feedback_maps(model, x, model.get_layer("second"), count=2, project=True)
    assert images.shape == (2, 7, 7, 1)
    assert_close(np.linalg.norm(images.reshape(2, -1), axis=1), np.ones(2), rtol=1e-6)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_looking_changes_nothing(rng):
    model, other = chain(), chain()
    x, y = rng.normal(size=(6, 5)), rng.integers(0, 3, 6)
    btf.analysis.feedback_spectrum(model, x, "c")
    for each in (model, other):
        each.train_on_batch(x, y)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("layer", "text"), [("a", "act behind the first stage"), ("z", "be a player with a Gram form")]
)
def test_layers_without_a_gain_are_refused(layer, text):
    with pytest.raises(ValueError, match=f"`layer` must {text}"):
        btf.analysis.feedback_spectrum(chain(), np.ones((2, 5)), layer)


def test_a_keras_optimizer_is_refused():
    model = chain()
    model.compile("sgd", **cross_entropy())
    with pytest.raises(ValueError, match="`model` must be compiled with an optimizer of this package"):
        btf.analysis.feedback_spectrum(model, np.ones((2, 5)), "c")


def test_the_ablation_compares_structures_from_the_same_seeds():
    def build():
        return btf.Sequential([layers.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(3)])

    def fit(model):
        return model.fit(normal(16, 5), labels(16), batch_size=8, epochs=1, verbose=0, shuffle=False)

    optimizer = functools.partial(btf.GTDDP, 0.5, curvature="identity")
    table = btf.analysis.information_ablation(build, fit, optimizer, seeds=(0, 1), **cross_entropy())
    assert list(table.losses) == ["O", "C", "O-CG", "C-CG"]
    assert table.losses["C"] == pytest.approx(table.losses["C-CG"])  # one player per stage
    assert table.losses["O"] == table.losses["O-CG"]  # and no cross blocks under the identity
    assert table.losses["O"][0] != table.losses["C"][0] and table.losses["O"][0] != table.losses["O"][1]
    name, mean, spread, gap = table.rows()[0]
    assert (name, gap) == ("O", 0.0) and spread > 0 and str(table).count("\n") == 4
    assert mean == pytest.approx(np.mean(table.losses["O"]))


def test_cooperation_is_cross_blocks_between_the_players_of_a_stage():
    """DGN Definition 8: open loop, with the joint curvature of a stage's players."""

    def build():
        x = layers.Input((5,))
        sides = [layers.Dense(4, activation="tanh")(x) for _ in range(2)]
        return btf.Model(x, layers.Dense(3)(layers.Add()(sides)))

    def fit(model):
        return model.fit(normal(16, 5), labels(16), batch_size=8, epochs=1, verbose=0, shuffle=False)

    optimizer = functools.partial(btf.GTDDP, 0.1, curvature="kfac")
    table = btf.analysis.information_ablation(build, fit, optimizer, seeds=(0,), **cross_entropy())
    assert len({values[0] for values in table.losses.values()}) == 4
    keras.utils.set_random_seed(0)
    model = build()
    joint = btf.curvature.KFAC(cooperative="exact")
    model.compile(btf.GTDDP(0.1, curvature=joint, information="open"), **cross_entropy())
    assert fit(model).history["loss"][-1] == table.losses["O-CG"][0]
