"""Games in Jacobian form whose players have terminal costs of their own."""

import dataclasses
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from verification.problems.games import Game, games

KINDS = ("collinear", "rank", "no gradient", "no curvature", "the first")


class OwnGame(NamedTuple):
    """A game, and several terminal costs in place of its own.

    Attributes:
        ends: the game with each of the costs.
        felt: per stage, per place there, the number of the player's cost.
    """

    ends: list[Game]
    felt: list[list[int]]

    @property
    def widths(self):
        """Columns per sample of every cost."""
        return [end.columns.shape[2] for end in self.ends]

    @property
    def whole(self):
        """The game with the columns of all costs side by side."""
        columns = np.concatenate([end.columns for end in self.ends], axis=2)
        return dataclasses.replace(self.ends[0], beta_squared=None, gradient=columns[:, :, 0], root=columns[:, :, 1:])

    @property
    def seats(self):
        """The players of the game: places in the stages, each with a cost."""
        return sorted({(place, cost) for stage in self.felt for place, cost in enumerate(stage)})

    def controls(self, samples=slice(None)):
        """Per player, per stage (F_theta, M, l_u) or None, and F_x per stage."""
        stages = self.ends[0].stacked_stages(samples)
        controls = [
            [
                players[place] if place < len(players) and felt[place] == cost else None
                for (_, players), felt in zip(stages, self.felt, strict=True)
            ]
            for place, cost in self.seats
        ]
        return controls, [F_x for F_x, _ in stages]

    def costs(self, samples=slice(None)):
        """Per player the gradient and Hessian of its cost."""
        ends = [self.ends[cost] for _, cost in self.seats]
        return [(end.gradient[samples], end.hessian[samples]) for end in ends]


@st.composite
def own_games(draw, **options):
    """Games of one to three costs, degenerate ones among them."""
    game = draw(games(**options))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed of the costs"))
    ends, (B, n) = [game], game.gradient.shape
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=2), label="further costs"):
        g = rng.standard_normal((B, n)) * (kind != "no gradient")
        if kind == "the first":
            ends.append(game)
        elif kind == "rank":
            rank = int(rng.integers(1, 3))
            ends.append(
                dataclasses.replace(game, gradient=g, beta_squared=None, root=rng.standard_normal((B, n, rank)))
            )
        else:
            beta_squared = rng.exponential(2.0, B) * (kind != "no curvature")
            ends.append(dataclasses.replace(game, gradient=g, beta_squared=beta_squared, root=None))
    felt = [[int(rng.integers(len(ends))) for _ in stage.players] for stage in game.stages]
    return OwnGame(ends, felt)
