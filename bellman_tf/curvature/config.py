"""What a user chooses about curvature: one small frozen dataclass per metric.

A string names the class with its defaults, which are Keras's own where Keras has the same method.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import keras

from bellman_tf import _checks
from bellman_tf._serial import Serialisable


@dataclasses.dataclass(frozen=True)
class Config(Serialisable):
    """Base of the curvature options; subclasses are frozen dataclasses, serialisable by their fields.

    Example:
        >>> isinstance(btf.curvature.RMSprop(), btf.curvature.Config)
        True
    """

    @property
    def draws(self) -> int:
        """Steps between two draws of cotangents from the loss's Hessian; 0 for a metric of the loss's own gradients."""
        return 0


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class Identity(Config):
    """M = I / learning rate: stochastic gradient descent.

    Example:
        >>> btf.GTDDP(0.1, curvature="identity").curvature
        Identity()
    """


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class RMSprop(Config):
    """M = diag(sqrt(v + epsilon)) / learning rate, v a running mean of squared gradients (Keras's RMSprop).

    Attributes:
        rho: decay of the running mean, in [0, 1).
        epsilon: added under the root.

    Example:
        >>> btf.GTDDP(0.01, curvature=btf.curvature.RMSprop(rho=0.99)).curvature.rho
        0.99
    """

    rho: float = 0.9
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        _checks.check_real("rho", self.rho, least=0, below=1)
        _checks.check_real("epsilon", self.epsilon, above=0)


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class Adam(Config):
    """M from Adam's bias-corrected second moment; its first moment averages the re-weighted gradient.

    Attributes:
        beta_1: decay of the first moment, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        epsilon: added to the root.

    Example:
        >>> btf.curvature.Adam(beta_1=0.0).get_config()
        {'beta_1': 0.0, 'beta_2': 0.999, 'epsilon': 1e-07}
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        _checks.check_real("beta_1", self.beta_1, least=0, below=1)
        _checks.check_real("beta_2", self.beta_2, least=0, below=1)
        _checks.check_real("epsilon", self.epsilon, above=0)


# The names that options may have, for type checkers and for the checks below.
Convolution: TypeAlias = Literal["sua", "autocorrelation", "patches"]
Cooperation: TypeAlias = Literal["exact", "published", "rescale"]
Fisher: TypeAlias = Literal["empirical", "model"]
Scalings: TypeAlias = Literal["auto", "exact", "uncorrelated"]
Sign: TypeAlias = Literal[1, -1]
CONVOLUTION_FORMS, COOPERATION, FISHERS, SCALINGS, SIGNS = map(
    get_args, (Convolution, Cooperation, Fisher, Scalings, Sign)
)


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class KFAC(Config):
    """M = (A + pi sqrt(damping) I) (x) (B + sqrt(damping)/pi I) / learning rate.

    A and B are moments of inputs and of gradients, by default those of the loss itself: the *empirical* Fisher matrix,
    as the papers have it. `fisher="model"` takes the loss's Gauss-Newton matrix instead, which for cross-entropies and
    squares is the Fisher matrix of the model's own predictions: one more backward pass, of random cotangents whose
    second moment is the loss's Hessian in the outputs. Convolutions take pixels as spatially uncorrelated unless
    `convolution` says otherwise.
    Source: Martens and Grosse 2015, Sec. 6.3; for convolutions Grosse and Martens 2016.

    Layers without Kronecker structure (normalisation, embedding, depthwise) use the diagonal of the same matrix with
    the same damping, open-loop layers that of the empirical one.

    Attributes:
        damping: lambda, added to the product through both factors. What the precision cannot factor is raised: the
            damping of a factor of n rows to `(n + 64) eps tr(A)` (`bellman_tf.curvature.damping`), that of a diagonal
            to eps times its largest entry.
        decay: of the running means of the factors, in [0, 1).
        fisher: "empirical" or "model". The two differ most where the labels are far from what the model predicts, and
            in scale where a loss is a mean over many outputs. Not with `rollout="nonlinear"`.
        update_every: steps between updates of the running means; the backward pass of `fisher="model"` runs as often.
        invert_every: steps between factorisations.
        convolution: input factor of convolutions. "sua" takes pixels as spatially uncorrelated (one `[c_in, c_in]`
            factor for every tap), "autocorrelation" the full factor from one convolution (exact up to the border),
            "patches" the full factor exactly. With channel groups every group has factors of its own; there, and for
            transposed convolutions, "autocorrelation" is formed from patches.
        cooperative: cross blocks between the players of one stage, see `bellman_tf.curvature.coupling.choose`. `False`
            (none), "exact" (the joint matrix with blocks A_nm (x) B_nm is solved; two players by canonical
            correlations, more by conjugate gradients to a relative residual of 1e-6), "published" (GTDDP Thm. 3 and
            DGN Prop. 5, which overestimate the step) or "rescale" (GTDDP Cor. 7, as if the players were identical).
        cooperative_sign: of the cross terms of "published": 1 as in GTDDP Eqs. 53-54, -1 as in DGN Eq. 15 (two
            players only).
        sharded: on several replicas, whether each factorises those of some layers only and receives the others'; else
            each factorises all. Joint matrices of `cooperative` are factorised by each. See `docs/scaling.md`.

    Example:
        >>> fresh = btf.curvature.KFAC(damping=0.1, invert_every=1)  # factors inverted at every step
        >>> optimizer = btf.GTDDP(0.1, curvature=fresh)
        >>> btf.curvature.KFAC(damping=1e-3, fisher="model").fisher
        'model'
    """

    damping: float = 1e-2
    decay: float = 0.95
    update_every: int = 1
    invert_every: int = 10
    convolution: Convolution = "sua"
    cooperative: Cooperation | Literal[False] = False
    cooperative_sign: Sign = 1
    sharded: bool = False
    fisher: Fisher = "empirical"

    def __post_init__(self) -> None:
        _checks.check_real("damping", self.damping, least=0)
        _checks.check_real("decay", self.decay, least=0, below=1)
        _checks.check_integer("update_every", self.update_every, least=1)
        _checks.check_integer("invert_every", self.invert_every, least=1)
        _checks.check_choice("convolution", self.convolution, CONVOLUTION_FORMS)
        _checks.check_choice("fisher", self.fisher, FISHERS)
        named = isinstance(self.cooperative, str) and self.cooperative in COOPERATION
        if self.cooperative is not False and not named:
            names = ", ".join(map(repr, COOPERATION))
            raise _checks.error("cooperative", f"be False or one of {names}", self.cooperative)
        if type(self.cooperative_sign) is not int or self.cooperative_sign not in SIGNS:
            raise _checks.error("cooperative_sign", "be 1 or -1", self.cooperative_sign)
        _checks.check_flag("sharded", self.sharded)

    @property
    def draws(self) -> int:
        """As often as the factors are updated."""
        return self.update_every if self.fisher == "model" else 0


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class EKFAC(KFAC):
    """K-FAC's eigenbasis with the second moments measured in it every step, George et al. 2018.

    The moments are running means over the steps, which a new basis takes over as it sees them: the diagonal of
    `R' diag(s) R`, R the rotation between the bases. Factors and moments are those of one Fisher matrix, see `fisher`;
    with "model" the backward pass runs at every step.
    Where a factor has more rows than the batches so far had samples, nothing determines its basis for what they left
    out; until the next factorisation the metric there is one of many, and the last bits of sums choose which.
    Convolutions with channel groups get K-FAC's metric, a Kronecker product per group.

    Attributes:
        scalings: for layers applied at several positions, "exact" forms per-sample gradients, "uncorrelated"
            drops the correlation between positions (much cheaper), "auto" is exact where a sample's positions
            are few and "uncorrelated" elsewhere.

    Example:
        >>> isinstance(btf.curvature.EKFAC(scalings="exact"), btf.curvature.KFAC)
        True
    """

    scalings: Scalings = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_choice("scalings", self.scalings, SCALINGS)

    @property
    def draws(self) -> int:
        """At every step, for the moments."""
        return int(self.fisher == "model")


@keras.saving.register_keras_serializable("bellman_tf.curvature")
@dataclasses.dataclass(frozen=True)
class Full(Config):
    """M = (E[q q'] + damping I) / learning rate, the whole Fisher matrix of each player: small layers.

    Attributes:
        damping: added to the diagonal; at least `(P + 64) eps tr(M)` for a player of P parameters, see
            `bellman_tf.curvature.damping`.
        decay: of the running mean, in [0, 1).
        invert_every: steps between inversions.
        max_parameters: refuse players with more parameters than this.
        fisher: "empirical" or "model", as `KFAC.fisher`.

    Example:
        >>> btf.GTDDP(0.1, curvature=btf.curvature.Full(damping=0.1)).curvature.max_parameters
        2048
    """

    damping: float = 1e-2
    decay: float = 0.95
    invert_every: int = 1
    max_parameters: int = 2048
    fisher: Fisher = "empirical"

    def __post_init__(self) -> None:
        _checks.check_real("damping", self.damping, least=0)
        _checks.check_real("decay", self.decay, least=0, below=1)
        _checks.check_integer("invert_every", self.invert_every, least=1)
        _checks.check_integer("max_parameters", self.max_parameters, least=1)
        _checks.check_choice("fisher", self.fisher, FISHERS)

    @property
    def draws(self) -> int:
        """At every step."""
        return int(self.fisher == "model")


NAMES = {"identity": Identity, "rmsprop": RMSprop, "adam": Adam, "kfac": KFAC, "ekfac": EKFAC, "full": Full}


def get(identifier: str | Config | Mapping[str, Any]) -> Config:
    """Resolves the `curvature` option.

    Args:
        identifier: a name, a config object, or a serialised config object.

    Returns:
        The config object.

    Raises:
        ValueError: if the name is not known or the object is not a curvature config.
    """
    return _checks.resolve("curvature", identifier, NAMES, Config, "an object of `bellman_tf.curvature`")
