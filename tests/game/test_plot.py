"""The picture of a game: which boxes its edges join, where they stand, and that a file is written."""

import builtins
import re

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from bellman_tf.game import TracedGame
from bellman_tf.game.flow import Node, _spread, edges, heights
from bellman_tf.game.layout import Layout, half
from bellman_tf.game.plot import plot_game
from tests.strategies.networks import RawTensorFlow, mlp, normal, shared


def named(game):
    """Edges as pairs of names; merges by label and number."""

    def name(node):
        if node.kind == "player":
            return f"{game.players[node.index].name}@{node.stage}"
        return f"{node.label}#{node.index}" if node.kind == "merge" else node.label

    return [(name(edge.source), name(edge.target)) for edge in edges(game)]


def dense(name):
    return layers.Dense(4, name=name)


def residual():
    inputs = keras.Input((4,))
    x = dense("first")(inputs)
    for i in range(2):
        x = layers.ReLU()(layers.Add()([x, dense(f"b{i}")(layers.ReLU()(dense(f"a{i}")(x)))]))
    return keras.Model(inputs, dense("head")(x))


def branches():
    inputs = keras.Input((4,))
    long = dense("long_1")(dense("long_0")(inputs))
    both = layers.Concatenate()([long, layers.Dropout(0.1)(dense("short")(inputs))])
    return keras.Model(inputs, [dense("left")(both), layers.Dense(2, name="right")(both)])


def dense_block():
    """Concatenations of all that came before, a gate, a second input and a second output."""
    first, second = keras.Input((4,)), keras.Input((4,))
    features = [dense("stem")(first)]
    for i in range(4):
        features.append(dense(f"d{i}")(layers.Concatenate()(features) if i else features[0]))
    x = layers.Multiply()([features[-1], dense("gate_1")(dense("gate_0")(features[-1]))])
    x = layers.Add()([x, features[0], second])
    p, q, r = dense("p0")(x), dense("q1")(dense("q0")(x)), dense("r2")(dense("r1")(dense("r0")(x)))
    x = layers.Concatenate()([layers.Add()([p, q]), r, features[0]])
    return keras.Model([first, second], [dense("head")(x), p])


def crossing():
    """A long shortcut ends where a short one begins: at a merge, and at a layer of two inputs."""
    inputs = keras.Input((3, 4))
    x = [dense("x0")(inputs)]
    for i in range(1, 4):
        x.append(dense(f"x{i}")(x[-1]))
    y = dense("y0")(layers.Add()([x[3], x[0]]))
    y = [dense("y1")(layers.Add()([y, x[3]]))]
    y += [dense("y2")(y[0])]
    y += [dense("y3")(y[1])]
    z = layers.MultiHeadAttention(1, 2, name="attention")(y[2], y[0])
    for i in range(3):
        z = dense(f"z{i}")(z)
    return keras.Model(inputs, dense("head")(layers.Add()([z, y[2]])))


def test_a_chain_has_one_edge_per_layer():
    assert named(TracedGame(keras.Sequential([keras.Input((4,)), dense("a"), layers.ReLU(), dense("b")]))) == [
        ("input", "a@0"), ("a@0", "b@1"), ("b@1", "output"),
    ]  # fmt: skip


def test_shortcuts_go_from_merge_to_merge():
    """Two identity blocks: without merges the head would have three sources, and one more for each block."""
    game = TracedGame(residual())
    assert set(named(game)) == {
        ("input", "first@0"), ("first@0", "a0@1"), ("a0@1", "b0@2"), ("first@0", "+#0"), ("b0@2", "+#0"),
        ("+#0", "a1@3"), ("a1@3", "b1@4"), ("+#0", "+#1"), ("b1@4", "+#1"), ("+#1", "head@5"), ("head@5", "output"),
    }  # fmt: skip
    shortcuts = [pair for pair, edge in zip(named(game), edges(game), strict=True) if edge.shortcut]
    assert shortcuts == [("first@0", "+#0"), ("+#0", "+#1")]


def test_branches_meet_where_the_longest_ends():
    game = TracedGame(branches())
    assert set(named(game)) == {
        ("input", "long_0@0"), ("long_0@0", "long_1@1"), ("input", "short@0"), ("long_1@1", "cat#0"),
        ("short@0", "cat#0"), ("cat#0", "left@2"), ("cat#0", "right@2"), ("left@2", "output 1"),
        ("right@2", "output 2"),
    }  # fmt: skip
    [merge] = {edge.target for edge in edges(game) if edge.target.kind == "merge"}
    assert merge[:2] == (1, 1)
    assert [pair for pair, edge in zip(named(game), edges(game), strict=True) if edge.shortcut] == [
        ("short@0", "cat#0")
    ]


