"""Kronecker-factored blocks: statistics equal the published formulas, solves equal dense solves."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.curvature import config as options
from bellman_tf.layers.registry import coverage
from tests.curvature.players import DAMPING, RATE, Player, step
from tests.helpers import assert_close
from tests.layers.cases import CASES, automatic, draw, flat
from verification.problems.matrices import seeds
from verification.references import capture as layers
from verification.references import diagonal, kfac

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
    A, B, _ = expected_factors(player.samples[0], form)
    for factor, basis in ((A, player.state[2]), (B, player.state[3])):
        rotated = basis.numpy().T @ factor @ basis.numpy()
        assert_close(rotated, np.diag(np.linalg.eigvalsh(factor)), rtol=1e-10)
        assert_close(basis.numpy().T @ basis.numpy(), np.eye(len(factor)), rtol=1e-10)
    U = basis_of(player, form)
    positions_matter = scalings == "uncorrelated" and s.rows.shape[1] > 1
    expected = kfac.uncorrelated_scalings(U, s.rows, s.c) if positions_matter else kfac.exact_scalings(U, s.q)
    assert_close(player.state[4].numpy().ravel(), expected, rtol=1e-10)
    player.assert_solves(kfac.ekfac(U, expected, DAMPING) / RATE, rng)


def test_ekfac_keeps_measuring_in_an_old_basis(rng):
    config = options.EKFAC(damping=DAMPING, decay=0.6, invert_every=10)
    player = Player(config, "dense", rng, steps=3)
    U = basis_of(player, "patches")
    measured = [kfac.exact_scalings(U, statistics(sample).q) for sample in player.samples]
    scalings = diagonal.running_mean(measured, 0.6)
    player.assert_solves(kfac.ekfac(U, scalings, DAMPING) / RATE, rng)


@pytest.mark.parametrize("invert_every", [1, 3])
@pytest.mark.parametrize("name", ["dense", "dense without bias", "conv 1d causal"])
def test_on_one_batch_the_scalings_are_the_second_moments_in_the_eigenbasis(name, invert_every, rng):
    """George et al. 2018, Alg. 1, at every step; K-FAC's eigenvalues are something else."""
    config = options.EKFAC(damping=DAMPING, invert_every=invert_every, convolution="patches", scalings="exact")
    player = Player(config, name, rng, batch=6)
    [sample] = player.samples
    for t in range(1, 5):
        expected = kfac.exact_scalings(basis_of(player, "patches"), statistics(sample).q)
        assert_close(player.state[4].numpy().ravel(), expected, rtol=1e-9)
        player.state, player.metric = player.block.update(player.state, sample.capture, None, step(t))
    _, product = kfac.eigenbasis(*expected_factors(sample, "patches")[:2], "patches", 1, None)
    assert np.linalg.norm(np.sort(product) - np.sort(expected)) > 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "form"), [("dense", "patches"), ("conv 1d causal", "patches"), ("conv 2d even", "sua")]
)
def test_a_new_basis_takes_the_scalings_over(name, form, rng):
    """As it sees them: the diagonal of R' diag(s) R, with R the rotation from the old basis to the new one."""
    config = options.EKFAC(damping=DAMPING, decay=0.6, invert_every=1, convolution=form, scalings="exact")
    player = Player(config, name, rng, batch=6)
    fresh = draw(CASES[name], rng, batch=6)._replace(layer=player.layer)
    old, s = basis_of(player, form), player.state[4].numpy().ravel()
    player.state, player.metric = player.block.update(player.state, fresh.capture, None, step(1))
    new = basis_of(player, form)
    R = old.T @ new
    seen = np.diag(R.T @ np.diag(s) @ R)
    assert np.linalg.norm(seen - s) > 0.01 * np.linalg.norm(s)
    expected = 0.5 * seen + 0.5 * kfac.exact_scalings(new, flat(automatic(fresh), 2)[:, 0])
    assert_close(player.state[4].numpy().ravel(), expected, rtol=1e-9)
    assert_close(seen.sum(), s.sum(), rtol=1e-12)  # the trace is that of the matrix


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
    state, _ = player.block.update(player.state, sample.capture, None, step(0))
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


@pytest.mark.parametrize("name", ["conv 2d stride 2", "conv 1d causal"])
def test_a_convolution_that_is_rescaled_has_its_bias_apart(name, rng):
    """The damping adds to the products of eigenvalues; the bias row's moment is the number of positions."""
    player = Player(options.KFAC(damping=DAMPING, convolution="sua", cooperative="rescale"), name, rng)
    A, B = (factor.numpy() for factor in player.state[:2])
    layout, positions = coverage(player.layer).matrix, player.samples[0].capture.positions
    rows = np.zeros([layout.all_rows] * 2)
    rows[: layout.rows, : layout.rows] = np.kron(np.eye(layout.rows // len(A)), A)
    rows[-1, -1] = positions
    player.assert_solves((np.kron(rows, B) + DAMPING * np.eye(len(rows) * len(B))) / RATE, rng)
