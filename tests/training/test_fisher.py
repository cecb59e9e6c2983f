"""`fisher="model"`: metrics of the loss's Gauss-Newton matrix, from random cotangents of the outputs."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row
from tests.strategies.networks import labels, normal
from verification.references import kfac as reference

KFAC, EKFAC, Full = btf.curvature.KFAC, btf.curvature.EKFAC, btf.curvature.Full
HEAD = {"logistic": (1, keras.losses.BinaryCrossentropy(from_logits=True)), "square": (1, "mse"), "softmax": (
    3, keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)}  # fmt: skip


def network(outputs, seed=0):
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(4, activation="tanh", dtype="float64", name="hidden")
    last = layers.Dense(outputs, dtype="float64", name="last")
    return btf.Sequential([keras.Input((3,), dtype="float64"), hidden, last])


def batch(head):
    x, y = normal(6, 3).astype("float64"), labels(6)
    return x, y if head == "softmax" else (y % 2)[:, None].astype("float64")


def hessians(head, z):
    """d2phi/dz2 of every sample, `[B, C, C]`, from the formulas."""
    if head == "square":
        return np.full([len(z), 1, 1], 2.0)
    p = np.exp(z - z.max(-1, keepdims=True)) if head == "softmax" else 1 / (1 + np.exp(-z))
    if head == "logistic":
        return (p * (1 - p))[..., None]
    p /= p.sum(-1, keepdims=True)
    return np.einsum("bi,ij->bij", p, np.eye(p.shape[-1])) - p[:, :, None] * p[:, None, :]


def jacobians(model, x, layer):
    """Of all outputs in a layer's pre-activations, `[B, C, e]`, and in its parameters, rows (input, 1) by columns."""
    one, last = model.get_layer("hidden"), model.get_layer("last")
    W, V = one.kernel.numpy(), last.kernel.numpy()
    h = np.tanh(x @ W + one.bias.numpy())
    J = np.broadcast_to(np.eye(V.shape[1]), [len(x), *[V.shape[1]] * 2])
    if layer == "hidden":
        J = (1 - h**2)[:, None, :] * V.T[None]
    rows = np.concatenate([x if layer == "hidden" else h, np.ones([len(x), 1])], axis=1)
    return J, rows, h @ V + last.bias.numpy()


def gauss_newton(model, x, head, layer):
    """Kronecker factors, and the whole matrix over (input, output) pairs: kernel row by row, then the bias."""
    J, rows, z = jacobians(model, x, layer)
    H = hessians(head, z)
    moved = np.einsum("bci,bcd,bdj->bij", J, H, J)
    whole = np.einsum("br,bij,bs->risj", rows, moved, rows) / len(x)
    size = rows.shape[1] * J.shape[2]
    return reference.input_factor(rows[:, None]), moved.mean(0), whole.reshape(size, size)


def step(head, curvature, steps=1, rate=0.0, jit=False, model=None, **options):
    """Trains on one batch; with a rate of zero the network stays where it is."""
    outputs, loss = HEAD[head]
    model = model or network(outputs)
    x, y = batch(head)
    model.compile(btf.GTDDP(rate, curvature=curvature, **options), loss, jit_compile=jit)
    model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0, shuffle=False)
    return model, x


@pytest.mark.parametrize("information", ["open", "cooperative", "feedback"])
@pytest.mark.parametrize("head", ["logistic", "square"])
def test_of_one_output_the_factors_are_exact(head, information):
    model, x = step(head, KFAC(fisher="model", invert_every=1), 2, information=information)
    for state, layer in zip(model.optimizer.state, ["hidden", "last"], strict=True):
        A, B, _ = gauss_newton(model, x, head, layer)
        assert_close(state[0], A, rtol=1e-12, label="A")
        assert_close(state[1], B, rtol=1e-12, label="B")


@pytest.mark.parametrize("head", ["logistic", "square"])
def test_of_one_output_the_whole_matrix_and_ekfacs_moments_are_exact(head):
    model, x = step(head, Full(fisher="model"), 2)
    for state, layer in zip(model.optimizer.state, ["hidden", "last"], strict=True):
        assert_close(state[0], gauss_newton(model, x, head, layer)[2], rtol=1e-12, atol=1e-15)
    model, x = step(head, EKFAC(fisher="model", update_every=3, invert_every=3), 2)
    for state, layer in zip(model.optimizer.state, ["hidden", "last"], strict=True):
        _, _, whole = gauss_newton(model, x, head, layer)
        U = np.kron(state[2], state[3])
        assert_close(np.ravel(state[4]), np.diag(U.T @ whole @ U), rtol=1e-10, atol=1e-15)


def test_of_several_outputs_the_mean_over_steps_is_the_gauss_newton_matrix():
    steps = 150
    model, x = step("softmax", Full(fisher="model", decay=0.9999), steps)
    for state, layer in zip(model.optimizer.state, ["hidden", "last"], strict=True):
        expected = gauss_newton(model, x, "softmax", layer)[2]
        # A step's term is at most the squared length of its gradients, and the mean of N has a deviation of 1/sqrt(N).
        assert_close(state[0], expected, rtol=0, atol=5 * np.trace(expected) / np.sqrt(steps * len(x)))
    empirical, _ = step("softmax", Full(decay=0.9999), 1)
    off = np.abs(empirical.optimizer.state[1][0] - expected).max()
    assert off > 2 * np.abs(state[0] - expected).max()


