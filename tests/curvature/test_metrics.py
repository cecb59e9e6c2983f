"""Blocks and their metrics: statistics equal the published formulas, solves equal dense solves."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import Step
from bellman_tf.curvature.coverage import coverage, make_block, player_layout
from bellman_tf.curvature.diagonal import DiagonalFisherBlock
from tests.curvature.cases import CASES, automatic, draw, flat
from tests.helpers import assert_close
from tests.strategies.matrices import seeds
from verification.references import capture as layers
from verification.references import diagonal, kfac

RATE = 0.3
DAMPING = 0.05
KRONECKER = {
    "dense": {},
    "dense without bias": {},
    "dense rank 3": {},
    "dense one position": {},
    "einsum two features": {},
    "einsum inputs apart": {},
    "conv 2d stride 2": {"convolution": "sua"},
    "conv 2d without bias": {"convolution": "patches"},
    "conv 2d dilated": {"convolution": "autocorrelation"},
    "conv 1d causal": {"convolution": "patches"},
    "conv 1d": {"convolution": "autocorrelation"},
    "conv 2d even": {"convolution": "sua"},
    "conv 2d one by one": {"convolution": "sua"},
    "conv 2d one by one stride 2": {"convolution": "sua"},
    "conv 3d": {"convolution": "sua"},
}


class Statistics(NamedTuple):
    """What a reference needs of one batch: pixels, augmented rows `[B, L, n]`, cotangents `[B, L, e]`, gradients."""

    pixels: np.ndarray | None
    rows: np.ndarray
    c: np.ndarray
    q: np.ndarray


def statistics(sample):
    """From the layer's definition; einsum layers only through automatic differentiation and their own layout."""
    layer, x, c = sample.layer, sample.inputs.numpy(), sample.cotangents[0].numpy()
    found, pixels = coverage(layer), None
    if found.convolution:
        pixels = x
        out, padding = c.shape[1:-1], layer.padding
        p = layers.patches(x, out, layer.kernel_size, layer.strides, layer.dilation_rate, padding)
        rows = p.reshape(*p.shape[:2], -1)
    elif found.kind == "einsum dense":
        order = (0, 1, 3, 2, 4) if layer.equation.startswith("adbe") else None
        x = x.transpose(0, 2, 1, 3) if order else x
        rows = x.reshape(len(x), x.shape[1], -1)
    else:
        rows = x.reshape(len(x), -1, x.shape[-1])
    positions = c.reshape(len(c), rows.shape[1], -1)
    if found.matrix.bias_shape is not None:
        rows = np.concatenate([rows, np.ones_like(rows[..., :1])], axis=-1)
    return Statistics(pixels, rows, positions, flat(automatic(sample), 2)[:, 0])


