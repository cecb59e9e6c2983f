"""The two passes: cotangents of the state, dropout masks, statistics, seeds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf import keras_access
from bellman_tf.game.graph import Slot
from bellman_tf.training.game_step import GameStep
from bellman_tf.training.passes import capture_forward, policy_forward
from tests.helpers import assert_close, round_of
from tests.strategies.networks import classify, cross_entropy, labels, normal, residual_cnn


def build(model, x):
    model.compile(optimizer=btf.GTDDP(curvature="identity", rollout="nonlinear"), **cross_entropy())
    model(x)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.usefixtures("_float64")
def test_the_gradient_over_the_live_tensors_predicts_the_loss():
    """Moving the state at a cut moves the loss by <g, dx>, shortcuts included: the partial gradient of each copy."""
    x, y = normal(4, 6, 6, 2), labels(4)
    model = build(residual_cnn(), x)
    step = GameStep(round_of(model, (x, y)))
    step.differentiate()
    forward, stages = step.derivatives.forward, model.game.stages
    assert max(len(cut) for cut in forward.cuts) > 1
    rng = np.random.default_rng(0)
    for t in range(1, len(stages)):
        change = {slot: tf.constant(rng.normal(size=value.shape)) for slot, value in forward.cuts[t].items()}
        terms = [tf.reduce_sum(step.derivatives.at_cuts[t][slot][0] * change[slot]) for slot in change]
        predicted = sum(float(term) for term in terms) / 4
        losses = []
        for size in (1e-6, -1e-6):
            with keras.StatelessScope(state_mapping=step.batch.frozen, initialize_variables=False):
                losses.append(_loss_from(model, forward, t, change, size, x, y))
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(predicted, rel=1e-6, abs=1e-9), t


def _loss_from(model, forward, t, change, size, x, y):
    """Loss after the tensors of cut t are moved, the rest of the network as it stands."""
    values = dict(zip(model.game.graph.inputs, [tf.constant(x)], strict=True))
    values |= {slot: value + size * change[slot] for slot, value in forward.cuts[t].items()}
    later = [call for stage in model.game.stages[t + 1 :] for call in (*stage.before, *stage.calls)]
    for call in (*model.game.stages[t].calls, *later, *model.game.after):
        if all(slot in values for slot in call.inputs):
            args, kwargs = keras.tree.map_structure(
                lambda leaf: values.get(leaf, leaf) if isinstance(leaf, Slot) else leaf, (call.args, call.kwargs)
            )
            if keras_access.takes_training(call.operation):
                kwargs = {**kwargs, "training": True}
            values[call.outputs[0]] = call.operation(*args, **kwargs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return float(loss(y, values[model.game.graph.outputs]))


class Recorder(layers.Layer):
    """Passes its input on and keeps it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, inputs):
        self.seen.append(inputs)
        return inputs


def test_both_passes_draw_the_same_dropout_masks():
    """Also where one generator is drawn from twice, before and behind a player."""
    recorders = [Recorder() for _ in range(3)]
    twice = layers.Dropout(0.5, seed=7)
    inputs = layers.Input((50,))
    x = recorders[0](twice(inputs))
    x = layers.Dense(50, kernel_initializer="identity")(x)
    x = recorders[1](twice(x))
    x = recorders[2](layers.Dropout(0.5, seed=8)(x))
    model = btf.Model(inputs, layers.Dense(3)(x))
    x, y = np.ones((4, 50), "float32"), labels(4)
    model.compile(
        optimizer=btf.GTDDP(1e-12, curvature="identity", rollout="nonlinear"), run_eagerly=True, **cross_entropy()
    )
    model.optimizer.build(model.trainable_variables)  # runs the model on made-up samples
    masks = []
    for _ in range(2):
        for recorder in recorders:
            recorder.seen.clear()
        model.train_on_batch(x, y)
        for recorder in recorders:
            first, second = (tensor.numpy() > 0.5 for tensor in recorder.seen)
            assert np.array_equal(first, second)
        masks.append(recorders[0].seen[0].numpy())
    assert not np.array_equal(*masks), "a new step draws a new mask"


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("rollout", ["linear", "nonlinear"])
@pytest.mark.parametrize("information", ["open", "cooperative"])
def test_statistics_and_seeds_advance_once_per_step(information, rollout):
    """As much as by one call in training mode."""
    x, y = classify(6, 6, 2)(8)
    keras.utils.set_random_seed(0)
    expected = residual_cnn()
    expected(x, training=True)
    keras.utils.set_random_seed(0)
    model = residual_cnn()
    model.compile(optimizer=btf.GTDDP(information=information, rollout=rollout), **cross_entropy())
    model.train_on_batch(x, y)
    for theirs, mine in zip(expected.non_trainable_variables, model.non_trainable_variables, strict=True):
        assert_close(mine, theirs, rtol=1e-5, label=mine.path)
    seeds = [v.numpy() for v in model.seed_variables()]
    assert len(seeds) == 1
    assert all(np.array_equal(v.numpy(), seed) for v, seed in zip(expected.seed_variables(), seeds, strict=True))


def test_the_second_pass_repeats_the_first_where_nothing_moves():
    """Deviations are exactly zero if every player keeps its weights, BatchNormalization and Dropout included."""
    x, y = classify(6, 6, 2)(4)
    model = build(residual_cnn(), x)
    game = model.game
    frozen = [(v, tf.identity(v.value)) for v in (*model.non_trainable_variables, *model.seed_variables())]
    with tf.GradientTape() as tape:
        _, forward = capture_forward(game, [tf.constant(x)], tape, cuts=True)
    visited = []

    def deviate(t, values):
        visited.append(t)
        for slot, copy in forward.cuts[t].items():
            assert np.array_equal(values[slot], copy), (t, slot)

    keep = lambda player, *_: [tf.convert_to_tensor(v) for v in player.variables]
    policy_forward(game, [tf.constant(x)], frozen, deviate, keep, [])
    assert visited == list(range(len(game.stages)))


def test_what_pass_two_would_write_is_discarded():
    x, _ = classify(6, 6, 2)(4)
    model = build(residual_cnn(), x)
    frozen = [(v, tf.identity(v.value)) for v in (*model.non_trainable_variables, *model.seed_variables())]
    before = [v.numpy() for v in model.variables]
    zero = lambda player, *_: [tf.zeros_like(v.value) for v in player.variables]
    policy_forward(model.game, [tf.constant(x)], frozen, lambda t, values: None, zero, [])
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.variables, before, strict=True))
