"""Training with Gram matrices from mixtures of the whitened features that K-FAC's metric has."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, thinned
from tests.strategies.networks import labels, normal

KFAC, GramLimits = btf.curvature.KFAC, btf.curvature.GramLimits
ALL, SOME = GramLimits(feature_share=1, sketch_above=0), GramLimits(feature_share=2, sketch_above=0)
X, Y = normal(6, 4, 3).astype("float64"), labels(6)


def network(dtype="float64"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 3), dtype=dtype)
    h = layers.Dense(5, activation="tanh", dtype=dtype, name="first")(inputs)
    h = layers.Dense(4, activation="tanh", dtype=dtype, name="second", use_bias=False)(h)
    h = layers.GlobalAveragePooling1D(dtype=dtype)(h)
    return btf.Model(inputs, layers.Dense(3, dtype=dtype, name="last")(h))


def images():
    """Convolutions of one tap, whose bias has a moment of its own, or no bias."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 3), dtype="float64")
    h = layers.Reshape((2, 2, 3))(inputs)
    h = layers.Conv2D(5, 1, activation="tanh", dtype="float64", name="first")(h)
    h = layers.Conv2D(4, 1, activation="tanh", dtype="float64", name="second", use_bias=False)(h)
    h = layers.GlobalAveragePooling2D(dtype="float64")(h)
    return btf.Model(inputs, layers.Dense(3, dtype="float64", name="last")(h))


def compiled(model, gram, make=btf.GTDDP, **options):
    curvature = KFAC(damping=0.1, decay=0.5, invert_every=3, update_every=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make(0.3, curvature=curvature, gram=gram, **options), loss)
    return model


def trained(gram, steps=5, model=network, **options):
    model = compiled(model(), gram, **options)
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return model


def mixings(optimizer):
    return [v for v in optimizer.variables if v.name.endswith("feature_mixing")]


OPTIONS = [
    {}, {"information": "feedback"}, {"group_size": 4}, {"rollout": "nonlinear"}, {"terminal_hessian": "full"},
    {"step_control": "levenberg_marquardt"}, {"make": btf.DGNOpt, "players": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", thinned(OPTIONS))
def test_as_many_mixtures_as_features_are_the_exact_step(options):
    exact, mixed = trained("exact", **options), trained(ALL, **options)
    assert not mixings(exact.optimizer) and [v.shape for v in mixings(mixed.optimizer)] == [(4, 4), (5, 5)]
    assert_close(np.concatenate([w.ravel() for w in mixed.get_weights()]),
                 np.concatenate([w.ravel() for w in exact.get_weights()]), rtol=1e-9)  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"rollout": "nonlinear"}, {"terminal_hessian": "full"}], ids=str)
def test_convolutions_of_one_tap_have_mixtures_too(options):
    exact, mixed = trained("exact", model=images, **options), trained(ALL, model=images, **options)
    assert [v.shape for v in mixings(mixed.optimizer)] == [(3, 3), (5, 5)]
    for one, other in zip(mixed.get_weights(), exact.get_weights(), strict=True):
        assert_close(one, other, rtol=1e-9)


def test_some_mixtures_are_another_game_near_the_exact_one():
    start = network().get_weights()
    exact, some, plain = trained("exact", 1), trained(SOME, 1), trained("exact", 1, information="open")
    moved = [np.concatenate([(w - v).ravel() for v, w in zip(start, m.get_weights(), strict=True)])
             for m in (exact, some, plain)]  # fmt: skip
    gap, whole = (np.linalg.norm(other - moved[0]) for other in moved[1:])
    assert 0 < gap < whole


def test_what_is_kept_is_a_root_of_the_inverse_of_the_same_step():
    optimizer = trained(ALL, 5).optimizer
    for R, state in zip(mixings(optimizer), optimizer.state[:2], strict=True):
        assert_close(R.numpy() @ R.numpy().T, state[2], rtol=1e-12)
    for R, state in zip(mixings(trained(SOME, 5).optimizer), optimizer.state[:2], strict=True):
        assert R.shape == (len(state[2]), -(-len(state[2]) // 2))


def test_layers_without_positions_and_open_loops_keep_none():
    assert not mixings(trained(ALL, 1, information="open").optimizer)
    text = []
    model = compiled(network(), SOME)
    model.game_summary(print_fn=text.append)
    rows = {name: line for line in "\n".join(text).splitlines() for name in ("first", "second", "last") if name in line}
    assert [("1 of 2 features" in rows[name]) for name in ("first", "second", "last")] == [True, True, False]
    assert "factored" in rows["last"]


def test_a_saved_optimizer_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = trained(SOME, 5)
    half = trained(SOME, 2)
    half.save(tmp_path / "half.keras")
    half = keras.models.load_model(tmp_path / "half.keras")
    for _ in range(3):
        half.train_on_batch(X, Y)
    for one, other in zip(whole.get_weights(), half.get_weights(), strict=True):
        assert_close(one, other, rtol=1e-12)


def test_the_analysis_of_a_step_sees_the_same_gram_matrices():
    exact, mixed = (btf.analysis.value_hessian(trained(gram, 3), X, "second", Y) for gram in ("exact", ALL))
    assert_close(mixed, exact, rtol=1e-9)