@pytest.mark.parametrize("curvature", [KFAC, *(slow_row(c) for c in (EKFAC, Full))])
def test_xla_draws_the_same(curvature):
    (one, _), (other, _) = (step("softmax", curvature(fisher="model"), 3, 0.1, jit) for jit in (False, True))
    for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("jit", [False, slow_row(True)])
def test_it_draws_as_often_as_factors_are_updated(jit):
    """Of a layer with a matrix, and of one with the diagonal alone: no step in between has anything to draw."""

    keras.utils.set_random_seed(0)
    normalised = layers.LayerNormalization(dtype="float64")
    model = btf.Sequential([keras.Input((3,), dtype="float64"), normalised, layers.Dense(3, dtype="float64")])
    step("softmax", KFAC(fisher="model", update_every=3), jit=jit, model=model)
    assert {block.draws for block in model.optimizer.blocks} == {3}
    seen = []
    for _ in range(4):
        seen.append([np.array(model.optimizer.state[0][0]), np.array(model.optimizer.state[1][1])])
        model.train_on_batch(*batch("softmax"))
    for first, second, third, fourth in zip(*seen, strict=True):
        assert_close(second, first, rtol=0)
        assert_close(third, first, rtol=0)
        assert np.abs(fourth - first).max() > 1e-3
        assert np.abs(first).max() > 1e-3


def recurrent(inputs):
    return layers.LSTM(3)(layers.Conv1D(4, 2)(inputs))


def attentive(inputs):
    return layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 2, dropout=0.2, seed=1)(inputs, inputs))


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("hidden", [slow_row(recurrent), attentive])
def test_a_draw_that_is_not_due_in_every_step_keeps_its_shape(hidden):
    """The branch that draws knows no sizes here; the first step draws, whatever the period."""

    def after_a_step(period):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5, 3))
        model = btf.Model(inputs, layers.Dense(3)(hidden(inputs)))
        metric = KFAC(fisher="model", update_every=period)
        model.compile(btf.GTDDP(0.05, curvature=metric), HEAD["softmax"][1])
        model.fit(normal(8, 5, 3), labels(8), batch_size=8, verbose=0)
        return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])

    assert_close(after_a_step(2), after_a_step(1), rtol=1e-5, atol=1e-6)


def test_training_goes_on_with_the_draws_it_would_have_had(tmp_path):
    whole, _ = step("softmax", KFAC(fisher="model"), 6, 0.1)
    half, x = step("softmax", KFAC(fisher="model"), 3, 0.1)
    half.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    assert again.optimizer.curvature.fisher == "model"
    again.fit(x, batch("softmax")[1], batch_size=len(x), epochs=3, verbose=0, shuffle=False)
    for ours, theirs in zip(again.get_weights(), whole.get_weights(), strict=True):
        assert_close(ours, theirs, rtol=1e-12)


def test_players_with_losses_of_their_own_draw_from_their_own():
    """A layer that feels the squares alone has their Gauss-Newton matrix, which does not depend on the other head."""

    def trained(weight):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,), dtype="float64")
        h = layers.Dense(4, activation="tanh", dtype="float64", name="trunk")(inputs)
        outputs = {
            "a": layers.Dense(3, dtype="float64", name="a")(h),
            "b": layers.Dense(1, dtype="float64", name="b")(h),
        }
        model = btf.Model(inputs, outputs)
        model.get_layer("a").kernel.assign(weight * model.get_layer("a").kernel)
        optimizer = btf.GTDDP(
            0.0, curvature=Full(fisher="model"), information="feedback", player_losses={"trunk": ["b"]}
        )
        model.compile(optimizer, {"a": HEAD["softmax"][1], "b": "mse"})
        x = normal(6, 3).astype("float64")
        model.fit(x, {"a": labels(6), "b": x[:, :1]}, batch_size=6, verbose=0)
        return np.array(model.optimizer.state[0][0])

    assert_close(trained(1.0), trained(3.0), rtol=1e-12)
    assert np.abs(trained(1.0)).max() > 1e-3


def test_layers_without_a_matrix_get_the_diagonal_of_the_same_matrix():
    keras.utils.set_random_seed(0)
    normalise = layers.LayerNormalization(dtype="float64", name="scale")
    model = btf.Sequential([keras.Input((3,), dtype="float64"), normalise, layers.Dense(1, dtype="float64")])
    model.compile(btf.GTDDP(0.0, curvature=KFAC(fisher="model")), "mse")
    x = normal(6, 3).astype("float64")
    model.fit(x, x[:, :1], batch_size=6, verbose=0)
    V = model.layers[-1].kernel.numpy()[:, 0]
    normal_form = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + normalise.epsilon)
    assert model.optimizer.describe(model.game) == ["fisher diagonal of the model", "kfac 4 (x) 1 of the model"]
    gamma, beta = model.optimizer.state[0]
    assert_close(gamma, 2 * np.mean((normal_form * V) ** 2, axis=0), rtol=1e-10)
    assert_close(beta, 2 * V**2, rtol=1e-10)


def test_it_is_refused_where_it_cannot_be_had():
    for options in ({"rollout": "nonlinear"}, {"value_hessian": "outer_product"}):
        with pytest.raises(ValueError, match=r"`fisher` must be 'empirical' with rollout='nonlinear'"):
            btf.GTDDP(0.1, curvature=KFAC(fisher="model"), **options)
    with pytest.raises(ValueError, match=r"`fisher` must be one of 'empirical', 'model'"):
        Full(fisher="true")
