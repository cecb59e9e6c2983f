"""Players with losses of their own: the step against `verification/references/own_costs.py`, and what must hold."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.training.native_step import NativeStep
from tests.helpers import assert_close, round_of, slow_row, thinned
from tests.training.two_outputs import FELT, LABELS, RULES, TARGETS, X, losses, network, random, trained
from verification.references import own_costs as reference

# The dense twin


def dense_step(model, rules, rate, terminal_hessian, decay):
    """The step of every variable from Jacobians of the outputs in the parameters: the state is what has moved them."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([v.value for v in model.trainable_variables])
        outputs = model(tf.constant(X))
        flat = tf.concat(outputs, axis=1)  # [B, 5]
    jacobians = {v.path: tape.jacobian(flat, v.value).numpy().reshape(30, -1) for v in model.trainable_variables}
    z, ends = flat.numpy(), {}
    p = np.exp(z[:, :3]) / np.exp(z[:, :3]).sum(1, keepdims=True)
    for name in {tuple(own) for own in rules.values()}:
        g, H = np.zeros((6, 5)), np.zeros((6, 5, 5))
        if "a" in name:
            g[:, :3] = p - np.eye(3)[LABELS]
            H[:, :3, :3] = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
        if "b" in name:  # weight 1/2 of the mean of two squares
            g[:, 3:] = 0.5 * (z[:, 3:] - TARGETS)
            H[:, 3:, 3:] = 0.5 * np.eye(2)
        if terminal_hessian == "matched":
            along, size = np.einsum("bi,bij,bj->b", g, H, g), np.sum(g * g, axis=1)
            H = (along / size**2)[:, None, None] * g[:, :, None] * g[:, None, :]
        ends[name] = g, H
    stages = model.game.stages
    own = lambda player: tuple(rules[player.name])
    seats = sorted({(place, own(player)) for stage in stages for place, player in enumerate(stage)})

    def control(player):
        F = np.concatenate([jacobians[v.path] for v in player.variables], axis=1)
        costs = [2 * decay * v.numpy().ravel() * (v.regularizer is not None) for v in player.variables]
        return F, np.eye(F.shape[1]) / rate, np.concatenate(costs)

    at = [{(place, own(player)): player for place, player in enumerate(stage)} for stage in stages]
    controls = [[control(stage[seat]) if seat in stage else None for stage in at] for seat in seats]
    changes = reference.execute([ends[name] for _, name in seats], controls, [np.eye(30)] * len(at), 6)
    found = {}
    for stage, moved in zip(at, changes, strict=True):
        for seat, player in stage.items():
            cuts = np.cumsum([np.prod(v.shape) for v in player.variables])[:-1]
            for v, part in zip(player.variables, np.split(moved[seats.index(seat)], cuts), strict=True):
                found[v.path] = part.reshape(v.shape)
    return found


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("decay", "terminal_hessian"), thinned([0.0, 0.0625], ["matched", "full"]))
def test_it_is_the_dense_step(terminal_hessian, decay):
    rate, regularizer = 0.3, keras.regularizers.L2(decay) if decay else None
    model = network(regularizer=regularizer)
    optimizer = btf.DGNOpt(
        rate, curvature="identity", information="feedback", terminal_hessian=terminal_hessian, player_losses=RULES
    )
    model.compile(optimizer, losses("float64"), loss_weights=[1.0, 0.5], jit_compile=False)
    expected = dense_step(model, FELT, rate, terminal_hessian, decay)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    assert max(map(len, model.game.stages)) == 2
    model.train_on_batch(X, [LABELS, TARGETS])
    for v in model.trainable_variables:
        assert_close(v.numpy() - before[v.path], expected[v.path], atol=1e-12, label=v.path)


# What must hold