class Player:
    """One layer with a block that has seen a few batches."""

    def __init__(self, config, name, rng, steps=1, batch=4, rate=RATE):
        self.samples = [draw(CASES[name], rng, batch=batch)]
        layer = self.samples[0].layer
        for _ in range(steps - 1):
            fresh = draw(CASES[name], rng, batch=batch)
            self.samples.append(fresh._replace(layer=layer))
        self.layer, self.shapes = layer, self.samples[0].shapes
        self.block = make_block(config, player_layout(name, self.shapes, coverage(layer)))
        initial = {"zeros": np.zeros, "ones": np.ones, "identity": lambda shape: np.eye(*shape)}
        self.state = [tf.constant(initial[spec.initial](spec.shape), tf.float64) for spec in self.block.state_specs()]
        self.states = []
        for t, sample in enumerate(self.samples):
            step = Step(tf.constant(t, tf.int64), tf.constant(rate, tf.float64))
            capture = sample.capture
            self.state, self.metric = self.block.update(
                self.state, capture, capture.gradient(capture.mean_weights()), step
            )
            self.states.append(self.state)

    def assert_solves(self, M, rng, rtol=1e-10):
        """`solve`, with one vector, leading axes, and one tap or the bias alone, against the dense metric."""
        parts = [rng.normal(size=(2, 3, *shape)) for shape in self.shapes]
        solved = self.metric.solve([tf.constant(part) for part in parts])
        expected = np.linalg.solve(M, flat(parts, 2).reshape(6, -1).T).T.reshape(2, 3, -1)
        assert_close(flat(solved, 2), expected, rtol=rtol, label="solve with leading axes")
        for part, solution in zip(self.metric.solve([tf.constant(p[1, 2]) for p in parts]), solved, strict=True):
            assert_close(part, solution[1, 2], rtol=rtol, label="solve one by one")
        if self.metric.tapwise and coverage(self.layer).convolution:
            self._assert_solves_taps(M, rng, rtol)

    def _assert_solves_taps(self, M, rng, rtol):
        kernel_shape = self.shapes[0]
        taps = int(np.prod(kernel_shape[:-2]))
        for tap in {0, taps // 2, taps - 1}:
            kernel = np.zeros((taps, *kernel_shape[-2:]))
            kernel[tap] = rng.normal(size=kernel_shape[-2:])
            parts = [kernel.reshape(kernel_shape)] + [np.zeros(shape) for shape in self.shapes[1:]]
            expected = np.linalg.solve(M, flat([p[None] for p in parts])[0])[: kernel.size].reshape(kernel.shape)
            assert not np.delete(expected, tap, 0).any() or np.abs(np.delete(expected, tap, 0)).max() < 1e-12
            for index in (tap, tf.constant(tap)):
                solved = self.metric.solve_tap(tf.constant(kernel[tap]), index)
                assert_close(solved, expected[tap], rtol=rtol, label=f"solve_tap {tap}")
        if len(self.shapes) > 1:
            bias = rng.normal(size=(2, *self.shapes[1]))
            zero = np.zeros((2, kernel.size))
            expected = np.linalg.solve(M, np.concatenate([zero, bias], 1).T).T[:, kernel.size :]
            assert_close(self.metric.solve_bias(tf.constant(bias)), expected, rtol=rtol, label="solve_bias")


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "group norm"])
def test_identity_is_the_learning_rate(name, rng):
    player = Player(options.Identity(), name, rng)
    size = sum(int(np.prod(shape)) for shape in player.shapes)
    player.assert_solves(np.eye(size) / RATE, rng)


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "separable 2d"])
def test_rmsprop_is_its_formula(name, rng):
    player = Player(options.RMSprop(rho=0.8, epsilon=1e-3), name, rng, steps=3)
    gradients = [flat(automatic(sample), 2)[:, 0].mean(axis=0) for sample in player.samples]
    player.assert_solves(np.diag(diagonal.rmsprop(gradients, 0.8, 1e-3, RATE)), rng)


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "batch norm"])
def test_adam_is_its_formula(name, rng):
    player = Player(options.Adam(beta_1=0.7, beta_2=0.9, epsilon=1e-3), name, rng, steps=3)
    gradients = [flat(automatic(sample), 2)[:, 0].mean(axis=0) for sample in player.samples]
    M = diagonal.adam(gradients, 0.9, 1e-3, RATE)
    player.assert_solves(np.diag(M), rng)


def test_adam_averages_the_direction(rng):
    """Three steps with gradients that are not those of the metric, as feedback makes them."""
    config = options.Adam(beta_1=0.7, beta_2=0.9, epsilon=1e-3)
    player = Player(config, "dense", rng)
    state, directions, count = player.state, [], len(player.shapes)
    for t in range(3):
        capture = player.samples[0].capture
        step = Step(tf.constant(t, tf.int64), tf.constant(RATE, tf.float64))
        state, metric = player.block.update(state, capture, capture.gradient(capture.mean_weights()), step)
        directions.append([rng.normal(size=shape) for shape in player.shapes])
        moved, changed = metric.step([tf.constant(d) for d in directions[-1]])
        assert sorted(changed) == list(range(count))
        state = [changed.get(k, part) for k, part in enumerate(state)]
    expected = diagonal.adam_direction([flat([d[None] for d in ds])[0] for ds in directions], 0.7)
    assert_close(flat([m[None] for m in moved])[0], flat([d[None] for d in metric.inverse])[0] * expected, rtol=1e-12)


def diagonal_fisher(samples, found):
    """Metric of the diagonal Fisher block after seeing the samples; `found` is what `coverage` said."""
    block = DiagonalFisherBlock(player_layout("p", samples[0].shapes, found), DAMPING, 0.6)
    state = [tf.zeros(spec.shape, tf.float64) for spec in block.state_specs()]
    for t, sample in enumerate(samples):
        capture = sample.capture
        step = Step(tf.constant(t, tf.int64), tf.constant(RATE, tf.float64))
        state, metric = block.update(state, capture, capture.gradient(capture.mean_weights()), step)
    return metric


