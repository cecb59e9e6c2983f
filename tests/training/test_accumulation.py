"""Gradient accumulation: against the dense reference, and the batch in groups."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers

import bellman_tf as btf
from bellman_tf.bellman import rollout
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from tests.bellman.sample_games import start, terms, tolerance
from tests.helpers import assert_close, some_slow
from tests.strategies.networks import cross_entropy
from tests.training.accumulating import K, M, assert_same_weights, compiled, train, x, y
from verification.problems.games import games
from verification.references import accumulation as reference
from verification.references import rollout as dense

# ---- the mathematics


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("beta", "nesterov", "jit"), [(0.0, False, False), (0.75, False, False), (0.75, True, True)])
def test_it_is_the_dense_step_of_all_micro_batches(beta, nesterov, jit):
    penalty, rate = 2.0**-6, 0.25
    model = btf.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(5, activation="tanh", kernel_regularizer=keras.regularizers.L2(penalty)),
            layers.Dense(3),
        ]
    )
    options = {"momentum": beta, "nesterov": nesterov, "gradient_accumulation_steps": K}
    model.compile(btf.GTDDP(rate, curvature="identity", **options), **cross_entropy(), jit_compile=jit)
    weights = [w + 0.1 for w in model.get_weights()]
    model.set_weights(weights)
    random = np.random.default_rng(1)
    batches = [[(random.normal(size=(5, 4)), random.integers(0, 3, 5)) for _ in range(K)] for _ in range(3)]
    for batch in (micro for step in batches for micro in step):
        model.train_on_batch(*batch)
    expected = reference.train(weights, batches, penalty, rate, beta, nesterov)
    for actual, wanted in zip(model.get_weights(), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-11)


STRUCTURES = [(True, True), (True, False), (False, True), (False, False)]


@hypothesis.given(games(), st.integers(2, 9), st.sampled_from(STRUCTURES))
def test_gram_matrices_over_k_make_the_group_of_a_larger_batch(game, k, structure):
    """In every structure of information the moves are those of the dense step whose samples count 1 / (k m)."""
    joint, feedback = structure
    terminal, (G, l) = start(game), terms(game, joint=joint)
    v = rollout.roll_out(terminal, G / k, l, joint=joint, feedback=feedback, diagonal=game.root is None).numpy()
    step = dense.execute(
        game.gradient, game.hessian, game.stacked_stages(), joint=joint, feedback=feedback,
        batch_size=k * game.batch_size,
    )  # fmt: skip
    ours, theirs, unit = [], [], []
    for t, stage in enumerate(game.stages):
        for i, p in enumerate(stage.players):
            w = (v[t, 0] if joint else v[t, i, 0]) / k
            ours.append(-np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ w))
            unit.append(np.linalg.solve(p.metric, p.l_u))
            theirs.append(step.moves[t][i])
    scale = max(np.abs(np.concatenate([*theirs, *unit])).max(), np.finfo(float).tiny)
    stiffness = np.max(terminal.L.numpy()) ** 2 * np.linalg.norm(sum(game.grams()[0]), 2)
    bound = tolerance(game) + np.finfo(float).eps * stiffness
    assert_close(np.concatenate(ours) / scale, np.concatenate(theirs) / scale, atol=bound)


@hypothesis.given(
    k=st.integers(2, 7), t=st.integers(0, 50), decay=st.floats(0, 0.99), period=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_a_mean_takes_up_micro_batches_as_if_all_at_once(k, t, decay, period, seed):
    old, *values = np.random.default_rng(seed).normal(size=(k + 1, 3))
    iteration, one = tf.constant(t, tf.int64), tf.constant(1.0, tf.float64)
    expected = running_mean(old, np.mean(values, axis=0), StepScalars(iteration, one).mean_rate(decay, period))
    mean = tf.constant(old)
    for j, value in enumerate(values):
        scalars = StepScalars(iteration, one, micro_batch=tf.constant(j, tf.int64), micro_batches=k)
        mean = running_mean(mean, value, scalars.mean_rate(decay, period))
    assert_close(mean, expected, atol=1e-13 * (1 + np.abs([old, *values]).max()))


# ---- the batch in groups of a micro-batch

GROUPED = {
    "identity": lambda **o: btf.GTDDP(0.3, curvature="identity", **o),
    "adam": lambda **o: btf.GTDDP(0.05, curvature="adam", **o),
    "rmsprop": lambda **o: btf.GTDDP(0.05, curvature="rmsprop", terminal_hessian=2, **o),
    "momentum, decay, clipping": lambda **o: btf.GTDDP(
        0.1, curvature="identity", momentum=0.9, nesterov=True, weight_decay=0.1, global_clipnorm=0.2, **o
    ),
    "feedback, Adam": lambda **o: btf.DDPNOpt(0.05, curvature="adam", **o),
    "per sample": lambda **o: btf.GTDDP(
        0.3, curvature="identity", **{**o, "group_size": None, "value_hessian": "block_diagonal"}
    ),
}


@pytest.mark.parametrize("case", some_slow(GROUPED, "rmsprop", "per sample", "identity"))
def test_it_equals_the_batch_in_groups(case):
    micro = train(compiled(GROUPED[case](gradient_accumulation_steps=K)))
    whole = train(compiled(GROUPED[case](group_size=M)), K * M)
    assert int(micro.optimizer.iterations) == int(whole.optimizer.iterations) == 3
    assert_same_weights(micro, whole)


@pytest.mark.parametrize("information", ["open", "cooperative"])
@pytest.mark.parametrize("curvature", some_slow(["kfac", "full"], "full"))
def test_statistics_of_samples_are_those_of_the_batch(information, curvature):
    """Open-loop the updates are equal, too; else the first one is, but for the first games' Gram matrices."""
    options = {"curvature": curvature, "information": information, "rollout": "linear"}
    micro = compiled(btf.GTDDP(0.1, gradient_accumulation_steps=K, **options))
    whole = compiled(btf.GTDDP(0.1, group_size=None if information == "open" else M, **options))
    samples = slice(0, 36) if information == "open" else slice(0, K * M)
    train(micro, M, samples)
    train(whole, K * M, samples)
    if information == "open":
        assert_same_weights(micro, whole)
    for found, wanted in zip(*(m.optimizer.state for m in (micro, whole)), strict=True):
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_cross_moments_of_players_that_act_together_are_those_of_the_batch():
    def branches():
        inputs = keras.Input((6,))
        both = [layers.Dense(4, activation="tanh", name=name)(inputs) for name in ("left", "right")]
        return btf.Model(inputs, layers.Dense(3)(layers.Add()(both)))

    options = {"curvature": btf.curvature.KFAC(cooperative="exact"), "information": "open", "rollout": "linear"}
    micro = train(compiled(btf.GTDDP(0.1, gradient_accumulation_steps=K, **options), branches))
    whole = train(compiled(btf.GTDDP(0.1, **options), branches), K * M)
    assert len(micro.optimizer.couplings) == 1
    assert_same_weights(micro, whole, 1e-4)


