"""DGNOpt: the game with any number of players per layer, and with movable players."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack, get_args

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf import bandit as bandits
from bellman_tf.bandit import Bandit
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.config import KFAC, Full
from bellman_tf.game.alignments import Placement
from bellman_tf.game.players import Players
from bellman_tf.game.stages import Player, TracedGame
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.optimizers.keywords import (
    Alignment,
    AlignmentName,
    AllKeywords,
    BanditName,
    LearningRate,
    Paper,
    PlayersKeywords,
    Reward,
)
from bellman_tf.optimizers.metrics import curvature_block
from bellman_tf.training.context import Outcome

_RESCALER = bandits.Rescaler()
ALIGNMENTS, REWARDS = get_args(AlignmentName), get_args(Reward)


@keras.saving.register_keras_serializable("bellman_tf")
class DGNOpt(GTDDP):
    """Dynamic-game optimizer: `GTDDP` with fictitious players and a choice of alignment.

    Args:
        learning_rate: as in `GTDDP`.
        players: N, how many agents share every layer's weights, theta = theta_1 + ... + theta_N. Said plainly: under a
            damped curvature C + gamma I the N agents together step by (C + gamma / N I)^{-1} q, so this divides the
            damping by N; under a first-order metric without damping it multiplies the rate by N (claims OURS-8).
        alignment: the stage of every layer off the longest path: "asap" (earliest), "alap" (latest), a mapping from
            layer name to stage, "random" (drawn anew each step) or "adaptive" (a bandit learns which is best). All but
            "asap" need, and choose, the nonlinear roll-out: the linear one does not depend on the order of layers.
        bandit: of `alignment="adaptive"`: "exp3++", "exp3", "ucb1", "uniform" or an object of `bellman_tf.bandit`.
        reward: "loss" (decrease of J on the batch, which the second pass gives for free, rescaled to [0, 1]) or
            "held_out" (what the callback `AlignmentReward` measures; the alignment stays until it does).
        most_alignments: at most so many are considered, drawn from `model.game.alignments`; each is traced once.
        seed: of the draws.
        **options: as in `GTDDP`.

    Attributes:
        pulls: how often each alignment was used, `[M]`; with "adaptive".
        probabilities: of the bandit, `[M]`; with "adaptive".

    Raises:
        ValueError: for an option outside its range, or a placement that the network does not allow.

    Source: DGN Secs. 3-4, Algs. 1-3.

    Example:
        >>> inputs = keras.Input((3,))
        >>> x = keras.layers.Dense(4, activation="tanh", name="first")(inputs)
        >>> y = keras.layers.Dense(4, name="second")(keras.layers.Dense(4, activation="tanh")(x))
        >>> x = keras.layers.Add()([keras.layers.Dense(4, name="shortcut")(x), y])
        >>> model = btf.Model(inputs, keras.layers.Dense(1)(x))
        >>> model.compile(optimizer=btf.DGNOpt(0.1, alignment="adaptive"), loss="mse")
        >>> len(model.game.alignments)  # the shortcut acts beside the first or the second layer of its block
        2
    """

    def __init__(
        self,
        learning_rate: LearningRate | None = None,
        *,
        players: int = 1,
        alignment: Alignment = "asap",
        bandit: BanditName | Bandit | Mapping[str, Any] = "exp3++",
        reward: Reward = "loss",
        most_alignments: int = 8,
        seed: int = 0,
        **options: Unpack[AllKeywords],
    ) -> None:
        _checks.check_integer("players", players, least=1)
        if not isinstance(alignment, dict):
            _checks.check_choice("alignment", alignment, ALIGNMENTS)
        elif not all(isinstance(name, str) and type(stage) is int for name, stage in alignment.items()):
            raise _checks.error(
                "alignment", "map names of players to numbers of stages", alignment,
                "`model.game.alignments` lists what is possible.",
            )  # fmt: skip
        _checks.check_choice("reward", reward, REWARDS)
        _checks.check_integer("most_alignments", most_alignments, least=1)
        _checks.check_integer("seed", seed, least=0)
        learner = bandits.get(bandit)
        if options.get("rollout") is None and alignment != "asap":
            options["rollout"] = "nonlinear"
        super().__init__(learning_rate, **options)
        if alignment != "asap" and self.options.rollout == "linear":
            raise _checks.error(
                "alignment", "be 'asap' with rollout='linear', whose step does not depend on the order of layers",
                alignment, "Leave `rollout` out, or pass rollout='nonlinear'.",
            )  # fmt: skip
        if players > 1 and self.inner is not None:
            raise _checks.error(
                "players", "be 1 with an inner optimizer, which moves every variable once", players,
                "Leave `inner_optimizer` out, and choose a `curvature`.",
            )  # fmt: skip
        self.agents, self.alignment, self.bandit, self.reward = players, alignment, learner, reward
        self.most_alignments, self.seed = most_alignments, seed
        self._memory: list[keras.Variable] = []
        if self.adaptive and self.options.information == "open":
            raise _checks.error(
                "alignment", "not be 'adaptive' with information='open': all placements make the same step", alignment,
            )  # fmt: skip

    published_in = "dgnopt"

    @classmethod
    def as_published(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes its own options as well
        cls,
        learning_rate: LearningRate | None = None,
        *,
        paper: Paper | None = None,
        **options: Unpack[PlayersKeywords],
    ) -> Self:
        """As `GTDDP.as_published`; with `alignment="adaptive"` rewards are accuracies on held-out data (DGN Alg. 2).

        `bellman_tf.callbacks.AlignmentReward(..., every=1)` measures them at every step, as the paper does.

        Args:
            learning_rate: as in the constructor.
            paper: as in `GTDDP.as_published`.
            **options: any other option.

        Returns:
            The optimizer.

        Example:
            >>> btf.DGNOpt.as_published(0.1, alignment="adaptive").reward
            'held_out'
        """
        alignment = options.get("alignment")
        if isinstance(alignment, str) and alignment == "adaptive":
            options.setdefault("reward", "held_out")
        return super().as_published(learning_rate, paper=paper, **options)

    @property
    def adaptive(self) -> bool:
        """Whether a bandit chooses the alignment."""
        return self.alignment == "adaptive"

    @property
    def reads_outcome(self) -> bool:
        """Whether the bandit reads what every step does to J."""
        return self.adaptive and self.reward == "loss"

    # ---- fictitious players

    @property
    def rate_factor(self) -> float:
        """What N players make of the learning rate of a metric without damping."""
        return 1.0 if isinstance(self.curvature, KFAC | Full) else float(self.agents)

    def make_block(self, player: Player) -> Block:
        """The curvature block that a player gets: its damping is shared by the agents.

        Args:
            player: a `Player`.

        Returns:
            The block.
        """
        curvature = self.curvature
        if curvature is None:
            return super().make_block(player)
        if isinstance(curvature, KFAC | Full):
            curvature = dataclasses.replace(curvature, damping=curvature.damping / self.agents)
        return curvature_block(curvature, player, self.options)

    # ---- alignment

    def placements(self, game: TracedGame) -> list[Placement]:
        """The placements that are considered, in the order of the bandit's arms.

        Args:
            game: the model's game.

        Returns:
            At least one placement.

        Raises:
            ValueError: if the explicit mapping names a layer that is not a movable player.
        """
        if isinstance(self.alignment, dict):
            by_name = {game.players[index].name: index for index in game.ranges}
            for name in self.alignment:
                if name not in by_name:
                    raise _checks.error(
                        "alignment", f"map names of players to stages, among {sorted(by_name)}", name,
                        "`model.game_summary()` shows the players.",
                    )  # fmt: skip
            return [{by_name[name]: stage for name, stage in self.alignment.items()}]
        if self.alignment == "asap":
            return [{}]
        if self.alignment == "alap":
            return [game.alignments.alap]
        return game.alignments.sample(self.most_alignments, self.seed)

    def games(self, game: Players) -> Sequence[Players]:
        """The placements of the players that a step may be taken in.

        Args:
            game: the model's game, every player at its earliest stage.

        Returns:
            One game per placement.
        """
        if not isinstance(game, TracedGame):  # of the linear roll-out, which has no order of layers
            return [game]
        return [game.aligned(placement) if placement else game for placement in self.placements(game)]

    def branch(self, count: int) -> tf.Tensor:
        """Number of the placement that this step is taken in.

        Args:
            count: of placements.

        Returns:
            Integer scalar.
        """
        if self.adaptive and self.reward == "held_out":
            return tf.convert_to_tensor(self.arm)
        if not self.adaptive:
            seed = tf.stack([tf.cast(self.iterations, tf.int32), self.seed])
            return tf.random.stateless_uniform([], seed, maxval=count, dtype=tf.int32)
        self._played = self._draw()
        return self._played

    def _draw(self) -> tf.Tensor:
        state = self.bandit_state
        seed = tf.stack([tf.cast(state.rounds, tf.int32), self.seed])
        return tf.cast(self.bandit.choose(state, seed), tf.int32)

    def make_more_state(self, game: Players) -> None:
        """Creates the bandit's state.

        Args:
            game: the model's game.
        """
        if not self.adaptive or not isinstance(game, TracedGame):
            return
        arms = len(self.placements(game))
        tensors = [*self.bandit.init(arms), *_RESCALER.init()]
        names = [f"bandit_{name}" for name in (*bandits.State._fields, *bandits.RescalerState._fields)]
        self._memory = [
            self.add_variable(t.shape, initializer="zeros", dtype=t.dtype.name, name=name)
            for t, name in zip(tensors, names, strict=True)
        ]
        self.arm = self.add_variable((), dtype="int32", name="arm")

    @property
    def bandit_state(self) -> bandits.State:
        """What the bandit has seen."""
        return bandits.State(*[tf.convert_to_tensor(v) for v in self._memory[: len(bandits.State._fields)]])

    @property
    def pulls(self) -> tf.Tensor:
        """How often each alignment was used, `[M]`."""
        return self.bandit_state.pulls

    @property
    def probabilities(self) -> tf.Tensor:
        """With which the bandit would now choose each alignment, `[M]`."""
        return self.bandit.probabilities(self.bandit_state)

    def observe(self, outcome: Outcome, accepted: tf.Tensor) -> None:
        """Rewards the alignment of this step.

        Args:
            outcome: what the step does to J.
            accepted: whether the batch is good; a bad one teaches nothing.
        """
        if self.adaptive and self.reward == "loss" and len(self._memory) and self.pulls.shape[0] > 1:
            self._learn(self._played, tf.cast(outcome.actual, tf.float32), accepted, rescale=True)

    def give_reward(self, reward: float) -> None:
        """Rewards the alignment in use and draws the next one; for `reward="held_out"`.

        Args:
            reward: in [0, 1], for example an accuracy.

        Raises:
            ValueError: if the optimizer does not learn its alignment from rewards given, or is not built.

        Example:
            >>> inputs = keras.Input((3,))
            >>> y = keras.layers.Dense(4)(keras.layers.Dense(4, activation="tanh")(inputs))
            >>> model = btf.Model(inputs, keras.layers.Add()([keras.layers.Dense(4)(inputs), y]))
            >>> model.compile(btf.DGNOpt(0.1, alignment="adaptive", reward="held_out"), "mse")
            >>> model.optimizer.build(model.trainable_variables)  # as the first step does
            >>> model.optimizer.give_reward(0.8)  # an accuracy on held-out data
            >>> sorted(model.optimizer.pulls.numpy().tolist())  # of the two alignments one was tried
            [0, 1]
        """
        if not self.adaptive or self.reward != "held_out" or not self._memory:
            rule = "be built, with alignment='adaptive' and reward='held_out'"
            raise _checks.error("optimizer", rule, self.name, "Call `model.fit` first.")
        _checks.check_real("reward", float(reward), least=0)
        self._learn(tf.convert_to_tensor(self.arm), tf.constant(reward, tf.float32), tf.constant(True), rescale=False)
        self.arm.assign(self._draw())

    def _learn(self, arm: tf.Tensor, reward: tf.Tensor, accepted: tf.Tensor, *, rescale: bool) -> None:
        old = self.bandit_state
        scale = bandits.RescalerState(*[tf.convert_to_tensor(v) for v in self._memory[len(old) :]])
        new_scale, scaled = _RESCALER.update(scale, reward) if rescale else (scale, reward)
        new = self.bandit.update(old, arm, scaled)
        for variable, before, after in zip(self._memory, [*old, *scale], [*new, *new_scale], strict=True):
            self.assign(variable, tf.where(accepted, after, before))

    def get_config(self) -> dict[str, Any]:
        """The options, for Keras serialisation."""
        return super().get_config() | {
            "players": self.agents,
            "alignment": self.alignment,
            "bandit": keras.saving.serialize_keras_object(self.bandit),
            "reward": self.reward,
            "most_alignments": self.most_alignments,
            "seed": self.seed,
        }
