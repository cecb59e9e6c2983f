"""Couplings: joint metrics equal dense ones, and so do their Gram matrices."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import PlayerLayout
from bellman_tf.curvature.coupling.choose import make_couplings
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.dense import LinearMap
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.registry import coverage
from tests.curvature.players import DAMPING, RATE, initial_state, step
from tests.helpers import assert_close
from tests.layers.cases import CASES, draw, flat
from verification.references import cooperative as reference
from verification.references import diagonal

SIZES = {  # inputs, outputs, bias of each player
    "two": ((4, 3, True), (2, 5, True)),
    "two alike": ((3, 3, True), (3, 3, True)),
    "two without bias": ((5, 2, False), (3, 4, True)),
    "numbers": ((1, 1, False), (1, 1, False)),
    "three": ((3, 2, True), (2, 4, False), (4, 1, True)),
}
ATOL = {"three": 1e-5}  # conjugate gradients


class Team:
    """Layers that act together, their blocks and coupling after a few batches.

    Attributes:
        seen: for each batch the captures.
        joint: the joint metric.
    """

    def __init__(
        self, config, rng, sizes, steps=1, batch=6, positions=1, columns=1, identical=False, joint_up_to=2**11
    ):
        self.inputs = [a + bias for a, _, bias in sizes]
        self.outputs = [e for _, e, _ in sizes]
        self.shapes = [((a, e), (e,)) if bias else ((a, e),) for a, e, bias in sizes]
        layouts = [MatrixLayout((a, e), a, (e,) if bias else None) for a, e, bias in sizes]
        self.blocks = [
            make_block(config, PlayerLayout(f"p{n}", shapes, layout))
            for n, (shapes, layout) in enumerate(zip(self.shapes, layouts, strict=True))
        ]
        stages, positions_of_all = [0] * len(sizes), [positions] * len(sizes)
        [self.coupling], self.notes = make_couplings(self.blocks, stages, positions_of_all, joint_up_to)
        self.config, self.columns, self.positions = config, columns, positions
        self.seen = [self._draw(rng, sizes, batch, identical) for _ in range(steps)]
        self.own, self.state = [initial_state(block) for block in self.blocks], initial_state(self.coupling)
        for t, captures in enumerate(self.seen):
            self.update(t, captures)

    def _draw(self, rng, sizes, batch, identical):
        lead = (batch,) if self.positions == 1 else (batch, self.positions)
        common = rng.normal(size=(*lead, 8))
        captures = []
        for a, e, bias in sizes:
            some = 0.0 if identical else 0.7
            x = common[..., :a] + some * rng.normal(size=(*lead, a))
            c = [common[..., 7 - e : 7] * (j + 1) + some * rng.normal(size=(*lead, e)) for j in range(self.columns)]
            captures.append(
                LinearMap(tf.constant(x), [tf.constant(part) for part in c], (a, e), (e,) if bias else None)
            )
        return captures

    def update(self, t, captures):
        sides = zip(self.blocks, self.own, captures, strict=True)
        updated = [block.update(state, capture, None, step(t)) for block, state, capture in sides]
        self.own, self.metrics = [state for state, _ in updated], [metric for _, metric in updated]
        order = self.coupling.players
        pick = lambda values: [values[k] for k in order]
        self.state, self.joint = self.coupling.update(
            self.state, pick(captures), pick(self.own), pick(self.metrics), step(t)
        )

    def factors(self, batches):
        """Running joint A and B over the first batches."""
        both = []
        for captures in self.seen[:batches]:
            lead = lambda part, size: np.reshape(part, (len(part), -1, size))
            rows = [lead(c.augmented().numpy(), a) for c, a in zip(captures, self.inputs, strict=True)]
            columns = [lead(c.cotangents[0].numpy(), e) for c, e in zip(captures, self.outputs, strict=True)]
            both.append(reference.moments(rows, columns))
        return [diagonal.running_mean([pair[k] for pair in both], self.config.decay) for k in (0, 1)]

    def inverse(self, batches=None):
        """M^{-1}, dense, factored after so many batches."""
        A, B = self.factors(batches or len(self.seen))
        arguments = A, B, self.inputs, self.outputs, self.config.damping
        M_inv = reference.inverse(*arguments, self.config.cooperative, self.config.cooperative_sign)
        if isinstance(self.config, options.EKFAC):
            bases = [np.kron(state[2], state[3]) for state in self.own]
            D = reference.eigen_congruence(*arguments, bases, [np.ravel(state[4]) for state in self.own])
            M_inv = D @ M_inv @ D
        return RATE * M_inv

    def assert_solves(self, M_inv, rng, rtol):
        """One right-hand side, and leading axes."""
        for lead in ((), (2, 3)):
            parts = [[rng.normal(size=(*lead, *shape)) for shape in shapes] for shapes in self.shapes]
            order = self.coupling.players
            solved = self.joint.solve([[tf.constant(part) for part in parts[k]] for k in order])
            found = np.concatenate([flat(solved[order.index(k)], len(lead)) for k in range(len(parts))], -1)
            vector = np.concatenate([flat(own, len(lead)) for own in parts], -1)
            assert_close(found, vector @ M_inv.T, rtol=rtol, label=f"solve {lead}")

    def gram(self, group_size=None):
        captures = [self.seen[-1][k] for k in self.coupling.players]
        metrics = [self.metrics[k] for k in self.coupling.players]
        own = [functools.partial(gram, *pair, group_size) for pair in zip(captures, metrics, strict=True)]
        return self.joint.gram(captures, group_size, own).numpy()

    def assert_gram(self, M_inv, rtol):
        """Q' M^{-1} Q of all samples and columns, coupled, in groups, alone."""
        q = np.concatenate([flat(c.per_sample(), 2) for c in self.seen[-1]], axis=-1)
        batch, m, size = q.shape
        Q = q.reshape(-1, size)
        whole = Q @ M_inv @ Q.T
        assert_close(self.gram()[0], whole, rtol=rtol, label="gram")
        for group in (1, 4):
            found, n = self.gram(group), group * m
            for g in range(-(-batch // group)):
                part = whole[g * n : (g + 1) * n, g * n : (g + 1) * n]
                assert_close(found[g][: len(part), : len(part)], part, atol=rtol * np.abs(whole).max(), label="group")
                assert not found[g][len(part) :].any()


KINDS = [("exact", 1), ("published", 1), ("published", -1)]


@pytest.mark.parametrize("make", [options.KFAC, options.EKFAC])
@pytest.mark.parametrize(
    ("name", "kind", "sign"), [(n, *kind) for n in SIZES for kind in KINDS if kind[1] > 0 or len(SIZES[n]) == 2]
)  # the minus sign is for two players only, refused for more
def test_the_joint_metric_and_its_gram_matrix_are_the_dense_ones(name, kind, sign, make, rng):
    config = make(damping=DAMPING, decay=0.6, invert_every=1, cooperative=kind, cooperative_sign=sign)
    team = Team(config, rng, SIZES[name], steps=2, columns=3 if make is options.KFAC else 1)
    rtol = ATOL.get(name, 1e-9) if kind == "exact" else 1e-9
    M_inv = team.inverse()
    team.assert_solves(M_inv, rng, rtol)
    team.assert_gram(M_inv, rtol)


@pytest.mark.parametrize("make", [options.KFAC, options.EKFAC])
@pytest.mark.parametrize("kind", ["exact", "published"])
def test_layers_with_positions_are_coupled_position_by_position(kind, make, rng):
    config = make(damping=DAMPING, decay=0.6, invert_every=1, cooperative=kind)
    team = Team(config, rng, SIZES["two"], positions=5, columns=2)
    M_inv = team.inverse()
    team.assert_solves(M_inv, rng, 1e-9)
    team.assert_gram(M_inv, 1e-9)


def test_convolutions_are_coupled_by_their_patches(rng):
    config = options.KFAC(damping=DAMPING, cooperative="exact", convolution="patches")
    samples = [draw(CASES[name], rng) for name in ("conv 1d", "conv 1d causal")]
    found = [coverage(sample.layer) for sample in samples]
    blocks = [make_block(config, player_layout("c", s.shapes, f)) for s, f in zip(samples, found, strict=True)]
    [coupling], _ = make_couplings(blocks, [0, 0], [7, 7])
    captures = [sample.capture for sample in samples]
    updated = [b.update(initial_state(b), c, None, step(0)) for b, c in zip(blocks, captures, strict=True)]
    own, metrics = ([part[k] for part in updated] for k in (0, 1))
    _, joint = coupling.update(initial_state(coupling), captures, own, metrics, step(0))
    A, B = reference.moments([c.augmented().numpy() for c in captures], [c.cotangents[0].numpy() for c in captures])
    M_inv = RATE * reference.inverse(A, B, [7, 7], [3, 3], DAMPING, "exact")
    parts = [[rng.normal(size=shape) for shape in s.shapes] for s in samples]
    solved = joint.solve([[tf.constant(part) for part in own] for own in parts])
    vector = np.concatenate([flat(own, 0) for own in parts])
    assert_close(np.concatenate([flat(own, 0) for own in solved]), M_inv @ vector, rtol=1e-9)


@pytest.mark.parametrize(("update_every", "invert_every", "seen"), [(1, 3, 4), (1, 2, 5), (1, 10, 1)])
@pytest.mark.parametrize("make", [options.KFAC, options.EKFAC])
def test_it_keeps_the_players_schedule(update_every, invert_every, seen, make, rng):
    """After five steps the factor knows the first `seen` batches, as the players' own blocks do."""
    config = make(damping=DAMPING, decay=0.6, update_every=update_every, invert_every=invert_every, cooperative="exact")
    team = Team(config, rng, SIZES["two"], steps=5)
    team.assert_solves(team.inverse(seen), rng, 1e-9)
    A, B = team.factors(5)
    (n, m), a, b = team.coupling.pairs[0], reference.pieces(team.inputs), reference.pieces(team.outputs)
    n, m = team.coupling.players[n], team.coupling.players[m]
    assert_close(team.state[0], A[a[n], a[m]], rtol=1e-12)
    assert_close(team.state[1], B[b[n], b[m]], rtol=1e-12)


def test_rare_updates_average_the_batches_they_see(rng):
    config = options.KFAC(damping=DAMPING, decay=0.6, update_every=2, invert_every=2, cooperative="exact")
    team = Team(config, rng, SIZES["two"], steps=5)
    team.seen = team.seen[::2]
    team.assert_solves(team.inverse(), rng, 1e-9)


@pytest.mark.parametrize("make", [options.KFAC, options.EKFAC])
@pytest.mark.parametrize("count", [2, 3])
def test_rescaling_is_corollary_seven(count, make, rng):
    """A player among N identical ones: Schur complement per eigenvalue; own statistics, own basis."""
    config = make(damping=DAMPING, decay=0.6, cooperative="rescale")
    team = Team(config, rng, [(3, 2, True)] * count, identical=True)
    for k, metric in zip(team.coupling.players, team.joint, strict=True):
        _, _, U_A, U_B, s = (part.numpy() for part in team.own[k])
        U, new = np.kron(U_A, U_B), []
        for value in s.ravel():
            joint = DAMPING * np.eye(count) + value * np.ones((count, count))
            rest = joint[0, 1:] @ np.linalg.solve(joint[1:, 1:], joint[1:, 0])
            new.append(joint[0, 0] - rest)
        assert max(new) < DAMPING * count / (count - 1)
        parts = [rng.normal(size=shape) for shape in team.shapes[k]]
        expected = RATE * U @ np.diag(1 / np.array(new)) @ U.T @ flat(parts, 0)
        assert_close(flat(metric.solve([tf.constant(part) for part in parts]), 0), expected, rtol=1e-10)
    if make is options.KFAC:
        A, B = team.factors(1)
        M_inv = RATE * reference.rescaled_inverse(A, B, team.inputs, team.outputs, DAMPING)
        g = [rng.normal(size=shape) for shapes in team.shapes for shape in shapes]
        solved = [metric.solve([tf.constant(p) for p in g[2 * n : 2 * n + 2]]) for n, metric in enumerate(team.joint)]
        vector = lambda parts: np.concatenate([p.numpy().ravel() if tf.is_tensor(p) else p.ravel() for p in parts])
        assert_close(vector([p for own in solved for p in own]), M_inv @ vector(g), rtol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "published"])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("identical", [True, False])
def test_degenerate_batches_are_solved(kind, batch, identical, rng):
    """Rank one, and players that cannot be told apart: only the damping keeps the matrix regular."""
    config = options.KFAC(damping=1e-4, cooperative=kind)
    team = Team(config, rng, SIZES["two alike"], batch=batch, identical=identical)
    M_inv = team.inverse()
    bound = 1e-14 * np.linalg.cond(M_inv)
    team.assert_solves(M_inv, rng, 1e3 * bound)
    if batch > 1:
        team.assert_gram(M_inv, 1e3 * bound)


def test_identical_players_share_the_step_and_the_papers_overshoot(rng):
    """The exact joint step is shorter than the players' own; the published one is longer (GTDDP-T3)."""
    lengths = {}
    for kind in ("exact", "published"):
        team = Team(options.KFAC(damping=1e-3, cooperative=kind), rng, SIZES["two alike"], identical=True)
        gradients = [c.gradient(c.mean_weights()) for c in team.seen[0]]
        alone = [metric.solve(g) for metric, g in zip(team.metrics, gradients, strict=True)]
        lengths[kind] = np.linalg.norm(flat(team.joint.solve(gradients)[0], 0)) / np.linalg.norm(flat(alone[0], 0))
    assert lengths["exact"] < 0.75
    assert lengths["published"] > 2


def test_large_layers_keep_the_gram_matrices_of_the_players_alone(rng):
    team = Team(options.KFAC(damping=DAMPING, cooperative="exact"), rng, SIZES["two"], joint_up_to=10)
    expected = sum(gram(c, metric, None).numpy() for c, metric in zip(team.seen[0], team.metrics, strict=True))
    assert_close(team.gram(), expected, rtol=1e-12)
    assert all(note.endswith("Gram matrices of the players alone") for note in team.notes)
    team.assert_solves(team.inverse(), rng, 1e-9)  # the step itself stays joint


@pytest.mark.slow
def test_compiled_and_eager_agree(rng):
    team = Team(options.EKFAC(damping=DAMPING, cooperative="exact"), rng, SIZES["two"])
    order = team.coupling.players
    captures = [team.seen[0][k] for k in order]

    def compute(state, own, iteration):
        now = StepScalars(iteration, step(0).learning_rate)
        sides = zip(order, own, captures, strict=True)
        both = [team.blocks[k].update(mine, capture, None, now) for k, mine, capture in sides]
        _, joint = team.coupling.update(state, captures, [s for s, _ in both], [m for _, m in both], now)
        return joint.solve([capture.gradient(capture.mean_weights()) for capture in captures])

    own = [initial_state(team.blocks[k]) for k in order]
    arguments = initial_state(team.coupling), own, tf.constant(0, tf.int64)
    eager = compute(*arguments)
    for jit in (False, True):
        compiled = tf.function(compute, jit_compile=jit)(*arguments)
        for one, other in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
            assert_close(one, other, rtol=1e-10)


# ---- who is coupled


def blocks_of(config, count, **layout):
    dense = MatrixLayout((3, 2), 3, (2,))
    return [make_block(config, PlayerLayout(f"p{n}", ((3, 2), (2,)), dense, **layout)) for n in range(count)]


def test_unequal_positions_decouple():
    config = options.KFAC(cooperative="exact")
    couplings, notes = make_couplings(blocks_of(config, 4), [0, 0, 0, 1], [64, 16, 16, 16])
    assert [coupling.players for coupling in couplings] == [[1, 2]]
    assert notes == [" (uncoupled: 64 positions against 16)", ", exact with p2", ", exact with p1", ""]


def test_players_of_different_stages_and_other_metrics_are_not_coupled():
    cooperating, alone = options.KFAC(cooperative="exact"), options.KFAC()
    blocks = [*blocks_of(cooperating, 2), *blocks_of(alone, 2), *blocks_of(options.RMSprop(), 2)]
    couplings, notes = make_couplings(blocks, [0, 1, 2, 2, 3, 3], [1] * 6)
    assert not couplings
    assert notes == [""] * 6
    assert make_couplings(blocks_of(cooperating, 2), [None, None], [1, 1]) == ([], ["", ""])


def test_what_cannot_be_coupled_says_why():
    config = options.KFAC(cooperative="exact")
    blocks = [*blocks_of(config, 1), *blocks_of(config, 1, convolution=True, taps=3), *blocks_of(config, 1)]
    couplings, notes = make_couplings(blocks, [0, 0, 0], [1, 1, None])
    assert not couplings
    assert notes[1:] == [
        " (uncoupled: convolution='sua' keeps no moment of whole patches)",
        " (uncoupled: its number of positions is not static)",
    ]


def test_rescaling_needs_no_patches():
    config = options.KFAC(cooperative="rescale")
    couplings, notes = make_couplings(blocks_of(config, 2, convolution=True, taps=3), [0, 0], [9, 9])
    assert len(couplings) == 1
    assert notes == [", rescaled for 2 players"] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: options.KFAC(cooperative=True),
            "`cooperative` must be False or one of 'exact', 'published', 'rescale'.",
        ),
        (lambda: options.EKFAC(cooperative="joint"), "`cooperative` must be False or one of"),
        (lambda: options.KFAC(cooperative_sign=0), "`cooperative_sign` must be 1 or -1. Received: cooperative_sign=0."),
        (
            lambda: make_couplings(
                blocks_of(options.KFAC(cooperative="published", cooperative_sign=-1), 3), [0, 0, 0], [1, 1, 1]
            ),
            "`cooperative_sign` must be 1 in a stage of more than two players. Received: cooperative_sign=-1. "
            "Such a stage holds p0, p1, p2.",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
