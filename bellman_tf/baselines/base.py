"""What the baselines share: they take the whole training step of a model of this package, by a solver of their own."""

from typing import Any, Self, Unpack

from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.optimizers.keywords import KEPT, AllKeywords, KerasKeywords, LearningRate, Paper, Rollout


class Baseline(GTDDP):
    """A `GTDDP` whose step is not the game's: no curvature, no Gram matrices, `solver` of the subclass.

    Binding to a model, saving, the verdict on a batch and the counters are those of every optimizer of this package.
    """

    watchable = False

    def __init__(self, learning_rate: LearningRate, *, rollout: Rollout, **kept: Unpack[KerasKeywords]) -> None:
        super().__init__(learning_rate, curvature="identity", information="open", rollout=rollout, **kept)

    @classmethod
    def as_published(
        cls, learning_rate: LearningRate | None = None, *, paper: Paper | None = None, **options: Unpack[AllKeywords]
    ) -> Self:
        """Refuses: the constructor's defaults say where they are the paper's.

        Args:
            learning_rate: ignored.
            paper: ignored.
            **options: ignored.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"`{cls.__name__}` must be made by its constructor, whose defaults are the paper's where they say so. "
            f"Received: {cls.__name__}.as_published(...). Call `{cls.__name__}(...)`."
        )

    def options_of_keras(self) -> dict[str, Any]:
        """The part of the configuration that every Keras optimizer has."""
        config = super().get_config()
        return {key: config[key] for key in KEPT}
