"""Second derivatives from the one call of the loss are those of J written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close, thinned
from tests.losses.cases import outer
from tests.losses.networks import CASES, Case, in_modes, make, terminal
from verification.references import losses as reference

MODES = ["eager", "graph", "jit"]
# Every case is run eagerly; compiled, in the usual suite, one of each kind: coupled and written in Python, several
# outputs, a loss or `compute_loss` of one's own. `test_terminal.py` compiles four more.
COMPILED = {
    "graph": {"dice on a softmax", "own compute_loss around a Keras loss"},
    "jit": {"two automatic outputs", "loss with its own __call__"},
}
TOLERANCE = 1e-7  # of the central differences
pytestmark = [
    pytest.mark.usefixtures("_float64"),
    pytest.mark.filterwarnings("ignore:.*received `from_logits=True`"),
]


def by_sample(flat, sizes, rows=3):
    """A vector over all outputs, one after the other, as `[rows, D]`."""
    parts = np.split(flat, np.cumsum([rows * s for s in sizes])[:-1])
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)


def expected(case, model_inputs, y):
    """Gradient `[B, D]` and Hessian `[B, D, B, D]` of B J."""
    sizes = [x.shape[1] for x in model_inputs]
    g, H = reference.derivatives(lambda z: 3.0 * case.cost(y, z), model_inputs)
    rows = np.stack([by_sample(row, sizes) for row in H])  # [n, B, D]
    n = len(g)
    order = by_sample(np.arange(n), sizes).astype(int)  # [B, D]
    return by_sample(g, sizes), rows[order]


def in_order(cost, model_inputs, tensors):
    """Tensors in the order of `cost.z` (closed forms first), put into the order of the outputs, flat."""
    sizes = [z.shape[1] for z in cost.z]
    return np.concatenate([np.asarray(tensors[sizes.index(x.shape[1])]) for x in model_inputs], axis=1)


def results(cost, at_z, at_values, vectors):
    heads = cost.heads(at_values)
    own = [next(v for v in vectors if v.shape[1] == t.shape[1]) for t in cost.z]
    products = [head.hessian_times(v) for head, v in zip(heads, cost.per_head(own), strict=True)]
    flat = []
    for product, head in zip(products, heads, strict=True):
        widths = [t.shape[1] for t in cost.z][len(flat) :] if head.kind == "automatic" else [product.shape[1]]
        flat += tf.split(product, widths, axis=1)
    matched = losses.terminal_curvature(cost, at_z, at_values).beta_squared
    columns = [losses.terminal_curvature(cost, at_z, at_values, rank).columns for rank in (2, "full")]
    return at_z, flat, matched, columns


def left_over(blocks, approximations):
    """Eigenvalues of what a factor leaves of each Hessian; unlike the factor they are unique when eigenvalues tie."""
    return np.linalg.eigvalsh(blocks - approximations)


def without_largest(blocks, rank):
    eigenvalues = np.linalg.eigvalsh(blocks)
    largest = eigenvalues[:, -rank:]
    return np.sort(np.concatenate([eigenvalues[:, :-rank], np.minimum(largest, 0.0)], axis=1), axis=1)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(
            name, mode, marks=[] if mode == "eager" or name in COMPILED[mode] else pytest.mark.slow, id=f"{name}-{mode}"
        )
        for name in CASES
        for mode in MODES
    ],
)
def test_products_coefficient_and_columns(name, mode):
    case = CASES[name]
    model, z, y, weights = make(case)
    rng = np.random.default_rng(1)
    vectors = [rng.normal(size=x.shape) for x in z]
    kept = {}

    def run(z, vectors):
        labels = [tf.constant(t) for t in y]
        scale = None if weights is None else tf.constant(weights)
        _, cost, at_z, at_values = terminal(model, z, labels, scale)
        kept.update(cost=cost, kinds=tuple(head.kind for head in cost.heads(at_values)))
        return results(cost, at_z, at_values, vectors)

    at_z, products, matched, columns = in_modes(mode, run)(
        [tf.constant(x) for x in z], [tf.constant(v) for v in vectors]
    )
    assert kept["kinds"] == case.kinds
    cost = kept["cost"]
    g, H = expected(case, z, y)
    assert_close(in_order(cost, z, at_z), g, rtol=1e-10, label="gradient")
    v = np.concatenate(vectors, axis=1)
    size = np.abs(H).max()
    assert size > 1e-3
    Hv = np.einsum("idje,je->id", H, v)
    assert_close(in_order(cost, z, products), Hv, atol=TOLERANCE * size, label="products")
    along = np.maximum(np.sum(g * np.einsum("idje,je->id", H, g), axis=1), 0.0)
    assert_close(matched, along / np.sum(g**2, axis=1) ** 2, rtol=1e-6, atol=1e-8, label="matched")
    blocks = np.stack([H[i, :, i] for i in range(3)])
    for rank, found in zip((2, g.shape[1]), columns, strict=True):
        Z = np.stack([in_order(cost, z, column) for column in found], axis=2)  # [B, D, r]
        assert_close(left_over(blocks, outer(Z)), without_largest(blocks, rank), atol=1e-6 * size, label=f"rank {rank}")


@pytest.mark.parametrize(
    "name", ["dice", "tversky", "own compute_loss around a Keras loss", "loss with its own __call__"]
)
def test_these_losses_do_couple_samples_so_the_blocks_are_tested(name):
    case = CASES[name]
    _, z, y, _ = make(case)
    _, H = expected(case, z, y)
    assert np.abs(H[0, :, 1]).max() > 1e-3 * np.abs(H).max()


@pytest.mark.parametrize("name", ["cosine", "subclass, weighted", "two automatic outputs"])
def test_a_sum_over_samples_needs_one_product_per_entry_and_is_exact(name):
    case = CASES[name]
    model, z, y, weights = make(case)
    _, cost, _, at_values = terminal(model, [tf.constant(x) for x in z], y, weights)
    [head] = cost.heads(at_values)
    assert head.separate
    _, H = expected(case, z, y)
    blocks = np.stack([H[i, :, i] for i in range(3)])
    for separate in (True, False):
        assert_close(head.curvature.hessian(separate), blocks, atol=TOLERANCE * np.abs(H).max())


class Counting(keras.losses.Loss):
    """Counts its evaluations in Python and in a variable."""

    def __init__(self, scalar):
        super().__init__()
        self.scalar, self.called = scalar, 0
        self.count = keras.Variable(0.0, trainable=False)

    def call(self, y_true, y_pred):
        self.called += 1
        self.count.assign_add(1.0)
        return keras.ops.mean(keras.ops.square(y_true - y_pred) ** 2, axis=None if self.scalar else -1)


@pytest.mark.parametrize(
    ("mode", "scalar", "terminal_hessian"), thinned(MODES, [False, True], ["matched", "outer_product", 2, "full"])
)
def test_a_loss_that_writes_is_called_once(mode, scalar, terminal_hessian):
    loss = Counting(scalar)
    model, z, y, _ = make(Case([None], None, loss))

    def run(z):
        _, cost, at_z, at_values = terminal(model, [z], [tf.constant(y[0])])
        found = losses.terminal_curvature(cost, at_z, at_values, terminal_hessian)
        return [part for part in (found.beta_squared, found.columns) if part is not None]

    compiled = in_modes(mode, run)
    for steps in (1, 2, 3):
        tf.nest.map_structure(lambda t: np.isfinite(t).all(), compiled(tf.constant(z[0])))
        assert float(loss.count) == steps
    assert loss.called == (3 if mode == "eager" else 1)


def test_masked_positions_have_no_curvature(rng):
    inputs = keras.Input([4, 3])
    model = keras.Model(inputs, keras.layers.Activation("sigmoid")(keras.layers.Masking()(inputs)))

    def loss(y_true, y_pred):
        return keras.ops.sum(keras.ops.exp(y_pred) * y_true, axis=-1)

    model.compile(loss=loss)
    z, y = rng.normal(size=[2, 4, 3]), rng.uniform(size=[2, 4, 3])
    z[0, 2:] = 0.0
    mask = np.any(z != 0, axis=-1)
    _, H = reference.derivatives(
        lambda t: 2.0 * np.sum(np.sum(np.exp(reference.sigmoid(t[0])) * y, axis=-1) * mask) / np.sum(mask), [z]
    )
    for mode in MODES:

        def run(z):
            _, cost, at_z, at_values = terminal(model, [z], [tf.constant(y)])
            return losses.terminal_curvature(cost, at_z, at_values, "full").columns

        Z = np.stack([np.reshape(column[0], [2, 12]) for column in in_modes(mode, run)(tf.constant(z))], axis=2)
        expected_blocks = [reference.best_approximation(H[k : k + 12, k : k + 12], 12) for k in (0, 12)]
        assert not np.asarray(outer(Z))[0, 6:].any()
        assert_close(outer(Z), np.stack(expected_blocks), atol=1e-7)


def test_class_weights_given_to_fit_are_in_the_curvature(rng):
    found = []

    class Watching(keras.Model):
        def train_step(self, data):
            x, y, weights = data
            _, cost, at_z, at_values = terminal(self, [x], [y], weights)
            found.append(losses.terminal_curvature(cost, at_z, at_values, "full").columns)
            return {"loss": 0.0}

    def loss(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred) ** 2

    inputs = keras.Input([3])
    model = Watching(inputs, keras.layers.Activation("softmax")(inputs))
    model.compile(loss=loss, run_eagerly=True)
    z, labels, class_weight = rng.normal(size=[3, 3]), np.array([0, 1, 2]), {0: 0.5, 1: 2.0, 2: 0.0}
    model.fit(z, labels, class_weight=class_weight, batch_size=3, shuffle=False, verbose=0)
    weight = np.array([0.5, 2.0, 0.0])

    def cost(t):
        p = reference.softmax(t[0])[range(3), labels]
        return np.sum(weight * np.log(p) ** 2)

    _, H = reference.derivatives(cost, [z])
    Z = np.stack([column[0] for column in found[0]], axis=2)
    nearest = [reference.best_approximation(H[k : k + 3, k : k + 3], 3) for k in (0, 3, 6)]
    assert_close(outer(Z), np.stack(nearest), atol=1e-7)
    assert not np.asarray(Z)[2].any()


def test_the_tapes_record_nothing_of_the_model():
    model, z, y, _ = make(CASES["dice"])
    x = tf.Variable(z[0])
    with tf.GradientTape() as tape:
        y_pred = model(2.0 * x, training=True)
        with losses.record_loss(losses.find_ends(y_pred), tape) as record:
            J = model.compute_loss(y=y[0], y_pred=y_pred)
    found = record.probe._inner.gradient(J, x)
    assert found is None
    assert tape.gradient(J, x) is not None


def test_logits_that_are_an_output_too_are_one_coordinate(rng):
    inputs = keras.Input([3])
    h = keras.layers.Activation("linear")(inputs)
    model = keras.Model(inputs, [h, keras.layers.Activation("softmax")(h)])
    model.compile(loss=["mse", "categorical_crossentropy"])
    z, y = rng.normal(size=[2, 3]), np.eye(3)[:2]
    _, cost, at_z, at_values = terminal(model, [tf.constant(z)], [tf.constant(y), tf.constant(y)])
    assert len(cost.z) == 1

    def J(t):
        return np.sum((t[0] - y) ** 2) / 3 - np.sum(y * np.log(reference.softmax(t[0])))

    g, H = reference.derivatives(J, [z])
    assert_close(np.ravel(at_z[0]), g, rtol=1e-12)
    Z = np.stack([c[0] for c in losses.terminal_curvature(cost, at_z, at_values, "full").columns], axis=2)
    assert_close(outer(Z), np.stack([H[:3, :3], H[3:, 3:]]), atol=1e-8)


def test_outputs_without_a_loss_have_no_part(rng):
    inputs = keras.Input([3])
    model = keras.Model(inputs, [keras.layers.Activation("softmax")(inputs), keras.layers.Dense(2)(inputs)])
    model.compile(loss=[keras.losses.Dice(), None])
    z = tf.constant(rng.normal(size=[2, 3]))
    _, cost, _, _ = terminal(model, [z], [tf.constant(np.eye(3)[:2]), None])
    assert [t.shape for t in cost.z] == [[2, 3]]


@pytest.mark.parametrize("mode", ["eager", "graph"])  # XLA has no CTC loss, nor has plain Keras under it
def test_a_loss_without_second_derivatives_counts_as_linear_beside_one_that_has_them(mode, rng):
    inputs = [keras.Input([6, 5]), keras.Input([4])]
    model = keras.Model(inputs, [keras.layers.Activation("linear")(x) for x in inputs])
    model.compile(loss=[keras.losses.CTC(dtype="float32"), keras.losses.CosineSimilarity(dtype="float64")])
    z, y = [rng.normal(size=[2, 6, 5]), rng.normal(size=[2, 4])], [np.array([[1, 2], [3, 1]]), rng.normal(size=[2, 4])]

    def run(z):
        _, cost, at_z, at_values = terminal(model, z, [tf.constant(t) for t in y])
        [head] = cost.heads(at_values)
        g = cost.per_head(at_z)[0]
        return at_z, head.hessian_times(g), losses.terminal_curvature(cost, at_z, at_values).beta_squared

    at_z, product, beta_squared = in_modes(mode, run)([tf.constant(t) for t in z])
    assert np.abs(at_z[0]).max() > 0.01
    assert not np.asarray(product)[:, :30].any()
    g, H = reference.derivatives(lambda t: np.sum(reference.cosine(y[1], t[0])), [z[1]])
    assert_close(product[:, 30:], (H @ g).reshape(2, 4), atol=1e-7)
    assert np.isfinite(beta_squared).all()
