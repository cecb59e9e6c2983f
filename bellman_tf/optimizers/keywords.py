"""Types of the constructors' arguments, for type checkers: the names an option may have, and what is passed through."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict

import keras

from bellman_tf.bandit import Bandit
from bellman_tf.bandit.policies import BanditName
from bellman_tf.curvature.config import Config
from bellman_tf.curvature.gram.plan import GramForm, GramLimits
from bellman_tf.curvature.inner import InnerMetric
from bellman_tf.losses.terminal import TerminalHessian
from bellman_tf.training.information import InformationName
from bellman_tf.training.settings import CouplingName, OuterGain, OuterScale, Rollout, ValueHessian
from bellman_tf.training.step_control import LevenbergMarquardt

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any]
Curvature: TypeAlias = Literal["identity", "rmsprop", "adam", "kfac", "ekfac", "full"] | Config | Mapping[str, Any]
InnerOptimizer: TypeAlias = str | keras.optimizers.Optimizer | Mapping[str, Any]
StepControl: TypeAlias = Literal["levenberg_marquardt"] | LevenbergMarquardt | Mapping[str, Any]
Gram: TypeAlias = GramForm | GramLimits | Mapping[str, Any]
AlignmentName: TypeAlias = Literal["asap", "alap", "random", "adaptive"]
Alignment: TypeAlias = AlignmentName | dict[str, int]
Reward: TypeAlias = Literal["loss", "held_out"]
Paper: TypeAlias = Literal["ddp", "ddpnopt", "gtddp", "dgnopt"]


class KerasKeywords(TypedDict, total=False):
    """What every Keras optimizer takes and every optimizer of this package has."""

    weight_decay: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    name: str | None


# What of the configuration belongs to every Keras optimizer.
KEPT = ("learning_rate", *KerasKeywords.__annotations__)


class GameKeywords(KerasKeywords, total=False):
    """Arguments of `GTDDP` that its subclasses pass through."""

    inner_optimizer: InnerOptimizer | None
    inner_metric: InnerMetric
    momentum: float
    nesterov: bool
    momentum_in_policy: bool
    value_hessian: ValueHessian
    terminal_hessian: TerminalHessian
    group_size: int | None
    coupling: CouplingName
    bilinear: bool
    rollout: Rollout | None
    outer_scale: OuterScale
    outer_gain: OuterGain
    value_damping: float
    gram: Gram
    gram_memory: int | None
    player_losses: dict[str, list[str]] | None
    step_control: StepControl | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None


class EKFACKeywords(GameKeywords, total=False):
    """The same with the information structure."""

    information: InformationName


class MetricKeywords(GameKeywords, total=False):
    """The same with the metric."""

    curvature: Curvature | None


class AllKeywords(MetricKeywords, total=False):
    """All keyword arguments of `GTDDP`."""

    information: InformationName


class PlayersKeywords(AllKeywords, total=False):
    """All keyword arguments of `DGNOpt`."""

    players: int
    alignment: Alignment
    bandit: BanditName | Bandit | Mapping[str, Any]
    reward: Reward
    most_alignments: int
    seed: int


class DenseKeywords(KerasKeywords, total=False):
    """All keyword arguments of `DDP`."""

    second_order: bool
    value_damping: float
    line_search: int
    memory_budget: int