@pytest.mark.parametrize("curvature", [slow_row("identity"), "kfac"])
def test_every_loss_for_every_player_changes_nothing(curvature):
    step = lambda rules: trained(btf.DDPNOpt(0.1, curvature=curvature, player_losses=rules), steps=2)
    plain, same = step(None), step({"trunk_*": ["b", "a"], "side": ["a", "b"]})
    assert all(np.array_equal(plain[path], same[path]) for path in plain)


def own_gradients(make, weights_of, felt_by=FELT, inputs=X):
    """Keras's gradient of each player's own loss."""
    found = {}
    for felt in sorted(set(felt_by.values())):
        model = make(keras.Model)
        model.compile(
            "sgd", losses(), loss_weights=[w * (name in felt) for name, w in zip("ab", weights_of, strict=True)]
        )
        with tf.GradientTape() as tape:
            loss = model.compute_loss(inputs, [LABELS, TARGETS], model(inputs, training=True), training=True)
        variables = model.trainable_variables
        for v, g in zip(variables, tape.gradient(loss, variables, unconnected_gradients="zero"), strict=True):
            if felt_by.get(v.path.split("/")[0], "ab") == felt:
                found[v.path] = tf.convert_to_tensor(g).numpy()
    return found


@pytest.mark.parametrize("information", ["open", "feedback"])
def test_at_a_vanishing_rate_every_player_follows_the_gradient_of_its_own_loss(information):
    """Layers in front of a normalisation, too, which take one more backward pass for every objective."""
    rate = 0.1 if information == "open" else 1e-3
    make = lambda base=btf.Model: network(base, regularizer=keras.regularizers.L2(0.1), normalise=True)
    expected = own_gradients(make, (1.0, 0.5))
    before = {v.path: v.numpy() for v in make().trainable_variables}
    optimizer = btf.DGNOpt(rate, curvature="identity", information=information, player_losses=RULES)
    after = trained(optimizer, make=make)
    for path, gradient in expected.items():
        rounding = 3e-7 / rate
        assert_close((before[path] - after[path]) / rate, gradient, atol=rounding + (information == "feedback") * 0.03)


class Shift(layers.Layer):
    """Adds a row of its own to every pixel: open-loop, with its gradient from the outputs of the layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.row = self.add_weight(shape=(4,), initializer="normal", name="row")

    def call(self, x):
        return x + self.row


IMAGES = random.normal(size=(6, 5, 5, 2)).astype("float32")
IMAGE_FELT = {"trunk": "a", "shift": "b", "late": "ab", "a": "ab", "b": "b"}


def convolutions(base=btf.Model):
    keras.utils.set_random_seed(1)
    x = keras.Input((5, 5, 2))
    h = layers.Conv2D(4, 3, activation="tanh", name="trunk")(x)
    h = layers.Conv2D(3, 2, activation="tanh", name="late")(Shift(name="shift")(h))
    h = layers.GlobalAveragePooling2D()(h)
    return base(x, [layers.Dense(3, name="a")(h), layers.Dense(2, name="b")(h)])


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("curvature", ["identity", slow_row("kfac")])
def test_convolutions_and_a_layer_without_a_gram_form_under_xla(curvature):
    """At a vanishing rate each follows its own loss; under XLA and with K-FAC the step is eager's."""
    rate, rules, after = 1e-3, {"trunk": ["a"], "shift": ["b"], "b": ["b"]}, {}
    for jit in (False, True):
        model = convolutions()
        shift = next(player for player in model.game.players if player.name == "shift")
        assert not shift.covered
        assert shift.within is shift.layers[0]
        optimizer = btf.DDPNOpt(rate if curvature == "identity" else 0.3, curvature=curvature, player_losses=rules)
        model.compile(optimizer, losses(), loss_weights=[1.0, 0.5], jit_compile=jit)
        before = {v.path: v.numpy() for v in model.trainable_variables}
        model.train_on_batch(IMAGES, [LABELS, TARGETS])
        after[jit] = {v.path: v.numpy() for v in model.trainable_variables}
    for path, start in before.items():
        moved = after[False][path] - start
        assert_close(after[True][path] - start, moved, atol=1e-3 * np.abs(moved).max() + 3e-8, label=path)
    if curvature == "identity":
        for path, gradient in own_gradients(convolutions, (1.0, 0.5), IMAGE_FELT, IMAGES).items():
            assert_close((before[path] - after[False][path]) / rate, gradient, rtol=2 * rate, label=path)