@pytest.mark.parametrize("name", ["dense", "conv 2d groups", "depthwise 2d", "layer norm", "einsum batched kernel"])
def test_the_diagonal_is_that_of_the_fisher_matrix(name, rng):
    player = Player(options.Identity(), name, rng, steps=3)
    moments = [diagonal.fisher(flat(automatic(sample), 2)[:, 0]) for sample in player.samples]
    player.metric = diagonal_fisher(player.samples, coverage(player.layer))
    player.assert_solves(np.diag(np.diag(diagonal.running_mean(moments, 0.6)) + DAMPING) / RATE, rng)


def test_the_diagonal_of_an_embedding_takes_repeated_tokens_as_other_samples(rng):
    """Exact where no sample repeats a token; where one does, each occurrence counts for itself."""
    player = Player(options.Identity(), "embedding", rng)
    [sample] = player.samples
    expected = np.zeros(player.shapes[0])
    for i, l in np.ndindex(*sample.inputs.shape):
        expected[sample.inputs[i, l]] += sample.cotangents[0][i, l].numpy() ** 2 / len(sample.inputs)
    player.metric = diagonal_fisher([sample], coverage(player.layer))
    player.assert_solves(np.diag(expected.ravel() + DAMPING) / RATE, rng)

    once = sample._replace(inputs=tf.constant(np.stack([rng.permutation(5) for _ in range(4)])))
    once = once._replace(cotangents=[sample.cotangents[0][:, :5]])
    player.metric = diagonal_fisher([once], coverage(player.layer))
    player.assert_solves(np.diag(np.diag(diagonal.fisher(flat(automatic(once), 2)[:, 0])) + DAMPING) / RATE, rng)


def test_an_open_loop_player_squares_its_mean_gradient(rng):
    player = Player(options.Identity(), "dense", rng)
    g = flat(automatic(player.samples[0]), 2)[:, 0].mean(axis=0)
    player.metric = diagonal_fisher(player.samples, "not covered")
    player.assert_solves(np.diag(4 * g**2 + DAMPING) / RATE, rng)


@pytest.mark.parametrize("name", ["dense", "conv 1d", "embedding", "layer norm", "einsum two features"])
def test_full_is_the_damped_fisher_matrix(name, rng):
    player = Player(options.Full(damping=DAMPING, decay=0.6), name, rng, steps=3)
    moments = [diagonal.fisher(flat(automatic(sample), 2)[:, 0]) for sample in player.samples]
    M = diagonal.running_mean(moments, 0.6) + DAMPING * np.eye(len(moments[0]))
    player.assert_solves(M / RATE, rng)


def test_full_inverts_when_it_is_due(rng):
    player = Player(options.Full(damping=DAMPING, decay=0.6, invert_every=2), "dense", rng, steps=4)
    moments = [diagonal.fisher(flat(automatic(sample), 2)[:, 0]) for sample in player.samples]
    M = diagonal.running_mean(moments[:3], 0.6) + DAMPING * np.eye(len(moments[0]))
    player.assert_solves(M / RATE, rng)
    assert_close(player.state[0], diagonal.running_mean(moments, 0.6), rtol=1e-12)


def expected_factors(sample, form):
    """A (as stored), B, and the moment of a bias row that stands apart."""
    found = coverage(sample.layer)
    s = statistics(sample)
    positions, has_bias = s.rows.shape[1], found.matrix.bias_shape is not None
    if not found.convolution or form == "patches":
        return kfac.input_factor(s.rows), kfac.gradient_factor(s.c), None
    if form == "sua":
        A = kfac.uncorrelated_factor(s.pixels, positions)
    else:
        layer = sample.layer
        A = kfac.autocorrelation_factor(s.pixels, layer.kernel_size, layer.dilation_rate, positions)
    return A, kfac.gradient_factor(s.c), float(positions) if has_bias else None


def form_of(player, config):
    return config.convolution if coverage(player.layer).convolution else "patches"


@pytest.mark.parametrize("name", KRONECKER)
def test_kfac_is_its_published_formula(name, rng):
    config = options.KFAC(damping=DAMPING, decay=0.6, invert_every=1, **KRONECKER[name])
    player = Player(config, name, rng, steps=3)
    form = form_of(player, config)
    factors = [expected_factors(sample, form) for sample in player.samples]
    A, B = (diagonal.running_mean([f[k] for f in factors], 0.6) for k in (0, 1))
    assert_close(player.state[0], A, rtol=1e-12, label="A")
    assert_close(player.state[1], B, rtol=1e-12, label="B")
    M = kfac.kfac(A, B, form, coverage(player.layer).taps, factors[0][2], DAMPING)
    player.assert_solves(M / RATE, rng)


