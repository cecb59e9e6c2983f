"""Keras models that know their game: `Model`, `Sequential`, `as_game`.

They are Keras models in every other respect. `train_step` hands the step to an optimizer of ours and to Keras for any
other optimizer.
"""

import keras

from bellman_tf import _checks
from bellman_tf.game.report import print_game
from bellman_tf.game.stages import Game
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.training.execution import dispatching


class GameMixin:
    """What all three model classes add to Keras."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "call" in cls.__dict__:
            cls.call = dispatching(cls.call)

    @property
    def game(self) -> Game:
        """The model as a game; made anew when the set of trainable variables changes.

        Raises:
            ValueError: if the model is not built yet.
        """
        if not self.built:
            raise ValueError(
                f"`game` must be read from a built model. Received: model={self.name!r} not built. "
                "Call the model once on a batch, give it an Input, or fit it."
            )
        key = (*(id(v) for v in self.trainable_variables), self._input_signature is None)
        cached = self.__dict__.get("_game")
        if cached is None or cached[0] != key:
            cached = (key, Game(self))
            object.__setattr__(self, "_game", cached)  # past Keras's attribute tracking
        return cached[1]

    def game_summary(self, print_fn: object = None) -> None:
        """Prints the stages and players of the model in the manner of `summary()`.

        Args:
            print_fn: what to print with; `print` by default.
        """
        optimizer = getattr(self, "optimizer", None)
        metrics, grams = None, None
        if isinstance(optimizer, GTDDP):
            metrics, grams = optimizer.describe(self.game), optimizer.describe_grams(self.game)
        print_game(self.game, self.name, metrics, print_fn, grams)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """As Keras's; remembers the structure of the inputs, to trace a subclassed model."""
        if args and self._input_signature is None:
            self._remember(args[0])
        return super().__call__(*args, **kwargs)

    def compile(self, *args: object, **kwargs: object) -> None:
        """As `keras.Model.compile`; binds an optimizer of ours to this model."""
        super().compile(*args, **kwargs)
        self._warn_next()
        optimizer = self.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and isinstance(optimizer.inner_optimizer, GTDDP):
            raise ValueError(
                f"`optimizer` must not be wrapped in dynamic loss scaling: {type(optimizer.inner_optimizer).__name__} "
                "needs unscaled cotangents. Received: dtype policy 'mixed_float16'. Use 'mixed_bfloat16'."
            )
        if isinstance(optimizer, GTDDP):
            optimizer.bind(self)

    def compile_from_config(self, config: dict) -> None:
        """Compiles from a saved configuration and creates the optimizer's variables."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def train_step(self, data: object) -> dict:
        """One training step, by our optimizer or by Keras."""
        if isinstance(self.optimizer, GTDDP):
            return self.optimizer.train_step(self, data)
        return super().train_step(data)

    def fit(self, *args: object, **kwargs: object) -> object:
        """As Keras's; warns once about players without feedback."""
        self._warn_next()
        return super().fit(*args, **kwargs)

    def _warn_next(self) -> None:
        object.__setattr__(self, "_open_loop_unsaid", True)

    def warn_open_loop(self) -> None:
        """Lets the optimizer name the players without feedback: once per `fit` or `compile`."""
        if self.__dict__.get("_open_loop_unsaid"):
            object.__setattr__(self, "_open_loop_unsaid", False)
            self.optimizer.warn_open_loop(self.game)

    def get_metrics_result(self) -> dict:
        """As Keras's; the loss is NaN, not 0, when every batch so far has been rejected."""
        results = super().get_metrics_result()
        tracker = next((m for m in self.metrics if m.name == "loss"), None)
        if isinstance(self.optimizer, GTDDP) and isinstance(tracker, keras.metrics.Mean) and "loss" in results:
            results["loss"] = keras.ops.divide(tracker.total, tracker.count)
        return results

    def make_train_function(self, force: bool = False) -> object:
        """As Keras's; warns about players without feedback, or leaves that to the first step of a delayed build."""
        function = super().make_train_function(force)
        if isinstance(self.optimizer, GTDDP) and self.built:
            self.optimizer.build(self.trainable_variables)  # variables made while tracing cost a second trace
            self.warn_open_loop()
        return function

    @property
    def _input_signature(self) -> object:
        return self.__dict__.get("_game_input_signature")

    def _remember(self, x: object) -> None:
        if all(leaf is None or hasattr(leaf, "dtype") for leaf in keras.tree.flatten(x)):
            signature = keras.tree.map_structure(_symbolic, x)
            object.__setattr__(self, "_game_input_signature", signature)  # past Keras's attribute tracking

    def get_build_config(self) -> dict | None:
        """As Keras's; a subclassed model built by its first training step reports the shapes it has seen."""
        config = super().get_build_config()
        if config is None and self._input_signature is not None and not isinstance(self, keras.Function):
            shapes = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), self._input_signature)
            config = {"input_shape": shapes}
        return config

    def build_from_config(self, config: dict) -> None:
        """As Keras's; also remembers the input shapes of a subclassed model."""
        super().build_from_config(config)
        shape = (config or {}).get("input_shape")
        if shape is not None and self._input_signature is None:
            object.__setattr__(self, "_game_input_signature", _signature(shape))

    def seed_variables(self) -> list:
        """States of the random generators of all layers, which Keras does not save."""
        found = {}
        for layer in self._flatten_layers(include_self=True, recursive=True):
            for variable in layer.non_trainable_variables:
                if variable.dtype in {"uint32", "int32", "int64"} and "seed_generator_state" in variable.path:
                    found[id(variable)] = variable
        return list(found.values())