def test_the_summary_says_which_losses_a_player_feels():
    model, lines = network(), []
    model.compile(btf.DDPNOpt(0.1, player_losses=RULES), losses())
    model.game_summary(lines.append)
    rows = [line.split() for line in lines[0].splitlines()]
    felt = {row[1]: row[-1] for row in rows if len(row) > 2 and row[1] in FELT}
    assert felt == {name: "all" if names == "ab" else names for name, names in FELT.items()}
    model.compile(btf.DDPNOpt(0.1), losses())
    model.game_summary(lines.append)
    assert "losses" not in lines[1]


@pytest.mark.parametrize("curvature", ["kfac", slow_row("rmsprop")])
def test_a_metric_is_that_of_the_players_own_loss(curvature):
    """Open-loop every player steps as if its losses were the only ones."""
    kwargs = {"curvature": curvature, "information": "open"}
    together = trained(btf.DGNOpt(0.05, player_losses=RULES, **kwargs))
    for felt in sorted(set(FELT.values())):
        alone = trained(btf.DGNOpt(0.05, **kwargs), weights=[1.0 * ("a" in felt), 0.5 * ("b" in felt)])
        for path in [path for path in alone if FELT[path.split("/")[0]] == felt]:
            assert_close(together[path], alone[path], rtol=1e-5, label=path)


def cubes(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_pred - y_true) ** 3, axis=-1)


@pytest.mark.parametrize(
    ("terminal_hessian", "loss", "felt"),
    [
        slow_row("matched", losses(), "a"),
        ("full", losses(), "b"),
        ("matched", ["sparse_categorical_crossentropy", cubes], "b"),
        slow_row(2, [cubes, cubes], "a"),
    ],
)
def test_a_loss_that_no_player_feels_might_as_well_not_be_there(terminal_hessian, loss, felt):
    """With closed forms and without."""
    found = []
    for weights, rules in (([1.0, 2.0], {"*": [felt]}), ([1.0 * (felt == "a"), 2.0 * (felt == "b")], None)):
        model = network(logits=not isinstance(loss[0], str))
        optimizer = btf.DDPNOpt(0.1, curvature="identity", terminal_hessian=terminal_hessian, player_losses=rules)
        model.compile(optimizer, loss, loss_weights=weights, jit_compile=False)
        model.train_on_batch(X, [np.eye(3)[LABELS] if loss[0] is cubes else LABELS, TARGETS])
        found.append([v.numpy() for v in model.trainable_variables])
    for ours, alone in zip(*found, strict=True):
        assert_close(ours, alone, rtol=1e-5)


def test_a_loss_of_the_same_logits_is_left_out():
    """Keras's cross-entropy of the probabilities follows them back to the other output."""
    found = []
    for weights, rules in (([1.0, 2.0], {"*": ["z"]}), ([1.0, 0.0], None)):
        keras.utils.set_random_seed(1)
        x = keras.Input((5,))
        z = layers.Dense(3, name="z")(layers.Dense(4, activation="tanh")(x))
        model = btf.Model(x, [z, layers.Activation("softmax", name="p")(z)])
        optimizer = btf.DDPNOpt(1.0, curvature="identity", player_losses=rules)
        model.compile(optimizer, [cubes, "sparse_categorical_crossentropy"], loss_weights=weights, jit_compile=False)
        model.train_on_batch(X, [np.eye(3)[LABELS], LABELS])
        found.append([v.numpy() for v in model.trainable_variables])
    for ours, alone in zip(*found, strict=True):
        assert_close(ours, alone, rtol=1e-5)