@pytest.mark.parametrize(("update_every", "invert_every", "seen", "inverted"), [
    (1, 1, [0, 1, 2, 3, 4], 5), (2, 1, [0, 2, 4], 3), (1, 3, [0, 1, 2, 3, 4], 4), (3, 2, [0, 3], 2), (4, 3, [0, 4], 1),
])  # fmt: skip
def test_kfac_keeps_its_schedule(update_every, invert_every, seen, inverted, rng):
    """After five steps: `seen` batches are in the factors, the inverse knows the first `inverted` of them."""
    config = options.KFAC(damping=DAMPING, decay=0.6, update_every=update_every, invert_every=invert_every)
    player = Player(config, "dense", rng, steps=5)
    factors = [expected_factors(player.samples[t], "patches") for t in seen]
    for k in (0, 1):
        assert_close(player.state[k], diagonal.running_mean([f[k] for f in factors], 0.6), rtol=1e-12)
    A, B = (diagonal.running_mean([f[k] for f in factors[:inverted]], 0.6) for k in (0, 1))
    player.assert_solves(kfac.kfac(A, B, "patches", 1, None, DAMPING) / RATE, rng)


def basis_of(player, form):
    """U = U_A (x) U_B from the block's own eigenvectors, which the factors leave open where eigenvalues repeat."""
    U_A, U_B = player.state[2].numpy(), player.state[3].numpy()
    apart = 1.0 if form != "patches" and coverage(player.layer).matrix.bias_shape is not None else None
    return np.kron(kfac.full_input_factor(U_A, form, coverage(player.layer).taps, apart), U_B)


@pytest.mark.parametrize("scalings", ["exact", "uncorrelated"])
@pytest.mark.parametrize("name", KRONECKER)
def test_ekfac_is_its_published_formula(name, scalings, rng):
    config = options.EKFAC(damping=DAMPING, decay=0.6, invert_every=1, scalings=scalings, **KRONECKER[name])
    player = Player(config, name, rng)
    form, s = form_of(player, config), statistics(player.samples[0])
    A, B, bias = expected_factors(player.samples[0], form)
    for factor, basis in ((A, player.state[2]), (B, player.state[3])):
        turned = basis.numpy().T @ factor @ basis.numpy()
        assert_close(turned, np.diag(np.linalg.eigvalsh(factor)), rtol=1e-10)
        assert_close(basis.numpy().T @ basis.numpy(), np.eye(len(factor)), rtol=1e-10)
    U = basis_of(player, form)
    _, start = kfac.eigenbasis(A, B, form, coverage(player.layer).taps, bias)
    positions_matter = scalings == "uncorrelated" and s.rows.shape[1] > 1
    new = kfac.uncorrelated_scalings(U, s.rows, s.c) if positions_matter else kfac.exact_scalings(U, s.q)
    expected = 0.6 * start + 0.4 * new
    assert_close(player.state[4].numpy().ravel(), expected, rtol=1e-10)
    player.assert_solves(kfac.ekfac(U, expected, DAMPING) / RATE, rng)


def test_ekfac_keeps_measuring_in_an_old_basis(rng):
    config = options.EKFAC(damping=DAMPING, decay=0.6, invert_every=10)
    player = Player(config, "dense", rng, steps=3)
    A, B, _ = expected_factors(player.samples[0], "patches")
    U = basis_of(player, "patches")
    _, scalings = kfac.eigenbasis(A, B, "patches", 1, None)
    for sample in player.samples:
        scalings = 0.6 * scalings + 0.4 * kfac.exact_scalings(U, statistics(sample).q)
    player.assert_solves(kfac.ekfac(U, scalings, DAMPING) / RATE, rng)


@pytest.mark.parametrize(("name", "exact"), [("conv 1d", True), ("conv 2d", False)])
def test_automatic_scalings_are_exact_at_few_positions(name, exact, rng):
    states = []
    for scalings in ("auto", "exact" if exact else "uncorrelated"):
        config = options.EKFAC(scalings=scalings, decay=0.0)
        states.append(Player(config, name, np.random.default_rng(3)).state[4])
    assert_close(states[0], states[1], rtol=1e-12)


