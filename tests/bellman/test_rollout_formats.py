"""The linear roll-out: precisions, compilation, unknown sizes, extreme numbers, wrong arguments."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import rollout, sample_space
from tests.bellman.sample_games import few, start, terms
from tests.helpers import assert_close, slow_row, thinned
from verification.problems.games import games

STRUCTURES = [(True, True), (True, False), (False, True), (False, False)]


def fixed_case(rng, rank, group_size, joint, dtype=tf.float64, scale=1.0):
    """Five samples, three stages, two players: terminal value, Gram matrices, linear terms."""
    B, m, size = 5, 1 + rank, group_size or 5
    beta = None if rank else tf.ones([B], dtype)
    terminal = sample_space.init(B, rank=rank, beta_squared=beta, group_size=group_size, dtype=dtype)
    lead = (3,) if joint else (3, 2)
    Qc = np.sqrt(scale) * rng.standard_normal((*lead, -(-B // size), 6, size * m))
    return (
        terminal,
        tf.constant(Qc.swapaxes(-1, -2) @ Qc, dtype),
        tf.constant(rng.standard_normal(Qc[..., 0, :].shape), dtype),
    )


def step(terminal, G, l, joint, feedback, diagonal):
    w = rollout.roll_out(terminal, G, l, joint=joint, feedback=feedback, diagonal=diagonal)
    return w, rollout.predicted_reduction(terminal, G, w, l, joint=joint)


# Every structure, and every rank with its groups, in both precisions; half of the combinations.
FORMATS = [
    (*structure, *sizes, (tf.float32, tf.float64)[(i + j) % 2])
    for i, structure in enumerate(STRUCTURES)
    for j, sizes in enumerate([(0, None), (0, 1), (2, 2)])
]


@pytest.mark.parametrize(("joint", "feedback", "rank", "group_size", "dtype"), thinned(FORMATS))
def test_compiled_and_eager_agree_in_both_precisions(rank, group_size, joint, feedback, dtype):
    case = fixed_case(np.random.default_rng(1), rank, group_size, joint, dtype)
    flags = joint, feedback, rank == 0
    eager, tol = step(*case, *flags), 2e-5 if dtype == tf.float32 else 1e-13
    double = step(*fixed_case(np.random.default_rng(1), rank, group_size, joint), *flags)
    for jit in (False, True):
        compiled = tf.function(step, jit_compile=jit)(*case, *flags)
        for x, y, z in zip(compiled, eager, double, strict=True):
            assert x.dtype == dtype
            assert_close(x, y, rtol=tol)
            assert_close(y, z, rtol=tol)


@few
@given(games(max_log_condition=2, max_log_stiffness=2), st.integers(0, 3), st.sampled_from(STRUCTURES))
def test_single_precision_is_double_to_its_own_rounding(game, size, structure):
    """Rounding the inputs changes w by eps ||S|| ||Gamma|| |w|, and the solve by as much, at every stage."""
    joint, feedback = structure
    terminal, (G, l) = start(game, size or None), terms(game, size or None, joint=joint)
    w = rollout.roll_out(terminal, G, l, joint=joint, feedback=feedback)
    single = sample_space.SampleValue(*(tf.cast(x, tf.float32) for x in terminal))
    w_single = rollout.roll_out(single, tf.cast(G, tf.float32), tf.cast(l, tf.float32), joint=joint, feedback=feedback)
    S = np.max(terminal.L) ** 2
    stiffness = 1 + S * np.linalg.norm(np.abs(G.numpy()).sum(0), axis=(-2, -1)).max()
    size_w = np.max(np.abs(w)) + 1 / game.batch_size + S * np.abs(l.numpy()).sum(0).max()
    assert_close(w_single, w, atol=4 * len(game.stages) * np.finfo(np.float32).eps * stiffness * size_w)


@pytest.mark.parametrize(("rank", "group_size"), [(0, None), (2, 2)])
@pytest.mark.parametrize(("joint", "feedback"), STRUCTURES)
def test_a_batch_of_unknown_size_gives_the_same_weights(rank, group_size, joint, feedback):
    terminal, G, l = fixed_case(np.random.default_rng(2), rank, group_size, joint)
    lead = [3] if joint else [3, None]
    unknown = [tf.TensorSpec([None] * 2, tf.float64), tf.TensorSpec([None] * 3, tf.float64)]
    unknown += [tf.TensorSpec([*lead, None, None, None], tf.float64), tf.TensorSpec([*lead, None, None], tf.float64)]

    @tf.function(input_signature=unknown)
    def traced(a, L, G, l):
        return step(sample_space.SampleValue(a, L), G, l, joint, feedback, False)

    for x, y in zip(traced(*terminal, G, l), step(terminal, G, l, joint, feedback, False), strict=True):
        assert_close(x, y, rtol=1e-13)


COUNTED = """
import glob, sys, tensorflow as tf
from bellman_tf.bellman import rollout, sample_space as s