def test_what_reads_one_tensor_twice_is_no_merge():
    inputs = keras.Input((4,))
    x = dense("a")(inputs)
    x = layers.Multiply()([x, layers.Activation("sigmoid")(x)])
    assert named(TracedGame(keras.Model(inputs, dense("b")(x)))) == [
        ("input", "a@0"), ("a@0", "b@1"), ("b@1", "output"),
    ]  # fmt: skip


def test_merges_of_merges_stand_one_behind_another():
    first, second, third = (keras.Input((4,)) for _ in range(3))
    x = layers.Add()([dense("a")(first), dense("b")(second)])
    game = TracedGame(keras.Model([first, second, third], dense("c")(layers.Subtract()([x, third]))))
    merges = sorted({edge.target for edge in edges(game) if edge.target.kind == "merge"})
    assert [(node.stage, node.depth, node.label) for node in merges] == [(0, 1, "+"), (0, 2, "-")]
    assert ("input 3", "-#1") in named(game)
    assert ("-#1", "c@1") in named(game)


def test_a_layer_applied_twice_stands_at_both_stages():
    game = TracedGame(shared())
    assert set(named(game)) == {
        ("input", "before@0"), ("before@0", "twice@1"), ("twice@1", "twice@2"), ("twice@1", "+#0"), ("twice@2", "+#0"),
        ("+#0", "head@3"), ("head@3", "output"),
    }  # fmt: skip


def test_every_network_flows_from_left_to_right():
    for make in (residual, branches, dense_block, crossing, shared, mlp):
        for edge in edges(TracedGame(make())):
            assert edge.source[:2] < edge.target[:2]


def test_without_a_graph_there_are_no_edges():
    model = RawTensorFlow()
    model(normal(2, 6))
    assert edges(TracedGame(model)) == []


@given(st.lists(st.integers(-20, 20), max_size=8).map(sorted), st.integers(1, 4))
def test_spreading_keeps_the_distance_and_is_nearest(wishes, distance):
    """Nearest: no pool of touching points can move either way and come closer to its wishes."""
    found = _spread(wishes, distance)
    assert all(b - a >= distance - 1e-9 for a, b in zip(found, found[1:], strict=False))
    pools = []
    for i, (y, wish) in enumerate(zip(found, wishes, strict=True)):
        if i and y - found[i - 1] <= distance + 1e-9:
            pools[-1].append(y - wish)
        else:
            pools.append([y - wish])
    assert all(abs(sum(pool)) < 1e-6 for pool in pools)
    for pool in pools:  # a part of a pool that could leave would do so: its beginning wants down, its end up
        for i in range(1, len(pool)):
            assert sum(pool[:i]) <= 1e-6


@pytest.mark.parametrize("per_row", [20, 6, 3])
@pytest.mark.parametrize("make", [residual, branches, dense_block, crossing, shared])
def test_wires_keep_clear_of_boxes_and_of_one_another(make, per_row):
    """Level parts of wires with other ends are apart; a wire touches no box but those it joins."""
    for row in Layout(TracedGame(make()), per_row).rows:
        level = []
        for path, source, target, edge in row.wires:
            if len(path) == 2 and path[0][1] != path[1][1]:
                continue  # a curve from one place to the next
            for (x_0, y_0), (x_1, y_1) in zip(path, path[1:], strict=False):
                low, high = sorted((y_0, y_1))
                left, right = sorted((x_0, x_1))
                if low == high:
                    level.append((left, right, low, edge))
                for node in set(row.nodes) - {source, target}:
                    x, y, (width, height) = row.x[node[:2]], row.y[node], half(node)
                    apart = right <= x - width or left >= x + width or high <= y - height or low >= y + height
                    assert apart, f"{edge} runs through {node}"
        for i, (left, right, y, edge) in enumerate(level):
            for left_2, right_2, y_2, other in level[:i]:
                same = edge.source == other.source or edge.target == other.target
                assert same or y != y_2 or right <= left_2 or left >= right_2, f"{edge} lies on {other}"


def test_boxes_of_a_stage_do_not_overlap_and_chains_are_level():
    found = heights(edges(TracedGame(branches())), {0: 0.7, 1: 0.5})
    by_stage = {}
    for node, y in found.items():
        by_stage.setdefault(node[:2], []).append(y)
    for ys in by_stage.values():
        assert all(b - a >= 0.7 - 1e-9 for a, b in zip(sorted(ys), sorted(ys)[1:], strict=False))
    long_0, long_1 = (
        next(y for node, y in found.items() if node[:4] == (t, 0, "player", i)) for t, i in ((0, 0), (1, 2))
    )
    assert long_0 == long_1
    assert found[Node(-1, 0, "input", 0, "input")] == 0


