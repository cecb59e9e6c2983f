"""A game as its reader sees it: what `model.game` is, whichever roll-out trains the model."""

import abc
import pathlib
from collections.abc import Callable
from typing import Any, Unpack

from bellman_tf.game.alignments import Alignments
from bellman_tf.game.players import Players, Program
from bellman_tf.game.plot import PlotOptions, plot_game
from bellman_tf.game.report import print_game


class Game(Players, abc.ABC):
    """The layers of a model as players that act in stages.

    Attributes:
        players: every player, in order; then those whose place is not known.
        stages: tuples of players that act at the same time.
        reason: why the network's layers cannot be told apart; empty if they can.
        written: Keras variables that the model writes while it runs, as far as that is known.

    Example:
        >>> model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="last")])
        >>> isinstance(model.game, btf.Game), [player.name for player in model.game.stages[0]], model.game.coverage
        (True, ['last'], 1.0)
    """

    @property
    @abc.abstractmethod
    def program(self) -> Program:
        """The model's top-level calls as a game: alignments, pictures, the nonlinear roll-out."""

    @property
    @abc.abstractmethod
    def alignments(self) -> Alignments:
        """The placements of players off the longest path.

        Example:
            >>> btf.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).game.alignments.count
            1
        """

    def summary(self, name: str = "model", print_fn: Callable[[str], Any] | None = None) -> None:
        """Prints stages and players as a table.

        Args:
            name: the model's name.
            print_fn: what to print with; `print` by default.

        Example:
            >>> model, lines = btf.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), []
            >>> model.game.summary("line", lines.append)
            >>> lines[0].splitlines()[-1]
            '1 stages, 1 players, 8 parameters, 100.0% of them covered'
        """
        print_game(self, name, None, print_fn)

    def plot(self, path: str | pathlib.Path, **options: Unpack[PlotOptions]) -> None:
        """Draws stages and players into a file; needs matplotlib.

        Args:
            path: of the file, ending in .png, .svg or .pdf.
            **options: of `bellman_tf.game.plot.plot_game`: name, stages_per_row, dpi.

        Example:
            >>> import tempfile
            >>> model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "game.svg")
            ...     model.game.plot(path, name="line")
            ...     path.exists()
            True
        """
        plot_game(self.program, path, **options)
