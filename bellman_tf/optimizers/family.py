"""The members of the family: `GTDDP` with some options fixed by name."""

import keras

from bellman_tf.optimizers.gtddp import GTDDP


@keras.saving.register_keras_serializable("bellman_tf")
class DDPNOpt(GTDDP):
    """DDP for networks with one player per stage: every player keeps its own value function.

    `GTDDP` with `information="feedback"`; arguments and errors as there.

    Source: DDPN (all), DDP1.
    """

    published_in = "ddpnopt"

    def __init__(self, learning_rate: object = None, *, information: str = "feedback", **options: object) -> None:
        super().__init__(learning_rate, information=information, **options)


@keras.saving.register_keras_serializable("bellman_tf")
class KFAC(GTDDP):
    """K-FAC, the baseline: `GTDDP` with `information="open"` and `curvature="kfac"`; arguments and errors as there.

    The Fisher matrix is the empirical one (gradients of the loss itself), and for convolutions the default is
    `convolution="sua"`: pixels taken as spatially uncorrelated.

    Source: Martens & Grosse 2015; Grosse & Martens 2016 for convolutions.
    """

    published_in = None

    def __init__(
        self, learning_rate: object = 0.01, *, curvature: object = "kfac", information: str = "open", **options: object
    ) -> None:
        super().__init__(learning_rate, curvature=curvature, information=information, **options)


@keras.saving.register_keras_serializable("bellman_tf")
class EKFAC(GTDDP):
    """EKFAC, the baseline: `GTDDP` with `information="open"` and `curvature="ekfac"`; arguments and errors as there.

    The scalings are second moments of the gradients of the loss itself (empirical Fisher matrix) measured in K-FAC's
    eigenbasis; for convolutions the default is `convolution="sua"`.

    Source: George et al. 2018.
    """

    published_in = None

    def __init__(
        self, learning_rate: object = 0.01, *, curvature: object = "ekfac", information: str = "open", **options: object
    ) -> None:
        super().__init__(learning_rate, curvature=curvature, information=information, **options)
