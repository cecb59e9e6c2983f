"""From observed losses to terminal data: alignment, several outputs, the matched coefficient, compilation."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close, slow_row
from tests.losses.cases import (
    EPS,
    dense,
    hessian_of_keras,
    observed_head,
    outer,
)
from tests.losses.networks import CASES, make, terminal
from verification.references import losses as reference


@pytest.mark.parametrize(
    ("labels", "z"),
    [([3], [3, 1]), ([3, 1], [3]), ([3], [3]), ([3, 4], [3, 4, 1]), ([3, 4, 1], [3, 4]), ([3, 1], [3, 4])],
    ids=str,
)
@pytest.mark.parametrize("make", [keras.losses.MeanSquaredError, keras.losses.Huber])
def test_ranks_are_aligned_as_keras_does(make, labels, z, rng):
    loss = make(dtype="float64")
    y_true, z = rng.normal(size=labels), rng.normal(size=z)
    f = rng.uniform(0.5, 2.0, size=loss.call(tf.constant(y_true), tf.constant(z)).shape)
    head = observed_head(loss, None, z, y_true, f)
    assert isinstance(head, losses.DiagonalHead)
    gradient, H = hessian_of_keras(loss, None, z, y_true, f)
    assert_close(head.gradient(), gradient, atol=1e-14)
    assert_close(dense(head, z), H, atol=1e-14)


def test_labels_that_stretch_the_output_are_left_to_automatic_differentiation(rng):
    loss = keras.losses.MeanSquaredError(dtype="float64")
    y_true, z, f = rng.normal(size=[2, 3]), rng.normal(size=[2, 1]), np.array([0.5, 2.0])
    head = observed_head(loss, None, z, y_true, f)
    assert head.kind == "automatic"
    assert_close(dense(head, z), hessian_of_keras(loss, None, z, y_true, f)[1], atol=1e-14)


def test_the_gradient_of_a_head_is_the_gradient_of_J(rng):
    x, y, sample_weight = rng.normal(size=[3, 4, 3]), rng.integers(-1, 5, size=[3, 4]), rng.uniform(size=[3, 4])
    inputs = keras.Input([4, 3])
    model = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    with tf.GradientTape() as tape:
        z = model(x)
        tape.watch(z)
        with losses.observe_losses(tape) as observed:
            J = model.compute_loss(x=x, y=y, y_pred=z, sample_weight=sample_weight)
    [observation] = observed
    slope, f = tape.gradient(J, [z, observation.values])
    head = losses.terminal_head(losses.recognise(observation.loss), observation, z, 3.0 * f)
    assert_close(head.gradient(), 3.0 * slope, rtol=1e-6)
    ignored = head.hessian_times(tf.ones_like(z) * tf.range(5.0)).numpy()[y == -1]
    assert ignored.size
    assert not ignored.any()


def test_columns_of_several_outputs_are_joint_vectors(rng):
    z = [rng.normal(size=[3, 4]), rng.normal(size=[3, 2])]
    a = observed_head(
        keras.losses.CategoricalCrossentropy(dtype="float64"), "softmax", z[0], np.eye(4)[:3], [1.0, 2.0, 0.5]
    )
    b = observed_head(
        keras.losses.BinaryCrossentropy(dtype="float64"), "sigmoid", z[1], np.ones([3, 2]), [0.1, 1.0, 9.0]
    )
    H = np.zeros([3, 6, 6])
    H[:, :4, :4], H[:, 4:, 4:] = dense(a, z[0]), dense(b, z[1])
    Z = np.concatenate(losses.hessian_factor([a, b]), axis=1)
    assert Z.shape == (3, 6, 3 + 2)
    assert_close(outer(Z), H, atol=1e-14)
    for rank in (1, 3, 6):
        Z = np.concatenate(losses.hessian_factor([a, b], rank), axis=1)
        assert Z.shape == (3, 6, rank)
        assert_close(outer(Z), np.stack([reference.best_approximation(h, rank) for h in H]), atol=1e-12)


def test_two_losses_on_one_output_add_up(rng):
    z, f = rng.normal(size=[2, 3]), np.array([1.0, 0.5])
    parts = [
        observed_head(keras.losses.MeanSquaredError(dtype="float64"), None, z, np.zeros([2, 3]), f),
        observed_head(keras.losses.Huber(dtype="float64"), None, z, np.ones([2, 3]), f),
    ]
    head = losses.SumOfHeads(tuple(parts))
    H = dense(parts[0], z) + dense(parts[1], z)
    assert_close(dense(head, z), H, rtol=1e-14)
    assert_close(outer(head.factor()), H, rtol=1e-14)
    assert_close(outer(head.top_factor(3)), H, rtol=1e-12)
    assert_close(losses.hessian_factor([head], 2)[0], head.top_factor(2))
    assert_close(head.gradient(), parts[0].gradient() + parts[1].gradient())


class Product(losses.Head):
    """A Hessian of which one product is known."""

    kind = "product"
    size = gradient = factor = top_factor = draw = None

    def __init__(self, product):
        self.product = product

    def hessian_times(self, v):
        return self.product


def coefficient(g, products):
    return losses.matched_coefficient([Product(Hg) for Hg in products], g)


@hypothesis.given(size=st.integers(1, 6), exponent=st.integers(-7, 7), convex=st.booleans(), seed=st.integers(0, 2**16))
def test_beta_squared_is_the_curvature_along_the_gradient(size, exponent, convex, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=[3, size, size])
    H = A @ np.swapaxes(A, 1, 2) if convex else A + np.swapaxes(A, 1, 2)
    g = rng.normal(size=[3, size]) * 10.0**exponent
    Hg = np.einsum("bij,bj->bi", H, g)
    cut = size // 2
    split = [(x[:, :cut], x[:, cut:, None]) for x in (g, Hg)]
    got = coefficient([tf.constant(x) for x in split[0]], [tf.constant(x) for x in split[1]])
    expected = [reference.matched_coefficient(a, h) for a, h in zip(g, H, strict=True)]
    # Rounding of u'Hu is eps |H|; where it cancels (H indefinite) the error is that, not relative to the result.
    bound = 20 * EPS["float64"] * np.linalg.norm(H, axis=(1, 2)) / np.sum(g**2, axis=1)
    assert (np.abs(got - expected) <= bound).all()
    assert (got.numpy() >= 0).all()


def test_beta_squared_of_a_softmax_is_the_formula_of_the_paper(rng):
    z = rng.normal(size=[3, 4])
    head = observed_head(keras.losses.CategoricalCrossentropy(dtype="float64"), "softmax", z, np.eye(4)[:3], np.ones(3))
    g = head.gradient().numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = (np.sum(p * g**2, axis=1) - np.sum(p * g, axis=1) ** 2) / np.sum(g**2, axis=1) ** 2
    got = losses.matched_coefficient([head], [head.gradient()])
    assert_close(got, expected, rtol=1e-13)


@pytest.mark.parametrize("compiled", [False, True])
def test_beta_squared_is_finite_whatever_comes(compiled):
    function = tf.function(coefficient, jit_compile=True) if compiled else coefficient
    sizes = np.float32([0.0, 1e-45, 1e-38, 1e-20, 1e-10, 3e-10, 3.4e-10, 1e-3, 1.0, 1e10, 3e38])
    g, Hg = (a.ravel() for a in np.meshgrid(sizes, np.concatenate([sizes, -sizes])))
    g, Hg = np.stack([g, g, 0 * g], axis=1), np.stack([Hg, 0 * Hg, Hg], axis=1)
    got = function([tf.constant(g)], [tf.constant(Hg)]).numpy()
    assert np.isfinite(got).all()
    assert (got >= 0).all()
    assert not got[g[:, 0] < 2e-10].any()  # |g|^2 = 2 g_0^2 below sqrt(tiny) = 1.08e-19
    assert got[(g[:, 0] > 3e-10) & (g[:, 0] < 2) & (Hg[:, 0] > 1e-3)].all()


def test_a_perfectly_fitted_sample_has_no_coefficient_and_a_nearly_fitted_one_a_bounded_hessian():
    y = tf.constant([[1.0, 2.0], [1.0, 2.0 + 1e-6]])
    head = observed_head(keras.losses.MeanSquaredError(), None, y.numpy(), [[1.0, 2.0], [1.0, 2.0]], [1.0, 1.0])
    g = head.gradient()
    beta_squared = losses.matched_coefficient([head], [g])
    assert beta_squared[0] == 0
    assert_close(beta_squared[1] * tf.reduce_sum(g[1] ** 2), 1.0, rtol=1e-6)  # 2 / C, the curvature itself


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("unknown batch size", "sigmoid into a categorical cross-entropy"),
        ("unknown batch size", "subclass, weighted"),
        ("unknown batch size", "two outputs"),
        ("unknown batch size", "dice"),
        ("jit", "subclass, weighted"),
        slow_row("jit", "two outputs"),
        slow_row("jit", "sigmoid into a categorical cross-entropy"),
        slow_row("jit", "dice"),
    ],
)
def test_compiled_is_eager(mode, name):
    case = CASES[name]
    model, z, y, _ = make(case)
    cast = lambda parts: [tf.constant(t, tf.float32) for t in parts]
    kept = []

    def run(z, y):
        _, cost, at_z, at_values = terminal(model, z, y)
        kept.append(cost.rows)
        found = [losses.terminal_curvature(cost, at_z, at_values, h) for h in ("matched", "outer_product", 2, "full")]
        # eigenvectors have no sign, and beta^2 of a small gradient amplifies rounding: what the recursion sees
        size = tf.add_n([tf.reduce_sum(g**2, axis=1) for g in at_z])
        factors = [[tf.stack(part, axis=2) for part in zip(*f.columns, strict=True)] for f in found[2:]]
        return found[0].beta_squared * size, found[1].beta_squared, [[outer_of(Z) for Z in part] for part in factors]

    def outer_of(Z):
        return tf.matmul(Z, Z, transpose_b=True)

    signature = [[tf.TensorSpec([None, t.shape[1]]) for t in part] for part in (z, y)]
    compiled = tf.function(run, jit_compile=mode == "jit", input_signature=None if mode == "jit" else signature)
    for batch in (1, 3):
        data = (cast([t[:batch] for t in z]), cast([t[:batch] for t in y]))
        eager = run(*data)
        assert kept[-1] == batch
        tf.nest.map_structure(lambda a, b: assert_close(a, b, rtol=1e-4, atol=1e-6), compiled(*data), eager)
    assert any(isinstance(rows, tf.Tensor) for rows in kept) == (mode != "jit")


def test_an_output_that_leads_to_another_has_a_gradient_of_its_own(rng):
    inputs = keras.Input([2])
    first = keras.layers.Activation("linear")(inputs)
    layer = keras.layers.Dense(3, use_bias=False)
    model = keras.Model(inputs, [first, layer(first)])
    model.compile(loss=["mse", "mse"])
    z, y = np.float32(rng.normal(size=[4, 2])), [np.zeros([4, 2], "float32"), np.ones([4, 3], "float32")]
    _, cost, at_z, at_values = terminal(model, [tf.constant(z)], [tf.constant(t) for t in y])
    second = z @ layer.kernel.numpy()
    slopes = [2 * z / 2, 2 * (second - 1) / 3]
    assert_close(at_z[0], slopes[0] + slopes[1] @ layer.kernel.numpy().T, rtol=1e-5)  # the tape's is the total
    size = [np.sum(g**2, axis=1) for g in slopes]
    expected = (size[0] * 2 / 2 + size[1] * 2 / 3) / (size[0] + size[1]) ** 2
    assert_close(losses.terminal_curvature(cost, at_z, at_values).beta_squared, expected, rtol=1e-5)


def test_two_names_for_one_output_add_up(rng):
    inputs = keras.Input([3])
    y = keras.layers.Activation("linear")(inputs)
    model = keras.Model(inputs, {"a": y, "b": y})
    model.compile(loss={"a": "mse", "b": "huber"})
    z = tf.constant(rng.normal(size=[2, 3]), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(z)
        y_pred = model(z)
        with losses.record_loss(losses.find_ends(y_pred), tape) as record:
            J = model.compute_loss(y={"a": tf.zeros_like(z), "b": tf.zeros_like(z)}, y_pred=y_pred)
    cost = losses.terminal_cost(record, J, 2.0, closed=True)
    [head] = cost.heads(tape.gradient(J, cost.values, output_gradients=tf.constant(2.0)))
    assert [part.kind for part in head.heads] == ["square", "huber"]
    curvature = (2.0 + (np.abs(z) <= 1)) / 3
    assert_close(head.hessian_times(tf.ones_like(z)), curvature, rtol=1e-6)


def test_outputs_with_different_numbers_of_rows_are_refused(rng):
    inputs = keras.Input([4, 3])
    fold = keras.layers.Lambda(lambda t: tf.reshape(t, [-1, 3]))
    model = keras.Model(inputs, [keras.layers.Activation("linear")(inputs), fold(inputs)])
    model.compile(loss=["mse", "mse"])
    z = tf.constant(rng.normal(size=[2, 4, 3]), tf.float32)
    with pytest.raises(ValueError, match="`outputs` must have one row per sample in every output that carries a loss"):
        terminal(model, [z], [tf.zeros([2, 4, 3]), tf.zeros([8, 3])])
    model.compile(loss=[None, "mse"])
    _, cost, at_z, at_values = terminal(model, [z], [None, tf.zeros([8, 3])])
    assert losses.terminal_curvature(cost, at_z, at_values).beta_squared.shape == [8]  # a folded batch has its own rows


def test_a_cost_that_does_not_read_the_outputs_has_no_curvature():
    class Constant(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return tf.reduce_sum(self.layers[-1].kernel ** 2)

    inputs = keras.Input([3])
    model = Constant(inputs, keras.layers.Dense(2)(inputs))
    model.compile()
    _, cost, at_z, at_values = terminal(model, [tf.ones([4, 3])], [tf.zeros([4, 2])])
    assert not losses.terminal_curvature(cost, at_z, at_values).beta_squared.numpy().any()
    columns = losses.terminal_curvature(cost, at_z, at_values, "full").columns
    assert len(columns) == 2
    assert not np.any(columns)


def test_no_output_and_no_such_hessian_are_refused():
    with losses.record_loss([]) as record:
        J = tf.constant(1.0)
    with pytest.raises(ValueError, match="`outputs` must hold a floating tensor"):
        losses.terminal_cost(record, J, 1.0, closed=True)
    model, z, y, _ = make(CASES["dice"])
    _, cost, at_z, at_values = terminal(model, [tf.constant(z[0], tf.float32)], y)
    with pytest.raises(ValueError, match="`terminal_hessian` must be one of 'matched', 'outer_product', 'full'"):
        losses.terminal_curvature(cost, at_z, at_values, "exact")
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 4"):
        losses.terminal_curvature(cost, at_z, at_values, 5)


def test_half_precision_outputs_have_single_precision_coefficients(rng):
    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.Activation("sigmoid", dtype="bfloat16")(inputs))
    model.compile(loss=keras.losses.Dice())
    z, y = np.float32(rng.normal(size=[3, 4])), np.float32(np.eye(4)[:3])
    _, cost, at_z, at_values = terminal(model, [tf.constant(z)], [tf.constant(y)])
    found = losses.terminal_curvature(cost, at_z, at_values)
    assert found.beta_squared.dtype == tf.float32
    assert losses.terminal_curvature(cost, at_z, at_values, 2).columns[0][0].dtype == cost.z[0].dtype == tf.bfloat16
    other = keras.Model(inputs, keras.layers.Activation("sigmoid")(inputs))
    other.compile(loss=keras.losses.Dice())
    _, cost, at_z, at_values = terminal(other, [tf.constant(z)], [tf.constant(y)])
    assert_close(found.beta_squared, losses.terminal_curvature(cost, at_z, at_values).beta_squared, rtol=5 * 2**-8)


def test_own_loss_computations_are_told_from_keras_s():
    model, *_ = make(CASES["cosine"])
    assert losses.keras_computes_loss(model)
    model.compute_loss = lambda **kwargs: tf.constant(0.0)
    assert not losses.keras_computes_loss(model)
    model, *_ = make(CASES["own compute_loss"])
    assert not losses.keras_computes_loss(model)
