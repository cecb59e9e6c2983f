"""Players that share a metric or a value, and players with losses of their own, on replicas of B/n samples and of B."""

import keras
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row
from tests.replicas.training import CLASSES, assert_same_training, branches, compiled, data, fit

KFAC, EKFAC = btf.curvature.KFAC, btf.curvature.EKFAC
OPTIMIZERS = {
    "exact": lambda **o: btf.GTDDP(0.03, curvature=KFAC(cooperative="exact", invert_every=2), **o),
    "published": lambda **o: btf.GTDDP(0.03, curvature=KFAC(cooperative="published"), **o),
    "rescale": lambda **o: btf.GTDDP(0.03, curvature=EKFAC(cooperative="rescale"), **o),
    "exact, eigenbasis": lambda **o: btf.GTDDP(0.03, curvature=EKFAC(cooperative="exact"), **o),
    "no feedback": lambda **o: btf.GTDDP(0.1, curvature="identity", information="cooperative_open", **o),
    "feedback": lambda **o: btf.GTDDP(0.03, information="feedback", **o),
}
RULES = {"head": ["policy"], "side": ["value"], "trunk": ["value", "policy"]}
COUPLINGS = ("replica", "global")


def together(coupling, count):
    """Options of one replica that takes the steps of `count` with 8 samples together."""
    return {"group_size": 8 // count} if coupling == "replica" else {}


def compare(name, count, coupling, **options):
    x, y = data(24)
    make = OPTIMIZERS[name]
    model, _ = compiled(count, lambda: make(coupling=coupling), branches, **options)
    alone, _ = compiled(1, lambda: make(**together(coupling, count)), branches, **options)
    assert_close(fit(model, x, y, 8, 1)["loss"], fit(alone, x, y, 8, 1)["loss"], rtol=1e-5)
    assert_same_training(model, alone, but=("basis", "coupling") if "eigenbasis" in name else ("basis",))  # no signs


@pytest.mark.parametrize(("name", "coupling"), [slow_row("exact", "replica"), ("exact", "global")])
def test_players_of_one_stage(name, coupling):
    compare(name, 2, coupling, run_eagerly=True)


@pytest.mark.slow
@pytest.mark.parametrize(("coupling", "count"), [("replica", 2), ("global", 4)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_one_graph(name, count, coupling):
    compare(name, count, coupling)


def critic():
    """One trunk, two heads, and a layer of a third loss in between that no rule names."""
    inputs = keras.Input((4,))
    trunk = layers.Dense(5, activation="tanh", name="trunk")(inputs)
    policy = layers.Dense(CLASSES, name="head")(trunk)
    value = layers.Dense(1, name="side")(layers.Dense(4, activation="tanh", name="between")(trunk))
    outputs = layers.Identity(name="policy")(policy), layers.Identity(name="value")(value)
    return btf.Model(inputs, dict(zip(("policy", "value"), outputs, strict=True)))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(
    ("count", "curvature"),
    [(2, "identity"), *(slow_row(n, c) for n, c in ((2, "adam"), (4, "kfac")))],
)
def test_losses_of_their_own(count, curvature, coupling):
    x, y = data(16)
    losses = {"policy": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "value": "mse"}
    options = {"loss": losses, "run_eagerly": True}
    make = lambda **o: lambda: btf.GTDDP(
        0.05, curvature=curvature, information="feedback", player_losses=RULES, **o
    )  # fmt: skip
    model, _ = compiled(count, make(coupling=coupling), critic, **options)
    alone, _ = compiled(1, make(**together(coupling, count)), critic, **options)
    targets = {"policy": y, "value": x[:, :1] ** 2}
    assert_close(fit(model, x, targets, 8, 1)["loss"], fit(alone, x, targets, 8, 1)["loss"], rtol=1e-5)
    assert_same_training(model, alone)