def test_between_factorisations_kfac_equals_the_batch_in_groups():
    curvature = btf.curvature.KFAC(invert_every=100)
    micro = train(compiled(btf.GTDDP(0.1, curvature=curvature, gradient_accumulation_steps=K)), M, slice(0, K * M))
    whole = compiled(btf.GTDDP(0.1, curvature=curvature, group_size=M))
    whole.set_weights(micro.get_weights())
    whole.optimizer.build(whole.trainable_variables)
    for own, other in zip(*(m.optimizer._store.variables for m in (micro, whole)), strict=True):
        other.assign(own)
    whole.optimizer.iterations.assign(1)
    train(micro, M, slice(K * M, 36))
    train(whole, K * M, slice(K * M, 36))
    assert_same_weights(micro, whole)


def test_ekfac_has_the_factors_of_the_batch_and_trains():
    micro = compiled(btf.GTDDP(0.05, curvature="ekfac", gradient_accumulation_steps=K))
    whole = compiled(btf.GTDDP(0.05, curvature="ekfac", group_size=M))
    before = micro.evaluate(x, y, verbose=0, batch_size=36)
    train(micro, M, slice(0, K * M))
    train(whole, K * M, slice(0, K * M))
    for found, wanted in zip(*(m.optimizer.state for m in (micro, whole)), strict=True):
        for a, b in zip(found[:2], wanted[:2], strict=True):  # bases of few samples are not unique
            assert_close(a, b, rtol=2e-5)
    for _ in range(2):
        train(micro)
    assert micro.evaluate(x, y, verbose=0, batch_size=36) < 0.9 * before


def players_of_two_heads():
    inputs = keras.Input((6,))
    h = layers.Dense(4, activation="tanh", name="trunk")(inputs)
    return btf.Model(inputs, [layers.Dense(3, name=name)(h) for name in ("left", "right")])


def test_players_with_losses_of_their_own_equal_the_batch_in_groups():
    rules = {"left": ["left"], "right": ["right"]}
    models = []
    for options, size in (({"gradient_accumulation_steps": K}, M), ({"group_size": M}, K * M)):
        keras.utils.set_random_seed(0)
        model = players_of_two_heads()
        model.compile(btf.DDPNOpt(0.3, curvature="identity", player_losses=rules, **options), "mse", jit_compile=False)
        for k in range(0, 24, size):
            model.train_on_batch(x[k : k + size], [x[k : k + size, :3], x[k : k + size, 3:]])
        models.append(model)
    assert_same_weights(*models)
