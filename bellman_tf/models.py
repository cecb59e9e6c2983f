"""Keras models with a game: `Model`, `Sequential`; `wrapped.py` makes them of models that exist.

They are Keras models in every other respect. `train_step` hands the step to an optimizer of ours and to Keras for any
other optimizer.
"""

import inspect
from collections.abc import Callable
from typing import Any, Self

import keras

from bellman_tf import keras_access, replicas
from bellman_tf._typing import Nested, Signature
from bellman_tf.game import signatures
from bellman_tf.game.game import Game
from bellman_tf.game.native import NativeGame
from bellman_tf.game.own_thread import in_own_thread
from bellman_tf.game.report import print_game
from bellman_tf.game.stages import TracedGame
from bellman_tf.game.survey import signature_of
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.optimizers.rejections import watching


class GameMixin(keras_access.SeesData):
    """What all three model classes add to Keras."""

    @property
    def game(self) -> Game:
        """The model as a game: from the outside the same for both roll-outs; the nonlinear one runs its traced graph.

        It is made anew after `compile`, when layers were frozen or unfrozen, and when inputs of a new size have been
        seen.

        Raises:
            ValueError: if the model is not built yet.

        Example:
            >>> model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="last")])
            >>> [player.name for player in model.game.players]
            ['last']
        """
        if not self.built:
            raise ValueError(
                f"`model` must be built before its `game` is read. Received: model={self.name!r}, not built. "
                "Call the model once on a batch, give it an Input, or fit it."
            )
        optimizer = getattr(self, "optimizer", None)
        replayed = isinstance(optimizer, GTDDP) and optimizer.options.rollout == "nonlinear"
        key = (replayed, *(id(v) for v in self.trainable_variables), signatures.described(self._input_signature))
        cached = self.__dict__.get("_game")
        if cached is None or cached[0] != key:
            game = TracedGame(self) if replayed else NativeGame(self, signature_of(self))
            cached = (key, game)
            object.__setattr__(self, "_game", cached)  # past Keras's attribute tracking
        return cached[1]

    def game_summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Prints the stages and players of the model in the manner of `summary()`.

        Args:
            print_fn: what to print with; `print` by default.

        Example:
            >>> model, lines = btf.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), []
            >>> model.game_summary(print_fn=lines.append)
            >>> lines[0].splitlines()[-1]
            '1 stages, 1 players, 8 parameters, 100.0% of them covered'
        """
        optimizer = getattr(self, "optimizer", None)
        metrics, grams, losses = None, None, None
        if isinstance(optimizer, GTDDP):
            metrics, grams = optimizer.describe(self.game), optimizer.describe_grams(self.game)
            losses = optimizer.describe_losses(self.game)
        print_game(self.game, self.name, metrics, print_fn, grams, losses)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras's; remembers the structure of the inputs, from which made-up samples are drawn."""
        first = args[0] if args else kwargs.get(keras_access.first_argument(self) or "")
        if first is not None and not in_own_thread():
            self._remember(first)
        return super().__call__(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; reads the game anew and binds an optimizer of ours to this model."""
        super().compile(*args, **kwargs)
        object.__setattr__(self, "_game", None)  # an attribute that `call` reads may have changed
        self._warn_next()
        optimizer = self.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and isinstance(optimizer.inner_optimizer, GTDDP):
            raise ValueError(
                f"`optimizer` must not be wrapped in dynamic loss scaling: {type(optimizer.inner_optimizer).__name__} "
                f"needs unscaled cotangents. Received: optimizer='{optimizer.name}'. Keras wraps optimizers under the "
                "dtype policy 'mixed_float16': use 'mixed_bfloat16', or compile with auto_scale_loss=False, where "
                "cotangents below 6e-8 count as 0."
            )
        if isinstance(optimizer, GTDDP):
            optimizer.bind(self)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles from a saved configuration and creates the optimizer's variables.

        Keras saves no `auto_scale_loss`. A model under `mixed_float16` was compiled with `False`, else `compile` would
        have refused it.
        """
        given = keras.saving.deserialize_keras_object(config)
        if isinstance(given.get("optimizer"), GTDDP) and self.dtype_policy.name == "mixed_float16":
            given["auto_scale_loss"] = False
        self.compile(**given)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One training step, by our optimizer or by Keras."""
        if isinstance(self.optimizer, GTDDP):
            return self.optimizer.train_step(self, data)
        return super().train_step(data)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As Keras's; warns once about players without feedback, and when batch after batch is rejected."""
        resolver = self.distribute_strategy.cluster_resolver
        if resolver is not None and resolver.task_type:
            raise ValueError(
                "`fit` must be left to `bellman_tf.workers.fit` on several workers: Keras 3 averages the batches of "
                "all workers there and fails (keras-team/keras#20585). Received: a model in the scope of "
                f"{type(self.distribute_strategy).__name__}. Call `bellman_tf.workers.fit(model, dataset, epochs)`."
            )
        self._warn_next()
        if isinstance(getattr(self, "optimizer", None), GTDDP):
            given = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs)
            given.arguments["callbacks"] = watching(given.arguments.get("callbacks"), self)
            args, kwargs = given.args[1:], given.kwargs
        return super().fit(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras's; warns when batch after batch is rejected."""
        results = super().train_on_batch(*args, **kwargs)
        if isinstance(self.optimizer, GTDDP):
            self.optimizer.warn_rejected()
        return results

    def _warn_next(self) -> None:
        object.__setattr__(self, "_open_loop_unsaid", True)

    def warn_open_loop(self) -> None:
        """Lets the optimizer name the players without feedback: once per `fit` or `compile`."""
        if self.__dict__.get("_open_loop_unsaid"):
            object.__setattr__(self, "_open_loop_unsaid", False)
            self.optimizer.warn_open_loop(self.game)

    def get_metrics_result(self) -> dict[str, Any]:
        """As Keras's; the loss is NaN, not 0, when every batch so far has been rejected."""
        results = super().get_metrics_result()
        tracker = next((m for m in self.metrics if m.name == "loss"), None)
        if isinstance(self.optimizer, GTDDP) and isinstance(tracker, keras.metrics.Mean) and "loss" in results:
            results["loss"] = keras.ops.divide(tracker.total, tracker.count)
        return results

    def sees(self, data: Nested) -> None:
        """Builds a model before its first step is traced: variables made while tracing cost a second trace.

        One that is built, and has been called on nothing yet, remembers what it will be called on: the game that its
        optimizer is built for is then the one that later steps find.
        """
        if not isinstance(getattr(self, "optimizer", None), GTDDP) or self.run_eagerly:
            return
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if (signature := signatures.of_data(x)) is None:
            return
        if not self.built:
            self(signature)
        elif self._input_signature is None and getattr(self.train_step, "__func__", None) is GameMixin.train_step:
            self._remember(signature)  # a `train_step` of the user's may call it on something else

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras's; warns about players without feedback, or leaves that to the first step of a delayed build."""
        function = super().make_train_function(force)
        if isinstance(self.optimizer, GTDDP) and self.built:
            with replicas.scope_of(self.distribute_strategy):
                self.optimizer.build(self.trainable_variables)  # variables made while tracing cost a second trace
                self.optimizer.prepare(self.game)
            self.warn_open_loop()
        return function

    @property
    def _input_signature(self) -> Signature:
        return self.__dict__.get("_game_input_signature")

    def _remember(self, x: Nested) -> None:
        """Keeps the structure of the inputs; a size that differs from call to call becomes unknown."""
        if not signatures.is_made_of_tensors(x):
            return
        signature = signatures.of_batch(x)
        if replicas.averages(self.distribute_strategy) and self.compute_dtype != "float64":
            signature = signatures.before_average(signature)
        if signatures.is_known(signature) and self.__dict__.get("_game_first_inputs") is None:
            object.__setattr__(self, "_game_first_inputs", signature)
        if self._input_signature is not None:
            signature = signatures.merged(self._input_signature, signature)
        object.__setattr__(self, "_game_input_signature", signature)  # past Keras's attribute tracking

    def get_build_config(self) -> dict[str, Any] | None:
        """As Keras's; a subclassed model built by its first training step reports the shapes it has seen."""
        config = super().get_build_config()
        if config is None and self._input_signature is not None and not isinstance(self, keras.Function):
            shapes = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), self._input_signature)
            config = {"input_shape": shapes}
        return config

    def build_from_config(self, config: dict[str, Any]) -> None:
        """As Keras's; also remembers the input shapes of a subclassed model."""
        super().build_from_config(config)
        config = config or {}
        shape = config.get("input_shape")
        if shape is None and "shapes_dict" in config:
            shape = config["shapes_dict"].get(f"{keras_access.first_argument(self)}_shape")
        if shape is not None and self._input_signature is None:
            object.__setattr__(self, "_game_input_signature", signatures.of_shapes(shape))

    def seed_variables(self) -> list[keras.Variable]:
        """States of the random generators of all layers, which Keras does not save."""
        found = {}
        for layer in keras_access.layers_of(self):
            for variable in layer.non_trainable_variables:
                if variable.dtype in {"uint32", "int32", "int64"} and "seed_generator_state" in variable.path:
                    found[id(variable)] = variable
        return list(found.values())


