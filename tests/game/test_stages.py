"""Graphs, stages and cuts of known networks."""

import keras
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.game.graph import Slot, UntraceableModelError, trace
from bellman_tf.game.stages import TracedGame
from tests.strategies.networks import NETWORKS, RawTensorFlow, Subclassed, nested, normal, residual_cnn, shared


def names(game):
    return [[player.name for player in stage.players] for stage in game.stages]


def test_parallel_branches_share_a_stage():
    game = TracedGame(residual_cnn())
    assert names(game) == [["stem"], ["stem_bn"], ["inner"], ["wide", "shortcut"], ["wide_bn"], ["head"]]


def test_the_state_holds_every_tensor_that_crosses_the_cut():
    """Before `inner`: what it reads, which the shortcut reads too. Before `wide_bn`: both branches."""
    game = TracedGame(residual_cnn())
    assert [len(stage.state) for stage in game.stages] == [0, 1, 1, 1, 2, 1]


def test_a_long_shortcut_is_open_until_it_is_read():
    inputs = layers.Input((3,))
    x = start = layers.Dense(3)(inputs)
    for _ in range(3):
        x = layers.Dense(3)(x)
    game = TracedGame(btf.Model(inputs, layers.Dense(3)(layers.Add()([x, start]))))
    assert [len(stage.state) for stage in game.stages] == [0, 1, 2, 2, 1]


def test_an_early_output_stays_in_the_state_to_the_end():
    inputs = layers.Input((3,))
    early = layers.Dense(2)(inputs)
    game = TracedGame(btf.Model(inputs, [early, layers.Dense(2)(layers.Dense(2)(early))]))
    assert [len(stage.state) for stage in game.stages] == [0, 1, 2]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in {"delayed mlp", "raw tensorflow"}])
def test_every_call_runs_once_and_after_what_it_reads(name):
    network = NETWORKS[name]
    model = network.make()
    if not model.built:
        model(network.data(2)[0])
    game = TracedGame(model)
    order = [call for stage in game.stages for call in (*stage.before, *stage.calls)] + list(game.after)
    assert sorted(map(id, order)) == sorted(map(id, game.graph.calls))
    known = set(game.graph.inputs)
    data = set(known)  # what no player has touched
    for stage in game.stages:
        for call in stage.before:
            assert set(call.inputs) <= known
            known |= set(call.outputs)
            if set(call.inputs) <= data:
                data |= set(call.outputs)
        assert set(stage.state) <= known - data
        for call in stage.calls:
            assert set(call.inputs) <= set(stage.state) | data
        known |= {slot for call in stage.calls for slot in call.outputs}
    for call in game.after:
        assert set(call.inputs) <= known
        known |= set(call.outputs)
    assert set(keras.tree.flatten(game.graph.outputs)) <= known


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "delayed mlp"])
def test_every_trainable_variable_has_one_player(name):
    network = NETWORKS[name]
    model = network.make()
    if not model.built:
        model(network.data(2)[0])
    owned = [id(v) for player in model.game.players for v in player.variables]
    assert sorted(owned) == sorted(id(v) for v in model.trainable_variables)
    assert [player.index for player in model.game.players] == list(range(len(model.game.players)))


def test_a_shared_layer_is_one_open_loop_player_in_its_first_stage():
    game = TracedGame(shared())
    [player] = game.open_loop_players
    assert player.name == "twice"
    assert len(player.calls) == 2
    assert player.coverage == "it is applied 2 times"
    assert names(game) == [["before"], ["twice"], [], ["head"]]


def test_layers_that_share_a_variable_are_one_player():
    class Transposed(layers.Layer):
        def __init__(self, other, **kwargs):
            super().__init__(**kwargs)
            self.other = other

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.other.kernel))

    inputs = layers.Input((4,))
    first = layers.Dense(3, name="first")
    model = btf.Model(inputs, Transposed(first, name="second")(first(inputs)))
    [player] = TracedGame(model).players
    assert player.name == "first + second"
    assert player.coverage == "several layers share its variables"
    [player] = model.game.players
    assert player.name == "first"
    assert "its variables are used elsewhere" in player.coverage
    model.compile(optimizer=btf.GTDDP(), loss="mse")
    with pytest.warns(UserWarning, match=r"open-loop.*first"):
        model.fit(normal(4, 4), normal(4, 4, seed=1), verbose=0)


def test_nested_models_are_inlined_and_frozen_layers_are_no_players():
    game = TracedGame(nested())
    assert sorted(player.name for player in game.players) == ["inside", "tail_1", "tail_2"]
    assert not any(isinstance(call.operation, keras.Model) for call in game.graph.calls)


def test_the_game_follows_the_trainable_variables():
    model = residual_cnn()
    game = model.game
    assert model.game is game
    model.get_layer("inner").trainable = False
    assert len(model.game.players) == len(game.players) - 1


def test_an_untraceable_model_says_why():
    model = RawTensorFlow()
    model(normal(2, 6))
    with pytest.raises(UntraceableModelError, match="cannot run on symbolic tensors"):
        trace(model)
    game = TracedGame(model)
    assert "cannot run on symbolic tensors" in game.reason
    assert not game.stages
    assert [player.stage for player in game.players] == [None, None]
    assert names(model.game) == [["first"], ["head"]]  # as it runs, it can be seen


def test_a_subclassed_model_is_traced_with_its_operators():
    model = Subclassed()
    model(normal(2, 6))
    graph = trace(model)
    assert len(graph.inputs) == 1
    assert isinstance(graph.outputs, Slot)
    assert {"first", "second", "head"} <= {call.operation.name for call in graph.calls}
