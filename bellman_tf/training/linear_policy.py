"""Sample weights of the linear roll-out, from the Gram matrices of all players."""

import functools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import SomeTensors
from bellman_tf.bellman import rollout, sample_space
from bellman_tf.bellman.groups import from_groups, to_groups
from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.game.players import Player, Players
from bellman_tf.linalg.constants import expand_dims, once, reshape
from bellman_tf.linalg.products import matvec
from bellman_tf.training import held_out
from bellman_tf.training.information import Information
from bellman_tf.training.samples import OWN, OwnSamples


class LinearPolicy:
    """Weights of every player, once all Gram matrices are known.

    Attributes:
        group_size: samples per group; `None` is the whole batch.
        information: what a player knows.
        mean_weights: mean of all players' weights, `[B, m]`, for each objective of the step: here one.
    """

    mean_weights: list[tf.Tensor]
    _own = False  # whether every player has a terminal value of its own

    def __init__(
        self,
        value: SampleValue,
        information: Information,
        group_size: int | None,
        columns: int,
        batch_size: tf.Tensor | int,
        direct: float = 1.0,
        share: float = 1.0,
        samples: OwnSamples = OWN,
    ) -> None:
        """Stores the terminal value.

        Args:
            value: made by `sample_space.init`, a `[G, n]`, L `[G, n, k]`.
            information: what a player knows.
            group_size: samples per group.
            columns: m, columns per sample.
            batch_size: B.
            direct: how many times a direction is in its own step, above 1 with Nesterov's momentum.
            share: of the batch in the step that it is part of, below 1 with gradient accumulation: a factor on Gram
                matrices.
            samples: which of the samples in the game are this replica's.
        """
        self.information, self.group_size = information, group_size
        self._columns, self._batch_size, self._direct = columns, batch_size, direct
        self._share, self._samples = share, samples
        self._terminal = self._in_one_group(value)
        self._diagonal = columns == 1
        self._players: list[Player] = []
        self._grams: list[tf.Tensor] = []
        self._summed: tf.Tensor | None = None
        self._pulls: SomeTensors = []
        self._shared: tf.Tensor | None = None

    @property
    def _start(self) -> SampleValue:
        """The terminal value of every player."""
        return self._terminal

    def _in_one_group(self, value: SampleValue) -> SampleValue:
        """A value without the axis of the groups, where there is one."""
        return value if self.group_size is not None else SampleValue(tf.squeeze(value.a, 0), tf.squeeze(value.L, 0))

    def add(self, player: Player, gram: tf.Tensor, pull: tf.Tensor | None, ahead: tf.Tensor | None = None) -> tf.Tensor:
        """Adds a player.

        Args:
            player: the player.
            gram: its Gram matrix, `[G, n, n]`; in a game of all replicas the rows of this one's samples, `[1, k, n]`.
            pull: `<q_ij, M^{-1} l_u>`, `[B, m]`, or `None` without own cost.
            ahead: `<q_ij, D>`, `[B, m]`, of a displacement D that is known before the step, or `None`: l_u - M D takes
                the place of l_u.

        Returns:
            The sum of the Gram matrices so far: where the next one waits for it, TensorFlow keeps none of them.
        """
        if self._direct * self._share != 1:
            gram = self._direct * self._share * gram
        if self._direct != 1 and pull is not None:
            pull = self._direct * pull
        if ahead is not None:
            pull = -ahead if pull is None else pull - ahead
        self._players.append(player)
        gram = tf.squeeze(gram, 0) if self.group_size is None else gram
        self._grams.append(gram)
        self._summed = gram if self._summed is None else self._summed + gram
        grouped = None if pull is None else to_groups(tf.cast(pull, gram.dtype), self.group_size)
        self._pulls.append(grouped if grouped is None or self.group_size is not None else grouped[0])
        return self._summed

    def solve(self, game: Players) -> None:
        """Weights of all players that were added.

        Args:
            game: where the players stand, if that matters.
        """
        self._game = game
        if self.information.joint and self.information.feedback:
            gram, pull = self._samples.whole(_checks.given("Gram matrix", self._summed)), _sum(self._pulls)
            self._summed = gram
            w = rollout.cooperative_weights(self._terminal, gram, pull, diagonal=self._diagonal)
            self._weights = {player.index: w for player in self._players}
            self._shared = self._columns_of(w)
            self.mean_weights = [self._shared]
            self._solved = gram, w, pull  # of one stage
            return
        grams, pulls = self._stacked
        joint, feedback = self.information.joint, self.information.feedback
        end, diagonal = self._start, self._diagonal
        w = rollout.roll_out(end, grams, pulls, joint=joint, feedback=feedback, diagonal=diagonal, own=self._own)
        self._solved = grams, w, pulls
        self._weights = {
            k: w[t] if joint else w[t, seat]
            for t, seats in enumerate(self._seats)
            for seat, k in enumerate(seats)
            if k is not None
        }
        self.mean_weights = self._means()

    def _means(self) -> list[tf.Tensor]:
        return [self._columns_of(tf.add_n(list(self._weights.values())) / len(self._weights))]

    @functools.cached_property
    def _stages(self) -> list[list[int]]:
        """Indices of the players stage by stage; those without a place act last."""
        known = {player.index for player in self._players}
        stages = [[player.index for player in stage if player.index in known] for stage in self._game.stages]
        placed = {k for stage in stages for k in stage}
        loose = sorted(known - placed)
        return [stage for stage in [*stages, loose] if stage]

    @functools.cached_property
    def _seats(self) -> list[list[int | None]]:
        """Stage by stage the index of the player in every seat: those in one seat have one value over all stages."""
        agents = max(len(stage) for stage in self._stages)
        return [[*stage, *[None] * (agents - len(stage))] for stage in self._stages]

    @property
    def _stacked(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Gram matrices and pulls, `[T, ...]` with the players of a stage added, or `[T, N, ...]` one per seat."""
        return once(self, "stacked", self._stack)  # Python 3.11 holds a lock in a cached property: replicas would wait

    def _stack(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        grams = dict(zip((p.index for p in self._players), self._grams, strict=True))
        pulls = dict(zip((p.index for p in self._players), self._pulls, strict=True))
        gram = tf.zeros_like(self._grams[0])
        pull = tf.reduce_sum(gram, axis=-2)

        def rows(parts: Mapping[int, tf.Tensor | None], zero: tf.Tensor) -> tf.Tensor:
            filled = [
                [zero if k is None or (part := parts.get(k)) is None else part for k in seats] for seats in self._seats
            ]
            if self.information.joint:
                return tf.stack([_sum(stage[: len(at)]) for stage, at in zip(filled, self._stages, strict=True)])
            return tf.stack([tf.stack(seats) for seats in filled])

        whole = self._samples.whole(rows(grams, gram))
        return whole, rows(pulls, pull) if any(p is not None for p in self._pulls) else None

    def _columns_of(self, w: tf.Tensor) -> tf.Tensor:
        """The columns of this replica's samples, `[B, m]`."""
        shape = [self._batch_size, self._columns]
        return self._samples.own(reshape(w if self.group_size is None else from_groups(w, *shape), shape))

    def _own_columns(self, index: int, w: tf.Tensor) -> tf.Tensor:
        """The columns of a player's own objective, `[B, m]`: here all."""
        return self._columns_of(w)

    def weights(self, player: Player) -> tf.Tensor:
        """Weights of a player.

        Args:
            player: one that was added.

        Returns:
            `[B, m]`; their mean-gradient value is 1/B.
        """
        if self._shared is not None:
            return self._shared
        return self._own_columns(player.index, self._weights[player.index])

    def plain(self) -> list[tf.Tensor]:
        """Weights of every stage without feedback, a_t; of a stage's first player where each has its own.

        Returns:
            T tensors `[B, m]`.
        """
        grams, pulls = self._stacked
        a = sample_space.backward_all(self._start, grams, pulls, diagonal=self._diagonal).a
        if self.information.joint:
            return [self._columns_of(row) for row in tf.unstack(a)]
        firsts = [stage[0] for stage in self._stages]
        found = zip(firsts, self._seats, tf.unstack(a), strict=True)
        return [self._own_columns(first, row[seats.index(first)]) for first, seats, row in found]

    def first_weights(self) -> list[tf.Tensor]:
        """Weights of the first player of every stage.

        Returns:
            T tensors `[B, m]`.
        """
        return [self._own_columns(stage[0], self._weights[stage[0]]) for stage in self._stages]

    def predicted_reduction(self, own: tf.Tensor | None) -> tf.Tensor:
        """Decrease of J in the quadratic model under these weights, scalar.

        Args:
            own: sum of `l_u' M^{-1} l_u` over all players, `None` for zero.

        Returns:
            The decrease; exact for one group.
        """
        grams, weights, pulls = self._solved
        joint = self.information.joint
        if joint and self.information.feedback:
            grams, weights = expand_dims(grams, 0), expand_dims(weights, 0)
            pulls = None if pulls is None else expand_dims(pulls, 0)
        return tf.reduce_sum(rollout.predicted_reduction(self._terminal, grams, weights, pulls, joint=joint)) + (
            0 if own is None else own / 2
        )

    def decrease_at(self, moved: tf.Tensor) -> tf.Tensor:
        """Decrease of J when the end of the network moves, `-(a' d + |L' d|^2 / 2)`, scalar.

        Args:
            moved: d, `<q_ij, du>` of all players together, `[B, m]`.

        Returns:
            The decrease, of several replicas this one's term; all samples in one group.
        """
        d = to_groups(self._samples.all(moved), None)[0]
        a, L = self._terminal
        slope, curvature = tf.reduce_sum(a * d), tf.reduce_sum(tf.square(matvec(L, d, transpose_a=True)))
        return self._samples.term(-slope - curvature / 2)

    def moved(self) -> tf.Tensor:
        """How far these weights alone move the columns downhill, `sum (l + G w)` over all players; one group.

        Returns:
            `[B m]`.
        """
        grams, weights, pulls = self._solved
        moved = matvec(grams, weights) if pulls is None else matvec(grams, weights) + pulls
        return tf.reduce_sum(moved, axis=list(range(moved.shape.rank - 1)))

    def held_out_model(self, elsewhere: tf.Tensor | None = None) -> tf.Tensor:
        """What the cooperative step does to samples that were left out of it, `[3]`; see `held_out.held_out_model`."""
        return held_out.held_out_model(
            self._terminal, _checks.given("Gram matrix", self._summed), _sum(self._pulls), self._columns, elsewhere
        )


def _sum(parts: Sequence[tf.Tensor | None]) -> tf.Tensor | None:
    """Sum of what is there, `None` if nothing is."""
    known = [part for part in parts if part is not None]
    return tf.add_n(known) if known else None