def _symbolic(leaf: object) -> keras.KerasTensor | None:
    """A batch as a symbolic tensor of any batch size."""
    if leaf is None:
        return None
    return keras.KerasTensor((None, *leaf.shape[1:]), dtype=keras.backend.standardize_dtype(leaf.dtype))


def _signature(shape: object) -> object:
    """Input shapes, possibly nested, as symbolic tensors."""
    if isinstance(shape, dict):
        return {key: _signature(value) for key, value in shape.items()}
    if isinstance(shape, list | tuple) and shape and isinstance(shape[0], list | tuple | dict):
        return [_signature(value) for value in shape]
    return keras.KerasTensor((None, *shape[1:]))


@keras.saving.register_keras_serializable("bellman_tf")
class FunctionalGame(GameMixin, keras.Model):
    """A functional Keras model that knows its game: what `Model(inputs, outputs)` and `as_game` return."""

    @dispatching
    def call(self, inputs: object, training: bool | None = None, mask: object = None, **kwargs: object) -> object:
        """As Keras's functional model."""
        return super().call(inputs, training=training, mask=mask, **kwargs)


@keras.saving.register_keras_serializable("bellman_tf")
class Sequential(GameMixin, keras.Sequential):
    """A `keras.Sequential` that knows its game."""

    @dispatching
    def call(self, inputs: object, training: bool | None = None, mask: object = None, **kwargs: object) -> object:
        """As Keras's Sequential."""
        return super().call(inputs, training=training, mask=mask, **kwargs)


@keras.saving.register_keras_serializable("bellman_tf")
class Model(GameMixin, keras.Model):
    """`keras.Model` that knows its game: called with inputs and outputs, or subclassed.

    Keras turns a class used as `M(inputs, outputs)` into a functional one for good, so that call goes to
    `FunctionalGame` and this class stays free to be subclassed.
    """

    def __new__(cls, *args: object, **kwargs: object) -> keras.Model:
        """Dispatches `Model(inputs, outputs)` to `FunctionalGame`."""
        if cls is Model and _functional_arguments(args, kwargs):
            return FunctionalGame(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: object, **kwargs: object) -> None:
        if _functional_arguments(args, kwargs):  # a subclass that hands inputs and outputs up
            cls = type(self)
            cls.__bases__ = tuple(FunctionalGame if base is Model else base for base in cls.__bases__)
            FunctionalGame.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


def _functional_arguments(args: tuple, kwargs: dict) -> bool:
    return len(args) >= 2 or (len(args) == 1 and "outputs" in kwargs) or {"inputs", "outputs"} <= set(kwargs)


def as_game(model: keras.Model) -> keras.Model:
    """Wraps an existing Keras model; layers, weights and graph are shared.

    Args:
        model: a functional or built Sequential model, `keras.applications.*` included, or one of ours.

    Returns:
        A model of this package, not compiled.

    Raises:
        ValueError: if `model` is not a Keras model, not built, or subclassed.
    """
    if isinstance(model, GameMixin):
        return model
    if not isinstance(model, keras.Model):
        raise _checks.error("model", "be a keras.Model", type(model).__name__)
    if not isinstance(model, keras.Function | keras.Sequential):
        raise _checks.error(
            "model",
            "be functional or Sequential",
            type(model).__name__,
            "Derive your class from bellman_tf.Model instead.",
        )
    if not model.built:
        raise _checks.error("model", "be built", model.name, "Give it an Input, or call it once on a batch.")
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return FunctionalGame(inputs, outputs, name=model.name)