@tf.function(jit_compile=True)
def step(G, l, i):
    terminal = s.init(4, beta_squared=tf.ones([4]))
    w = [rollout.roll_out(terminal, g, x, joint=j, feedback=f, diagonal=True)
         for j, g, x in ((True, G[:, 0], l[:, 0]), (False, G, l)) for f in (True, False)]
    cut = tf.slice(l, [i, 0, 0, 0], [1, 1, 1, 4]) if {slice} else l
    return *w, rollout.predicted_reduction(terminal, G, w[2], l, joint=False), cut

for i in range(10):
    Q = tf.random.normal([3, 2, 1, 4, 4], seed=i)
    step(tf.matmul(Q, Q, transpose_a=True), Q[..., 0, :] * (i + 1.0), tf.constant(i % 2))
print(step.experimental_get_tracing_count(), len(glob.glob(sys.argv[1] + "/*step*before_optimizations.txt")))
"""


@pytest.mark.parametrize("slices", [False, slow_row(True)])
def test_ten_calls_compile_once_under_xla(tmp_path, slices):
    """Counted in XLA's own dump. With a slice whose start varies, what the count is there to find, there are more."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    code = COUNTED.replace("{slice}", str(slices))
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, timeout=300, env=env, text=True
    )
    traces, compilations = map(int, run.stdout.split())
    assert traces == 1
    assert compilations > 1 if slices else compilations == 1


@pytest.mark.parametrize(("rank", "group_size"), [(0, None), (0, 1), (3, None), (1, 2)])
@pytest.mark.parametrize(("joint", "feedback"), STRUCTURES)
@pytest.mark.parametrize("scale", [1e12, 1e6, 1e-12, 0.0])
def test_huge_tiny_and_rank_deficient_grams_stay_finite_in_float32(rng, rank, group_size, joint, feedback, scale):
    case = fixed_case(rng, rank, group_size, joint, tf.float32, scale)
    for x in step(*case, joint, feedback, rank == 0):
        assert np.isfinite(x).all()


def test_wrong_arguments_are_refused_in_the_house_form():
    terminal = sample_space.init(3, beta_squared=tf.ones([3]))
    G, l = tf.ones([3, 1, 3, 3]), tf.ones([3, 1, 3])
    flags = {"joint": True, "feedback": True}
    cases = [
        (r"`joint` must be True or False. Received: joint=1", (G,), {**flags, "joint": 1}),
        (r"`feedback` must be True or False", (G,), {**flags, "feedback": None}),
        (r"`grams.shape` must be \[T\] and then the axes of `terminal.L`", (G[:, 0],), flags),  # T = B, and no groups
        (r"`grams.shape` must be \[T, N\] and then the axes", (G,), {**flags, "joint": False}),
        (r"`grams.shape` must begin with a known number of stages, at least 1", (G[:0],), flags),
        (r"`grams.shape` must end in \[n, n\]", (tf.ones([3, 1, 2, 2]),), flags),
        (r"`grams.dtype` must be that of the value, float32", (tf.cast(G, tf.float64),), flags),
        (r"`linear.dtype` must be that of the Gram matrices, float32", (G, tf.cast(l, tf.float64)), flags),
        (r"`linear.shape` must end in \[n\]", (G, tf.ones([3, 1, 2])), flags),
        (r"`linear.shape` must have the axes of the Gram matrices but the last", (G, l[:, 0]), flags),
    ]
    for message, arguments, options in cases:
        with pytest.raises(ValueError, match=message):
            rollout.roll_out(terminal, *arguments, **options)
    with pytest.raises(ValueError, match=r"`weights.shape` must have the axes of the Gram matrices but the last"):
        rollout.predicted_reduction(terminal, G, l[0])
    with pytest.raises(ValueError, match=r"`gram.shape` must end in \[n, n\]"):
        rollout.cooperative_weights(terminal, tf.ones([1, 2, 2]))
    with pytest.raises(ValueError, match=r"`terminal.L` must be square when `diagonal=True`"):
        rollout.cooperative_weights(sample_space.init(2, rank=1), tf.ones([1, 4, 4]), diagonal=True)

    @tf.function(input_signature=[tf.TensorSpec([None, 1, 3, 3])])
    def unknown(G):
        return rollout.roll_out(terminal, G, **flags)

    with pytest.raises(ValueError, match="known number of stages"):
        unknown(G)
