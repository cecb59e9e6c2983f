"""Games of Keras models that exist: `as_game`, which shares the graph of a model or calls a subclassed one."""

from typing import Any

import keras

from bellman_tf import _checks, keras_access, keras_graphs
from bellman_tf._typing import Nested
from bellman_tf.models import FunctionalGame, GameMixin, Model


@keras.saving.register_keras_serializable("bellman_tf")
class WrappedGame(Model):
    """A game around a subclassed Keras model that it calls: what `as_game` makes of one.

    The wrapper is a model of its own with one layer, the wrapped model, so weights, losses, metrics of layers and
    masks are shared, and the wrapped model can be used on its own at any time. It saves and loads if the wrapped
    model's class does.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        """Wraps a model.

        Args:
            model: a subclassed Keras model.
            **kwargs: of `keras.Model`.
        """
        super().__init__(**{"name": model.name, **kwargs})
        self.model = model

    def call(self, inputs: Nested) -> Nested:
        """Calls the wrapped model; Keras hands masks on to it."""
        return self.model(inputs)

    def get_config(self) -> dict[str, Any]:
        """The wrapped model, for Keras serialisation."""
        return super().get_config() | {"model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "WrappedGame":
        """Makes the wrapped model, then the wrapper.

        Args:
            config: of `get_config`.
            custom_objects: classes that are not registered with Keras, by name.

        Returns:
            The game.
        """
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(model, name=config["name"])


@keras.saving.register_keras_serializable("bellman_tf")
class WrappedTrainingGame(WrappedGame):
    """The same for a model whose `call` has an argument `training`; Keras trains others as if it were `False`."""

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Calls the wrapped model; Keras hands masks on to it."""
        return self.model(inputs, training=training)


# What a subclass of `keras.Model` may override that another model with its layers would not run.
_ITS_OWN = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics", "metrics")


def _check_leaves_training_to_keras(model: keras.Model) -> None:
    own = [name for name in _ITS_OWN if getattr(type(model), name) is not getattr(keras.Model, name)]
    if own:
        raise _checks.error(
            "model",
            "leave training to Keras: the game would not run its own " + ", ".join(own),
            type(model).__name__,
            "Derive the class from bellman_tf.Model instead of keras.Model; put what the loss needs into "
            "`compute_loss`.",
        )


def _wrapped(model: keras.Model) -> WrappedGame:
    return WrappedTrainingGame(model) if keras_access.takes_training(model) else WrappedGame(model)


def as_game(model: keras.Model) -> GameMixin:
    """Makes a game of an existing Keras model; layers and weights are shared.

    A functional or Sequential model shares its graph as well. A model with a `call` of its own is called by a
    `WrappedGame`; to keep one model, derive its class from `bellman_tf.Model` instead.

    Args:
        model: a functional or built Sequential model, `keras.applications.*` included, a subclassed model, or one of
            ours.

    Returns:
        A model of this package, not compiled; `model` itself if it is one.

    Raises:
        ValueError: if `model` is not a Keras model, is a Sequential model that is not built, or its class has a
            training step, loss or metrics of its own.

    Example:
        >>> hidden, last = keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)
        >>> model = keras.Sequential([keras.Input((3,)), hidden, last])
        >>> game = btf.as_game(model)
        >>> [player.kind for player in game.game.players], game.layers[-1] is model.layers[-1]
        (['dense', 'dense'], True)
    """
    if isinstance(model, GameMixin):
        return model
    if not isinstance(model, keras.Model):
        raise _checks.error("model", "be a keras.Model", type(model).__name__)
    _check_leaves_training_to_keras(model)
    if not isinstance(model, keras.Function | keras.Sequential):
        return _wrapped(model)
    if not model.built:
        raise _checks.error("model", "be built", model.name, "Give it an Input, or call it once on a batch.")
    if not keras_graphs.runs_its_graph(model):
        return _wrapped(model)
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return FunctionalGame(inputs, outputs, name=model.name)
