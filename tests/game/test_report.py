"""The text of `game_summary`."""

import dataclasses
import math

import keras
import numpy as np
import pytest

import bellman_tf as btf
from bellman_tf.curvature.gram.compute import RUN
from bellman_tf.game.native import NativeGame
from bellman_tf.game.stages import TracedGame
from bellman_tf.game.survey import signature_of
from tests.strategies.networks import RawTensorFlow, cross_entropy, mlp, normal, recurrent


def summary(model):
    lines = []
    model.game_summary(print_fn=lines.append)
    return "\n".join(lines)


def test_it_shows_stages_players_and_how_they_are_covered():
    model = recurrent()
    model.compile(optimizer=btf.GTDDP(curvature="ekfac"), **cross_entropy())
    text = summary(model)
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    assert ["stage", "player", "kind", "parameters", "curvature", "gram", "gradient", "coverage"] in rows
    assert next(row for row in rows if "table" in row)[:4] == ["0", "table", "embedding", "36"]
    gru = next(line for line in text.splitlines() if " gru " in line)
    assert "open-loop" in gru
    assert "GRU has no Gram form" in gru
    assert next(row for row in rows if "head" in row)[4].startswith("ekfac 6")
    assert "3 stages, 3 players, 219 parameters, 24.7% of them covered" in text


def test_without_our_optimizer_the_curvature_is_open():
    assert [line.split()[4] for line in summary(mlp()).splitlines() if line.startswith(("0", "1", "2"))] == ["-"] * 3


def test_it_says_why_a_model_is_not_traced():
    model = RawTensorFlow()
    model(normal(2, 6))
    lines = []
    TracedGame(model).summary(print_fn=lines.append)
    assert "Layers not seen: `model` must run on symbolic tensors" in lines[0]
    assert "Layers not seen" not in summary(model)  # as it runs, it can be seen


def test_it_says_how_the_gradient_is_had_and_what_has_no_effect():
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(3, name="before")(inputs))
    model = btf.Model(inputs, keras.layers.Dense(2, name="behind")(keras.layers.Activation("relu")(x)))
    rows = {line.split()[1]: line for line in summary(model).splitlines() if line[:1].isdigit() or line[:1] == "-"}
    assert "backward pass" in rows["before"]
    assert "cotangents" in rows["behind"]
    assert "no effect: what follows takes every shift away" in rows["before/bias"]


def test_it_prints_by_default(capsys):
    mlp().game_summary()
    assert capsys.readouterr().out.startswith('Game of model "')


def test_the_gram_form_follows_the_static_shapes():
    inputs = keras.Input((16, 16, 8))
    x = keras.layers.Conv2D(32, 3, padding="same", name="large")(inputs)
    x = keras.layers.Conv2D(4, 1, name="pointwise")(x)
    outputs = keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x))
    game = btf.Model(inputs, outputs).game
    assert [player.gram for player in game.players] == ["sketch, 1 of 9 taps", "per sample", "factored"]
    costs = [(16 * 16 + 64) * 8 * 32, (16 * 16 + 64) * 33 * 4, 64 * (1025 + 3)]
    assert [player.gram_cost for player in game.players] == costs
    assert [[player.name for player in stage] for stage in game.stages] == [["large"], ["pointwise"], ["head"]]
    lines = []
    game.summary(print_fn=lines.append)
    assert "3 stages, 3 players" in lines[0]


# The products of pairs of two positions take 2 x 2 x 3 numbers of four bytes a pair of samples.
LOOKUP = f"lookup, blocks above {math.isqrt(2**26 // 12)} samples"


@pytest.mark.parametrize(
    ("options", "forms"),
    [
        ({"curvature": "kfac"}, [LOOKUP, "per sample", "factored"]),
        ({"curvature": "rmsprop", "gram": "sketch"}, [LOOKUP, "sketch, 1 of 3 taps", "per sample"]),
        ({"curvature": "rmsprop", "value_hessian": "block_diagonal"}, ["lookup", "per sample", "squares"]),
        (
            {"curvature": "rmsprop", "gram_memory": 4 * 300},
            [
                f"{form}, blocks above {most} samples"
                for form, most in (("lookup", 5), ("per sample", 5), ("per sample", 7))
            ],
        ),
        ({"curvature": "full"}, ["per sample"] * 3),
    ],
)
def test_the_summary_prints_the_forms_that_run(options, forms, monkeypatch):
    """Under the optimizer's own metrics, options and groups."""
    tokens = keras.Input((2,), dtype="int32")
    x = keras.layers.Embedding(260, 3)(tokens)
    x = keras.layers.Conv1D(3, 3, padding="same")(x)
    model = btf.Model(tokens, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    optimizer = btf.GTDDP(1e-3, **options)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    ran = []
    for form, run in RUN.items():
        monkeypatch.setitem(RUN, form, lambda *args, form=form, run=run: (ran.append(form), run(*args))[1])
    model.train_on_batch(np.arange(16).reshape(8, 2), np.arange(8) % 3)
    announced = optimizer.describe_grams(model.game)
    assert [form.split(",")[0].replace(" ", "_") for form in reversed(announced)] == ran, "the last layer is the first"
    assert announced == forms
    lines = []
    model.game_summary(print_fn=lines.append)
    assert all(form in lines[0] for form in announced)


@pytest.mark.parametrize(
    ("options", "forms"),
    [
        ({"information": "open"}, ["none"] * 4),
        ({}, ["factored"] * 4),
        ({"curvature": btf.curvature.KFAC(cooperative="exact")}, ["factored", "joint", "joint", "factored"]),
        ({"curvature": btf.curvature.KFAC(cooperative="rescale")}, ["per sample"] * 4),
    ],
)
def test_players_with_one_metric_and_without_any_gram_matrix(options, forms):
    """Two players of one stage share a Gram matrix where they share the metric; an open step needs none."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh")(inputs)
    x = keras.layers.Add()([keras.layers.Dense(4)(x), keras.layers.Dense(4)(x)])
    model = btf.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(btf.GTDDP(1e-3, **options), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert model.optimizer.describe_grams(model.game) == forms


def test_players_in_another_order_are_described_as_what_they_are():
    model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.LayerNormalization()])
    model.compile(optimizer=btf.GTDDP(curvature="kfac"), loss="mse")
    model.optimizer.build(model.trainable_variables)
    described = model.optimizer.describe(model.game)
    grams = model.optimizer.describe_grams(model.game)
    other = NativeGame(model, signature_of(model))
    other.players = [dataclasses.replace(p, index=k) for k, p in enumerate(reversed(other.players))]
    assert model.optimizer.describe(other) == described[::-1]
    assert model.optimizer.describe_grams(other) == grams[::-1]
