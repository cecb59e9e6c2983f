"""The training step of an optimizer: settings and tensors go down to `training/`, a result comes back."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_optimizers, replicas
from bellman_tf.curvature.inner import InnerBlock
from bellman_tf.curvature.stacks import StoredState
from bellman_tf.game.players import Players
from bellman_tf.optimizers.binding import ModelBound
from bellman_tf.optimizers.metrics import players_apart
from bellman_tf.optimizers.records import Records
from bellman_tf.training.context import StepContext, recursion_dtype
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.report import report
from bellman_tf.training.settings import Clipping, StepSettings
from bellman_tf.training.step import take_step


class Stepping(Records, ModelBound):
    """An optimizer that takes the whole training step of its model.

    Attributes:
        rate_factor: what a subclass makes of the learning rate that metrics see.
    """

    rate_factor = 1.0

    def train_step(self, model: keras.Model, data: Any) -> dict[str, Any]:
        """One training step of a model of this package.

        Args:
            model: the model this optimizer is compiled in.
            data: as Keras hands it to `train_step`.

        Returns:
            The metrics' results.

        Raises:
            ValueError: if the model's trainable variables are not those the optimizer was built for, or the batch is
                empty.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        sizes = [leaf.shape[0] for leaf in keras.tree.flatten(x) if leaf is not None and len(leaf.shape)]
        if 0 in sizes and replicas.count() == 1:  # of several replicas some may have no part in the last batch
            raise _checks.error("x", "hold at least one sample", sizes, "The batch is empty.")
        if any(isinstance(leaf, tf.RaggedTensor) for leaf in keras.tree.flatten(x)):
            raise _checks.error(
                "x", "be dense or sparse: the samples of a ragged batch have no tensors of one shape", sizes,
                "Pad it, `ragged.to_tensor()`, and let `Embedding(mask_zero=True)` or `Masking` mark the padding.",
            )  # fmt: skip
        if tf.distribute.get_replica_context() is None:
            raise _checks.error(
                "train_step", "run inside the replicas of the model's strategy", model.name,
                "Call `fit` or `train_on_batch`; a loop calls `strategy.run(model.train_step, args=(data,))`.",
            )  # fmt: skip
        if not model.built:
            model(x)
        model.warn_open_loop()
        if self._model is None or self._model() is not model:
            self.bind(model)
        if not self.built:
            self.build(model.trainable_variables)
        elif not self._holds(model):
            raise _checks.error(
                "model", "have the trainable variables that the optimizer was built for", model.name,
                "Compile the model again after freezing or adding layers.",
            )  # fmt: skip
        self.restore()
        self._follow(model.game)
        games = self.games(model.game)
        result = take_step(model, games, self.settings(), self.context(), data, lambda: self.branch(len(games)))
        if self.inner is not None:
            result = self.hand_over(result, games[0])
        self.conclude(result, games[0])
        return report(model, data, result)

    def settings(self) -> StepSettings:
        """What a step needs of this optimizer that does not change from step to step."""
        variables = keras_optimizers.trained_variables(self)
        undecayed = [v for v in variables if self.weight_decay is None or not keras_optimizers.decays(self, v)]
        return StepSettings(
            options=self.options,
            blocks=tuple(self.blocks),
            couplings=tuple(self.couplings),
            clipping=Clipping(self.clipvalue, self.clipnorm, self.global_clipnorm),
            control=self.step_control,
            undecayed=frozenset(id(v) for v in undecayed),
            watched=self.watched and self.watchable,
            # with gradient accumulation a step is not one batch's
            wants_outcome=(self.step_control is not None or self._always_measured) and self.options.micro_batches == 1,
            always_measured=self._always_measured,
            solver=self.solver,
            momentum=self.momentum,
            handed_over=self.inner is not None,
            compiled=bool(self._bound_model().jit_compile),
        )

    def context(self) -> StepContext:
        """The tensors of this optimizer before a step."""
        dtype = recursion_dtype(keras_optimizers.trained_variables(self))
        # the blocks of an optimizer inside read its rate themselves
        rate = tf.cast(keras_optimizers.rate_of(self) if self.inner is None else 1.0, dtype)
        fast = rate if self.rate_factor == 1 else rate * self.rate_factor
        controlled = self.step_control is not None
        return StepContext(
            iteration=tf.convert_to_tensor(self.iterations),
            learning_rate=fast / tf.cast(self.damping, dtype) if controlled else fast,
            decay=None if self.weight_decay is None else self.weight_decay * rate,
            state=self._read(),
            control=tf.convert_to_tensor(self.control_state) if controlled else None,
            velocities=[[tf.convert_to_tensor(v) for v in variables] for variables in self.velocities],
            micro_batch=self.micro_batch,
            sums=[[tf.cast(v, dtype) for v in variables] for variables in self.accumulators],
        )

    def _read(self) -> StoredState:
        """State of every block, with what it reads of an optimizer inside, then of every coupling."""
        return self._store.read([block.read() if isinstance(block, InnerBlock) else [] for block in self.blocks])

    def games(self, game: Players) -> Sequence[Players]:
        """The placements of the players that a step may be taken in.

        Args:
            game: the model's game, every player at its earliest stage.

        Returns:
            At least one.
        """
        return [game]

    def branch(self, count: int) -> tf.Tensor:
        """Number of the placement that this step is taken in; asked only if there are several.

        Args:
            count: of placements.

        Returns:
            Integer scalar.
        """
        return tf.zeros([], tf.int32)

    @property
    def solver(self) -> Callable[..., None] | None:
        """Queues the new values of a step in place of the game's recursion; `None` for the game's."""
        return None

    @property
    def reads_outcome(self) -> bool:
        """Whether the optimizer reads what every step does to J, besides step control."""
        return False

    @property
    def _always_measured(self) -> bool:
        return self.reads_outcome or (self.watched and self.watchable)

    def warn_open_loop(self, game: Players) -> None:
        """One warning that names the players without feedback, and one that names those that replicas do not couple.

        Args:
            game: the model's game.
        """
        if self.options.coupling == "global" and self._bound_model().distribute_strategy.num_replicas_in_sync > 1:
            self._warn_apart(game)
        names = [player.name for player in game.open_loop_players]
        if not names or not INFORMATION[self.options.information].curved:
            return
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        warnings.warn(
            f"{type(self).__name__} trains these layers open-loop (their Gram matrix is not known): {shown}. "
            "`model.game_summary()` says why.",
            stacklevel=2,
        )

    def _warn_apart(self, game: Players) -> None:
        """Names the players whose samples meet those of their own replica only."""
        apart = players_apart(self.options, game, self.blocks)
        if not apart or not INFORMATION[self.options.information].curved:
            return
        known = [memory for memory in apart.values() if memory is not None]
        ways = [f"`gram_memory={max(known)}` sends them as well"] if known else []
        ways += ["`gram='hashed'` makes sums of tables that can be sent"] if len(known) < len(apart) else []
        warnings.warn(
            f"coupling='global' leaves the Gram matrices of these layers block-diagonal over replicas (their samples "
            f"have too much to send): {', '.join(apart)}. {'; '.join(ways)}.",
            stacklevel=3,
        )
