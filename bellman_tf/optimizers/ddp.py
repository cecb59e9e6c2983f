"""Vanilla batch DDP as a Keras optimizer, for small networks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self, Unpack

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.game.players import Players
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.optimizers.keywords import KEPT, DenseKeywords, LearningRate, Paper
from bellman_tf.training.context import StepResult
from bellman_tf.training.dense_step import dense_step
from bellman_tf.training.round import Round
from bellman_tf.training.settings import DenseOptions


@keras.saving.register_keras_serializable("bellman_tf")
class DDP(GTDDP):
    """Differential dynamic programming on the stacked states of the batch, with every matrix written out.

    What the papers call vanilla DDP and intractable beyond DIGITS: exact terminal Hessian, Q_uu and V_XX dense. With
    `second_order=False` and `value_damping=0` it takes the same steps as
    `GTDDP(learning_rate, curvature="identity", terminal_hessian="full", rollout="nonlinear")`, which needs matrices of
    the batch's size only; this class is for small networks and for the terms that only the dense form has.

    Args:
        learning_rate: its inverse is the Tikhonov term on Q_uu; float, schedule or callable.
        second_order: keep the second derivatives of the layers and of the regularizers. Where they make Q_uu
            indefinite, its Tikhonov term grows by the most negative eigenvalue.
        value_damping: Tikhonov term on V_XX at every stage.
        line_search: how often a step may be halved until J falls as predicted; 0 takes every step.
        memory_budget: bytes the dense matrices may take; a larger problem is refused.
        weight_decay: decoupled, as in Keras.
        use_ema: as in Keras.
        ema_momentum: as in Keras.
        ema_overwrite_frequency: as in Keras.
        name: as in Keras.

    Attributes:
        failed_searches: steps for which no halving lowered J; the weights stayed.
        last_step: the alpha of the last step that was searched.

    Raises:
        ValueError: for an option outside its range; at the first step for a network that is too large, with its size,
            or has a layer that is applied twice.

    Source: DDP1 Alg. 1, Eqs. 29-34.

    Example:
        >>> model = btf.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="tanh"), keras.layers.Dense(1)])
        >>> model.compile(optimizer=btf.DDP(learning_rate=1.0, line_search=5), loss="mse")
        >>> x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")
        >>> first, second = (float(model.train_on_batch(x, x[:, :1] + x[:, 1:])) for _ in range(2))
        >>> second < first
        True
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        *,
        second_order: bool = False,
        value_damping: float = 0.0,
        line_search: int = 0,
        memory_budget: int = 2**31,
        weight_decay: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        name: str | None = None,
    ) -> None:
        dense = DenseOptions(second_order, value_damping, line_search, memory_budget)
        if isinstance(learning_rate, float | int) and not isinstance(learning_rate, bool):
            _checks.check_real("learning_rate", learning_rate, above=0)
        super().__init__(
            learning_rate,
            curvature="identity",
            terminal_hessian="full",
            rollout="nonlinear",
            weight_decay=weight_decay,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            name=name,
        )
        self.dense = dense
        self.failed_searches = self.add_variable((), dtype="int64", name="failed_searches")
        self.last_step = self.add_variable((), initializer="ones", name="last_step")

    published_in = "ddp"

    @classmethod
    def as_published(  # pyright: ignore[reportIncompatibleMethodOverride]  # vanilla DDP has options of its own
        cls, learning_rate: LearningRate | None = None, *, paper: Paper | None = None, **options: Unpack[DenseKeywords]
    ) -> Self:
        """Vanilla DDP as DDP1 Sec. 4.2 has it: linearised dynamics, a Tikhonov term on Q_uu and a line search.

        The paper adds a Tikhonov term to V_xx as well and prints no size for it: `value_damping` is 0 unless given. It
        prints no number of halvings either: 10 here. Eqs. 29-33 with the layers' second derivatives are
        `second_order=True`; the factor 1/B that Eq. 37 lacks is there (claim DDP1-E37).

        Args:
            learning_rate: as in the constructor.
            paper: "ddp", or "ddpnopt", whose vanilla DDP is the same.
            **options: any other option.

        Returns:
            The optimizer.

        Raises:
            ValueError: for a paper without vanilla DDP.

        Example:
            >>> btf.DDP.as_published(0.1, value_damping=0.01).get_config()["line_search"]
            10
        """
        if paper is not None and (not isinstance(paper, str) or paper not in {"ddp", "ddpnopt"}):
            raise _checks.error("paper", "be 'ddp' or 'ddpnopt', which have vanilla DDP", paper)
        options = {"line_search": 10, **options}
        return cls(**options) if learning_rate is None else cls(learning_rate, **options)

    watchable = False
    whole_states = True

    @property
    def solver(self) -> Callable[[Round], None]:
        """The dense recursion."""
        return functools.partial(dense_step, options=self.dense)

    def conclude(self, result: StepResult, game: Players) -> None:
        """As `GTDDP`'s; counts searches that failed.

        Args:
            result: of the step.
            game: in which it was taken.
        """
        if result.searched is not None:
            alpha = result.searched
            failed = tf.convert_to_tensor(self.failed_searches) + tf.cast(tf.equal(alpha, 0), tf.int64)
            result.assignments.add(self.last_step, tf.cast(alpha, self.last_step.dtype))
            result.assignments.add(self.failed_searches, failed)
        super().conclude(result, game)

    def warn_open_loop(self, game: Players) -> None:
        """Nothing to warn of: every layer has its Jacobian."""

    def get_config(self) -> dict[str, Any]:
        """The options, for Keras serialisation."""
        config = super().get_config()
        return {key: config[key] for key in KEPT} | dataclasses.asdict(self.dense)