def columns_of(rules, terminal_hessian):
    """Columns of every objective of a step, by the outputs that its players feel."""
    model = network()
    optimizer = btf.DDPNOpt(0.1, curvature="identity", terminal_hessian=terminal_hessian, player_losses=rules)
    model.compile(optimizer, losses(), jit_compile=False)
    optimizer.build(model.trainable_variables)
    step = NativeStep(round_of(model, (tf.constant(X, tf.float32), [tf.constant(LABELS), tf.constant(TARGETS)])))
    step.run_forward()
    step.run_backward(curved=True)
    return {FELT[objective.players[0].name]: len(objective.columns) for objective in step.objectives}


def test_an_objective_has_the_columns_of_its_own_losses():
    assert columns_of(RULES, "full") == {"a": 1 + 2, "b": 1 + 2, "ab": 1 + 4}
    assert columns_of(RULES, "matched") == {"a": 1, "b": 1, "ab": 1}


def towers(names):
    """One chain of layers per output, without a layer in common."""
    x = keras.Input((5,))
    outputs = []
    for name in names:
        seed = lambda k, name=name: keras.initializers.GlorotUniform(seed=10 * "ab".index(name) + k)
        h = layers.Dense(4, activation="tanh", name=f"{name}_1", kernel_initializer=seed(1))(x)
        h = layers.Dense(4, activation="tanh", name=f"{name}_2", kernel_initializer=seed(2))(h)
        outputs.append(layers.Dense(2, name=name, kernel_initializer=seed(3))(h))
    return btf.Model(x, outputs)


@pytest.mark.parametrize(
    "options",
    [
        slow_row({"curvature": "kfac"}),
        {"curvature": "identity", "momentum": 0.9, "nesterov": True},
        slow_row({"inner_optimizer": "adam"}),
        slow_row({"curvature": "rmsprop", "group_size": 4, "terminal_hessian": 1}),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_players_that_share_no_loss_and_no_state_play_games_of_their_own(options):
    rate = {} if "inner_optimizer" in options else {"learning_rate": 0.1}
    found = {}
    for names in ("ab", "a", "b"):
        model = towers(names)
        rules = {"a*": ["a"], "b*": ["b"]} if names == "ab" else None
        model.compile(btf.DDPNOpt(player_losses=rules, **rate, **options), "mse", jit_compile=False)
        for _ in range(2):
            model.train_on_batch(X, [TARGETS] * len(names))
        found[names] = {v.path: v.numpy() for v in model.trainable_variables}
    for path, values in found["ab"].items():
        assert_close(values, (found["a"] | found["b"])[path], rtol=3e-5, label=path)


def test_a_monitor_and_a_dictionary_of_outputs():
    x = keras.Input((5,))
    h = layers.Dense(4, activation="tanh", name="h")(x)
    model = btf.Model(x, {"one": layers.Dense(3, name="a")(h), "two": layers.Dense(2, name="b")(h)})
    loss = dict(zip(("one", "two"), losses(), strict=True))
    model.compile(btf.DDPNOpt(0.1, player_losses={"h": ["two"]}), loss, jit_compile=False)
    history = model.fit(
        X, {"one": LABELS, "two": TARGETS}, epochs=2, batch_size=3, verbose=0, callbacks=[btf.callbacks.GameMonitor()]
    ).history
    assert np.isfinite([values for key in history for values in history[key]]).all()
    assert not any("predicted" in key for key in history)


def test_saving_keeps_the_rules():
    optimizer = btf.DDPNOpt(player_losses=RULES)
    again = btf.DDPNOpt.from_config(optimizer.get_config())
    assert again.options == optimizer.options
    assert again.get_config()["player_losses"] == RULES
    assert btf.DDPNOpt().get_config()["player_losses"] is None
