"""Placements of players off the longest path."""

import keras
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.game.stages import TracedGame


def inception(branches=((1,), (3,), (2,)), blocks=1):
    """Blocks of parallel branches with so many Dense layers each, between a stem and a head."""
    inputs = x = layers.Input((4,))
    x = layers.Dense(3, name="stem")(x)
    for b in range(blocks):
        ends = []
        for k, (length,) in enumerate(branches):
            y = x
            for d in range(length):
                y = layers.Dense(3, name=f"b{b}_{k}_{d}")(y)
            ends.append(y)
        x = layers.Add()(ends)
    return btf.Model(inputs, layers.Dense(2, name="head")(x))


def stages(game):
    return [sorted(player.name for player in stage) for stage in game.stages]


def test_only_players_off_the_longest_path_move():
    game = TracedGame(inception())
    moving = {game.players[k].name: span for k, span in game.ranges.items() if span[1] > span[0]}
    assert moving == {"b0_0_0": (1, 3), "b0_2_0": (1, 2), "b0_2_1": (2, 3)}


def test_a_block_keeps_the_order_of_its_layers():
    alignments = TracedGame(inception()).alignments
    names = [alignments.named(placement) for placement in alignments]
    assert all(placement["b0_2_0"] < placement["b0_2_1"] for placement in names)
    assert alignments.count == len(names) == 9  # three places of the short branch times three of the other
    assert sorted(map(len, alignments.blocks)) == [3, 3]


def test_the_count_is_the_product_over_blocks():
    two = TracedGame(inception(((1,), (2,)), blocks=3)).alignments
    assert two.count == 8 and len(list(two)) == 8
    assert len({tuple(placement.items()) for placement in two}) == 8


def test_many_alignments_are_sampled_without_repetition():
    many = TracedGame(inception(((1,), (3,)), blocks=7)).alignments
    assert many.count == 3**7
    chosen = many.sample(5, seed=1)
    assert chosen[:2] == [many.asap, many.alap]
    assert len({tuple(placement.items()) for placement in chosen}) == 5
    assert chosen == many.sample(5, seed=1) != many.sample(5, seed=2)
    assert "2187 alignments" in repr(many) and "1024 of them" in repr(many)


def test_the_latest_placement_puts_players_before_the_join():
    game = TracedGame(inception())
    late = game.aligned(game.alignments.alap)
    assert stages(late) == [["stem"], ["b0_1_0"], ["b0_1_1", "b0_2_0"], ["b0_0_0", "b0_1_2", "b0_2_1"], ["head"]]
    assert [len(stage.state) for stage in late.stages] == [0, 1, 2, 3, 1]  # stem's output waits for the late ones
    assert [p.index for p in late.players] == [p.index for p in game.players]
    assert stages(game)[1] == ["b0_0_0", "b0_1_0", "b0_2_0"], "the original game has not changed"


def test_a_chain_has_one_alignment():
    assert TracedGame(inception(((2,),))).alignments.count == 1
    assert list(TracedGame(inception(((2,),))).alignments) == [{}]


@pytest.mark.parametrize("placement", [{"b0_2_0": 2, "b0_2_1": 2}, {"b0_0_0": 4}, {"stem": 1}, {"b0_2_0": 0}])
def test_an_impossible_placement_is_refused(placement):
    game = TracedGame(inception())
    index = {player.name: player.index for player in game.players}
    with pytest.raises(ValueError, match=r"`alignment` must keep the order .* Received"):
        game.aligned({index[name]: stage for name, stage in placement.items()})


def test_a_layer_applied_twice_stays():
    inputs, shared = layers.Input((3,)), layers.Dense(3, name="shared")
    long = layers.Dense(3, name="c")(layers.Dense(3, name="b")(layers.Dense(3, name="a")(inputs)))
    model = btf.Model(inputs, layers.Add()([long, shared(shared(inputs))]))
    game = TracedGame(model)
    spans = {game.players[k].name: span for k, span in game.ranges.items()}
    assert spans["shared"] == (0, 0)


def test_the_summary_shows_the_range():
    lines = []
    TracedGame(inception()).summary(print_fn=lines.append)
    assert "1 (1-3)" in "\n".join(lines) and "9 alignments" in "\n".join(lines)
    keras.backend.clear_session()
