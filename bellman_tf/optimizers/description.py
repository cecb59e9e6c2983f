"""What a reader of `game_summary` is shown of each player: its curvature, Gram matrix and losses."""

from bellman_tf.curvature.block import Block
from bellman_tf.game.players import Players
from bellman_tf.optimizers.binding import ModelBound
from bellman_tf.optimizers.metrics import couplings_of, gram_forms
from bellman_tf.training.own_losses import ruled


class Description(ModelBound):
    """Part of `GTDDP`: describes the players of a game in words."""

    def describe(self, game: Players) -> list[str]:
        """Each player's curvature in a word or two.

        Args:
            game: the model's game.

        Returns:
            One description per player.
        """
        blocks = self._blocks_of(game)
        _, notes = couplings_of(game, blocks, self.options)
        drawn = [" of the model" if block.draws else "" for block in blocks]
        return [block.describe() + whose + note for block, whose, note in zip(blocks, drawn, notes, strict=True)]

    def describe_grams(self, game: Players) -> list[str]:
        """The form of each player's Gram matrix.

        Args:
            game: the model's game.

        Returns:
            One form per player; "none" where no Gram matrix is formed.
        """
        return gram_forms(self.options, game, self._blocks_of(game))

    def describe_losses(self, game: Players) -> list[str] | None:
        """The outputs whose losses each player minimises.

        Args:
            game: the model's game.

        Returns:
            Names per player, "all" for players without a rule; `None` without `player_losses`.
        """
        own = ruled(game.players, self.options.player_losses)
        return [", ".join(own.get(player.index, ("all",))) for player in game.players] if own else None

    def _blocks_of(self, game: Players) -> list[Block]:
        """The blocks in use, if they are of the variables of these players; else what the players would get."""
        used, asked = ([[id(v) for v in p.variables] for p in players] for players in (self.players, game.players))
        return self.blocks if used == asked else [self.make_block(player) for player in game.players]