@given(seeds, st.sampled_from(["dense", "dense without bias", "dense one position", "conv 1d causal"]))
def test_ekfac_is_never_further_from_the_fisher_matrix_than_kfac(seed, name):
    """GTDDP-E47: the best diagonal in the Kronecker eigenbasis, in the Frobenius norm."""
    config = options.EKFAC(decay=0.0, scalings="exact", convolution="patches")
    player = Player(config, name, np.random.default_rng(seed))
    s = statistics(player.samples[0])
    F = diagonal.fisher(s.q)
    U = basis_of(player, "patches")
    mine = U @ np.diag(player.state[4].numpy().ravel()) @ U.T
    A, B = player.state[0].numpy(), player.state[1].numpy()
    assert np.linalg.norm(F - mine) <= np.linalg.norm(F - np.kron(A, B)) * (1 + 1e-12)
    # the best of all diagonals: what remains has no diagonal in this basis
    assert_close(np.diag(U.T @ (F - mine) @ U), np.zeros(len(F)), atol=1e-12 * np.linalg.norm(F))


@given(seeds)
def test_kfac_is_exact_for_one_sample(seed):
    """GTDDP-E41."""
    player = Player(options.KFAC(), "dense", np.random.default_rng(seed), batch=1)
    F = diagonal.fisher(flat(automatic(player.samples[0]), 2)[:, 0])
    assert_close(np.kron(player.state[0], player.state[1]), F, rtol=1e-12)


@given(seeds)
def test_kfac_is_exact_for_independent_inputs_and_cotangents(seed):
    """GTDDP-E41: every input meets every cotangent once."""
    rng = np.random.default_rng(seed)
    player = Player(options.KFAC(), "dense", rng)
    x, c = np.meshgrid(np.arange(3), np.arange(4), indexing="ij")
    some_x, some_c = rng.normal(size=(3, 4)), rng.normal(size=(4, 3))
    sample = player.samples[0]._replace(
        inputs=tf.constant(some_x[x.ravel()]), cotangents=[tf.constant(some_c[c.ravel()])]
    )
    step = Step(tf.constant(0, tf.int64), tf.constant(RATE, tf.float64))
    state, _ = player.block.update(player.state, sample.capture, None, step)
    F = diagonal.fisher(flat(automatic(sample), 2)[:, 0])
    assert_close(np.kron(state[0], state[1]), F, rtol=1e-12)


def bordered(case_rng, name, border, batch=3):
    """A sample whose pixels vanish in a frame."""
    sample = draw(CASES[name], case_rng, batch=batch)
    x = sample.inputs.numpy()
    inner = np.zeros_like(x)
    window = (slice(None), *(slice(border, size - border) for size in x.shape[1:-1]))
    inner[window] = x[window]
    return sample._replace(inputs=tf.constant(inner))


@pytest.mark.parametrize(("name", "border"), [("conv 2d", 1), ("conv 1d", 1), ("conv 2d dilated", 2)])
def test_autocorrelation_is_exact_when_the_border_is_empty(name, border, rng):
    """Stride 1, "same": then every pair of pixels that two taps see is inside the image."""
    capture = bordered(rng, name, border).capture
    rows = capture.layout.rows
    assert_close(capture.input_moment("autocorrelation"), capture.input_moment("patches")[:rows, :rows], rtol=1e-12)


def test_autocorrelation_is_not_exact_at_a_full_border(rng):
    capture = draw(CASES["conv 2d"], rng).capture
    rows = capture.layout.rows
    gap = capture.input_moment("autocorrelation") - capture.input_moment("patches")[:rows, :rows]
    assert np.abs(gap).max() > 0.1


def test_sua_is_exact_for_pixels_uncorrelated_in_space():
    """One sample per pixel and channel, a single one in it: the patches' moment is then I (x) A but for the border."""
    sample = draw(CASES["conv 2d"], np.random.default_rng(0))
    height, width, channels = CASES["conv 2d"].shape
    inner = (height - 2) * (width - 2) * channels
    x = np.zeros((height, width, channels, height, width, channels))
    for h, w, k in np.ndindex(height - 2, width - 2, channels):
        x[h + 1, w + 1, k, h + 1, w + 1, k] = k + 1.0
    x = x.reshape(-1, height, width, channels)
    x = x[x.any(axis=(1, 2, 3))]
    assert len(x) == inner
    c = tf.zeros([inner, height, width, 3], tf.float64)
    capture = sample._replace(inputs=tf.constant(x), cotangents=[c]).capture
    patches = capture.input_moment("patches")[:-1, :-1]
    assert_close(patches, np.kron(np.eye(9), capture.input_moment("sua")), rtol=1e-12)
    assert_close(capture.input_moment("sua"), np.diag([1.0, 4.0]) / 2, rtol=1e-12)
