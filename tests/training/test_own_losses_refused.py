"""Players with losses of their own: rules and losses that are refused, and whom a pattern names."""

import keras
import pytest

import bellman_tf as btf
from bellman_tf.training.own_losses import felt_by, rules_of
from tests.training.two_outputs import FELT, LABELS, RULES, TARGETS, X, losses, network


class Scalar(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred))


class Reduced(keras.losses.MeanSquaredError):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return keras.ops.sqrt(super().__call__(y_true, y_pred, sample_weight))


class OwnLoss(btf.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"information": "cooperative"}, "information='feedback'"),
        ({"information": "cooperative_open"}, "information='feedback'"),
        ({"rollout": "nonlinear"}, "Leave `rollout`"),
        ({"value_hessian": "outer_product"}, "Leave `rollout`"),
        ({"step_control": "levenberg_marquardt"}, "no player minimises J"),
        ({"player_losses": {}}, "players not named feel every loss"),
        ({"player_losses": {"trunk_1": []}}, "players not named"),
        ({"player_losses": {"trunk_1": "a"}}, "players not named"),
        ({"player_losses": ["a"]}, "players not named"),
    ],
)
def test_the_constructor_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        btf.DGNOpt(**{"information": "feedback", "player_losses": RULES} | options)


@pytest.mark.parametrize(
    ("rules", "loss", "make", "match"),
    [
        ({"trunk_1": ["c"]}, None, network, "name outputs that have a loss"),
        ({"trunk_1": ["b"]}, [losses()[0], None], network, "name outputs that have a loss"),
        ({"nobody": ["a"]}, None, network, "name players of the game"),
        ({"trunk_*": ["a"], "trunk_1": ["b"]}, None, network, "one rule per player"),
        (RULES, [losses()[0], Scalar()], network, "one value per sample"),
        (RULES, [losses()[0], Reduced()], network, "reduction to Keras"),
        (RULES, None, lambda: network(OwnLoss), "`compute_loss` of its own"),
    ],
)
def test_a_step_refuses(rules, loss, make, match):
    model = make()
    model.compile(btf.DDPNOpt(player_losses=rules), loss or losses(), jit_compile=False)
    with pytest.raises(ValueError, match=match):
        model.train_on_batch(X, [LABELS, TARGETS])


def test_patterns_name_players():
    players = network().game.players
    felt = felt_by(players, rules_of(RULES), ["a", "b"])
    assert {player.name: "".join(own) for player, own in zip(players, felt, strict=True)} == FELT