def svg_text(path):
    """Matplotlib notes each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_the_picture_names_what_it_shows(tmp_path):
    path = tmp_path / "game.svg"
    TracedGame(branches()).plot(path, name="two branches")
    text = svg_text(path)
    expected = ["two branches", "3 stages, 5 players, 114 parameters", "stage 0", "stage 2", "long_0", "20 params"]
    expected += ["dense", "cat", "input", "output 1", "output 2", "18 params"]
    assert set(expected) <= set(text)
    assert "open-loop" not in text
    assert text.count("dense") == 6  # five boxes and the legend


@pytest.mark.parametrize(
    "suffix, start", [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_the_suffix_is_the_format(tmp_path, suffix, start):
    path = tmp_path / f"game{suffix}"
    plot_game(TracedGame(mlp()), str(path), dpi=40)
    assert path.read_bytes().startswith(start)


def test_movable_players_have_a_bar(tmp_path):
    path = tmp_path / "game.svg"
    plot_game(TracedGame(branches()), path)
    bars = [text for text in svg_text(path) if " to " in text]
    assert bars == ["short, 0 to 1"]
    plot_game(TracedGame(mlp()), path)
    assert not [text for text in svg_text(path) if " to " in text]


def test_many_stages_continue_in_another_row(tmp_path):
    """What crosses the margin has the same number on both sides."""
    path = tmp_path / "game.svg"
    for per_row, tags in ((6, ""), (3, "111"), (2, "11223344")):  # one tensor leaves once, and enters to two readers
        plot_game(TracedGame(residual()), path, stages_per_row=per_row)
        text = svg_text(path)
        assert [f"stage {t}" in text for t in range(7)] == [True] * 6 + [False]
        assert "".join(sorted(t for t in text if t.isdigit())) == tags
    width = {}
    for per_row in (2, 6):
        plot_game(TracedGame(residual()), path, stages_per_row=per_row)
        width[per_row] = float(re.search(r'width="([\d.]+)pt"', path.read_text())[1])
    assert width[2] < 0.6 * width[6]


def test_open_loop_players_are_dashed(tmp_path):
    inputs = keras.Input((3, 2))
    path = tmp_path / "game.svg"
    plot_game(TracedGame(keras.Model(inputs, dense("head")(layers.GRU(3, name="gru")(inputs)))), path)
    assert svg_text(path).count("open-loop") == 2  # its box and the legend
    assert path.read_text().count("stroke-dasharray") == 2
    plot_game(TracedGame(mlp()), path)
    assert "stroke-dasharray" not in path.read_text()


def test_players_without_a_place_are_listed(tmp_path):
    model = RawTensorFlow()
    model(normal(2, 6))
    path = tmp_path / "game.svg"
    TracedGame(model).plot(path)
    text = svg_text(path)
    assert "Open-loop, place in the network not known: the model cannot be traced" in text
    assert {"first", "head"} <= set(text)


def test_a_model_without_players_is_drawn(tmp_path):
    path = tmp_path / "game.svg"
    TracedGame(keras.Sequential([keras.Input((4,)), layers.ReLU()])).plot(path)
    assert {"input", "output", "0 stages, 0 players, 0 parameters"} <= set(svg_text(path))


def test_long_names_are_shortened_in_the_middle(tmp_path):
    path = tmp_path / "game.svg"
    TracedGame(keras.Sequential([keras.Input((4,)), dense("a_very_long_name_of_a_layer_number_7")])).plot(path)
    assert "a_very_long…r_number_7" in svg_text(path)


@pytest.mark.parametrize(
    "path, options, text",
    [
        ("game.bmp", {}, "`path` must end in .png, .svg or .pdf. Received: path="),
        ("game", {}, "`path` must end in .png, .svg or .pdf. Received: path="),
        ("missing/game.png", {}, "`path` must lie in a folder that exists. Received: path="),
        ("game.png", {"stages_per_row": 0}, "`stages_per_row` must be an integer >= 1. Received: stages_per_row=0"),
        ("game.png", {"dpi": 0.5}, "`dpi` must be an integer >= 1. Received: dpi=0.5"),
    ],
)
def test_bad_arguments_are_named(tmp_path, path, options, text):
    with pytest.raises(ValueError) as caught:
        plot_game(TracedGame(mlp()), tmp_path / path, **options)
    assert text in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'`pip install "bellman_tf\[examples\]"`'):
        plot_game(TracedGame(mlp()), tmp_path / "game.png")
