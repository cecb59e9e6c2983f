"""The members of the family: `GTDDP` with some options fixed by name."""

from typing import Self, Unpack

import keras

from bellman_tf import _checks
from bellman_tf.curvature import config as curvature_config
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.optimizers.keywords import (
    Curvature,
    EKFACKeywords,
    GameKeywords,
    InformationName,
    LearningRate,
    MetricKeywords,
)


@keras.saving.register_keras_serializable("bellman_tf")
class DDPNOpt(GTDDP):
    """DDP for networks with one player per stage: every player keeps its own value function.

    `GTDDP` with `information="feedback"`; arguments and errors as there.

    Source: DDPN (all), DDP1.

    Example:
        >>> btf.DDPNOpt(0.1, curvature="rmsprop").get_config()["information"]
        'feedback'
    """

    published_in = "ddpnopt"

    def __init__(
        self,
        learning_rate: LearningRate | None = None,
        *,
        information: InformationName = "feedback",
        **options: Unpack[MetricKeywords],
    ) -> None:
        super().__init__(learning_rate, information=information, **options)


@keras.saving.register_keras_serializable("bellman_tf")
class KFAC(GTDDP):
    """K-FAC, the baseline: `GTDDP` with `information="open"` and `curvature="kfac"`; arguments and errors as there.

    Another curvature is refused.

    By default the Fisher matrix is the empirical one (gradients of the loss itself) and convolutions take pixels as
    spatially uncorrelated, `convolution="sua"`.

    Source: Martens & Grosse 2015; Grosse & Martens 2016 for convolutions.

    Example:
        >>> optimizer = btf.KFAC(0.01, curvature=btf.curvature.KFAC(damping=0.1, invert_every=1))
        >>> optimizer.get_config()["information"]
        'open'
    """

    published_in = None

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        *,
        curvature: Curvature = "kfac",
        information: InformationName = "open",
        **options: Unpack[GameKeywords],
    ) -> None:
        super().__init__(learning_rate, curvature=curvature, information=information, **options)
        _check_curvature(self, "kfac", curvature_config.KFAC)


@keras.saving.register_keras_serializable("bellman_tf")
class EKFAC(GTDDP):
    """EKFAC, the baseline: `GTDDP` with `information="open"` and `curvature="ekfac"`; arguments and errors as there.

    Another curvature is refused.

    The scalings are second moments in K-FAC's eigenbasis, by default of the loss's own gradients (empirical Fisher
    matrix); for convolutions the default is `convolution="sua"`. `as_cited` is the variant of the four papers.

    Source: George et al. 2018.

    Example:
        >>> btf.EKFAC(0.01).curvature == btf.curvature.EKFAC()
        True
        >>> btf.EKFAC.as_cited().curvature.convolution
        'patches'
    """

    published_in = None

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        *,
        curvature: Curvature = "ekfac",
        information: InformationName = "open",
        **options: Unpack[GameKeywords],
    ) -> None:
        super().__init__(learning_rate, curvature=curvature, information=information, **options)
        _check_curvature(self, "ekfac", curvature_config.EKFAC)

    @classmethod
    def as_cited(
        cls,
        learning_rate: LearningRate = 0.01,
        *,
        damping: float = 0.1,
        update_every: int = 1,
        **options: Unpack[EKFACKeywords],
    ) -> Self:
        """EKFAC as the four papers run it: of whole patches, with second moments of the present batch alone.

        The papers name the PyTorch code https://github.com/Thrandis/EKFAC-pytorch. There the eigenbases come from the
        inputs (whole patches of a convolution, the bias a row among them) and cotangents of one batch, the scalings are
        the exact second moments of its per-sample gradients, nothing is averaged over steps, and the damping is added
        to the scalings. The code leaves layers that are neither Dense nor Conv2D their plain gradient; here they get
        the diagonal of the batch's empirical Fisher matrix, damped alike.

        Args:
            learning_rate: as in the constructor.
            damping: added to the scalings, 0.1 in the code's example.
            update_every: steps between two eigenbases, 1 in the code.
            **options: any other option.

        Returns:
            The optimizer.

        Example:
            >>> metric = btf.EKFAC.as_cited(0.01, update_every=5).curvature
            >>> metric.damping, metric.decay, metric.invert_every
            (0.1, 0.0, 5)
        """
        metric = curvature_config.EKFAC(
            damping=damping,
            decay=0.0,
            update_every=update_every,
            invert_every=update_every,
            convolution="patches",
            scalings="exact",
        )
        return cls(learning_rate, curvature=metric, **options)


def _check_curvature(optimizer: GTDDP, name: str, kind: type[curvature_config.KFAC]) -> None:
    if type(optimizer.curvature) is not kind:
        raise _checks.error(
            "curvature", f"be {name!r} or a bellman_tf.curvature.{kind.__name__}", optimizer.curvature,
            'Any other: `GTDDP(curvature=..., information="open")`.',
        )  # fmt: skip