@keras.saving.register_keras_serializable("bellman_tf")
class FunctionalGame(GameMixin, keras.Model):
    """A functional Keras model with a game: what `Model(inputs, outputs)` and `as_game` return."""


@keras.saving.register_keras_serializable("bellman_tf")
class SequentialGame(GameMixin, keras.Sequential):
    """A `keras.Sequential` with a game; its public name is `bellman_tf.Sequential`.

    `keras.models.clone_model` makes a plain `keras.Sequential` of every Sequential model, whatever its class;
    `as_game` turns the clone into a game.

    Example:
        >>> model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)])
        >>> len(model.game.stages), model.game.coverage
        (2, 1.0)
    """


Sequential = SequentialGame

# A legacy `.h5` file names a class without its package. `SequentialGame` bears a name of its own for that reason:
# in such a file "Sequential" means Keras's.
keras.saving.get_custom_objects().update(FunctionalGame=FunctionalGame, SequentialGame=SequentialGame)


@keras.saving.register_keras_serializable("bellman_tf")
class Model(GameMixin, keras.Model):
    """`keras.Model` with a game: called with inputs and outputs, or subclassed.

    Keras turns a class used as `M(inputs, outputs)` into a functional one for good, so that call goes to
    `FunctionalGame` and this class stays free to be subclassed.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = btf.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(4, activation="tanh")(inputs)))
        >>> model.compile(optimizer=btf.GTDDP(learning_rate=0.1), loss="mse")  # then fit, as in Keras
        >>> [player.kind for player in model.game.players]
        ['dense', 'dense']
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Dispatches `Model(inputs, outputs)` to `FunctionalGame`."""
        if cls is Model and _functional_arguments(args, kwargs):
            return FunctionalGame(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _functional_arguments(args, kwargs):  # a subclass that hands inputs and outputs up
            cls = type(self)
            cls.__bases__ = tuple(FunctionalGame if base is Model else base for base in cls.__bases__)
            FunctionalGame.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


def _functional_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) >= 2 or (len(args) == 1 and "outputs" in kwargs) or {"inputs", "outputs"} <= set(kwargs)
