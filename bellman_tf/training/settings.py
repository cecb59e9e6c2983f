"""What a step is to do, checked once: the game's options, and what else a step needs of its optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from bellman_tf import _checks
from bellman_tf._typing import Size
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.gram import FORMS, GramForm, GramLimits
from bellman_tf.curvature.gram.plan import LIMITS
from bellman_tf.losses.terminal import TERMINAL_HESSIANS, TerminalHessian
from bellman_tf.training.information import INFORMATION, InformationName
from bellman_tf.training.momentum import Momentum
from bellman_tf.training.step_control import LevenbergMarquardt

# The names that options may have, for type checkers and for the checks below.
ValueHessian: TypeAlias = Literal["batch", "block_diagonal", "outer_product", "per_sample"]
Rollout: TypeAlias = Literal["linear", "nonlinear"]
OuterScale: TypeAlias = Literal["mean", "batch", "sample"]
OuterGain: TypeAlias = Literal["batch", "own"]
CouplingName: TypeAlias = Literal["replica", "global"]
VALUE_HESSIANS, ROLLOUTS, OUTER_SCALES, OUTER_GAINS, COUPLINGS = map(
    get_args, (ValueHessian, Rollout, OuterScale, OuterGain, CouplingName)
)


@dataclasses.dataclass(frozen=True)
class GameOptions:
    """Options of the recursion and of the roll-out.

    Attributes:
        information: information structure, one of `INFORMATION`.
        value_hessian: which samples the value Hessian couples, one of `VALUE_HESSIANS`.
        terminal_hessian: one of `TERMINAL_HESSIANS`, or the rank of its truncation.
        group_size: samples coupled together; `None` is the whole batch.
        bilinear: whether the weighted gradient uses the layer's new input (claims OURS-7).
        gram: form of the Gram matrices, one of `FORMS`.
        outer_scale: of the papers' forms, one of `OUTER_SCALES`. With "mean" and "batch" the value is that of the mean
            loss, c = 1/B, and z of the terminal Hessian z z' is the gradient of the mean loss ("mean") or of the
            sample's own ("batch"); with "sample" the value is each sample's own, c = 1.
        outer_gain: of the papers' forms: "batch" (V_x with the gain of the batch) or "own" (with each sample's own).
        value_damping: eps_V of the papers' forms, added to V_xx at every stage.
        rollout: "linear" (one pass of the model as it runs, then the gradient of a re-weighted loss) or "nonlinear"
            (the papers' second forward pass, on a traced copy of the model).
        gram_limits: sizes from which on a Gram matrix is approximated, or formed in blocks of samples.
        player_losses: which outputs' losses players feel, of `own_losses.rules_of`; without a rule every player all.
        micro_batches: batches whose mean gradient makes one update of the weights, each a game of its own, see
            `accumulation.py`.
        coupling: on several replicas, whose samples meet in one game: those of a replica or of all, one of `COUPLINGS`.
    """

    information: InformationName
    value_hessian: ValueHessian
    terminal_hessian: TerminalHessian
    group_size: int | None
    bilinear: bool
    gram: GramForm
    rollout: Rollout = "linear"
    outer_scale: OuterScale = "mean"
    outer_gain: OuterGain = "batch"
    value_damping: float = 0.0
    gram_limits: GramLimits = LIMITS
    player_losses: tuple[tuple[str, tuple[str, ...]], ...] = ()
    micro_batches: int = 1
    coupling: CouplingName = "replica"

    def __post_init__(self) -> None:
        """Checks every option and their combinations.

        Raises:
            ValueError: for a value outside its range, or options that exclude each other.
        """
        _checks.check_choice("information", self.information, INFORMATION)
        _checks.check_choice("value_hessian", self.value_hessian, VALUE_HESSIANS)
        if isinstance(self.terminal_hessian, int) and not isinstance(self.terminal_hessian, bool):
            _checks.check_integer("terminal_hessian", self.terminal_hessian, least=1)
        elif not isinstance(self.terminal_hessian, str) or self.terminal_hessian not in TERMINAL_HESSIANS:
            names = ", ".join(map(repr, TERMINAL_HESSIANS))
            raise _checks.error("terminal_hessian", f"be one of {names} or a rank >= 1", self.terminal_hessian)
        if self.group_size is not None:
            _checks.check_integer("group_size", self.group_size, least=1)
        _checks.check_flag("bilinear", self.bilinear)
        _checks.check_choice("gram", self.gram, FORMS)
        _checks.check_choice("rollout", self.rollout, ROLLOUTS)
        _checks.check_choice("outer_scale", self.outer_scale, OUTER_SCALES)
        _checks.check_choice("outer_gain", self.outer_gain, OUTER_GAINS)
        _checks.check_real("value_damping", self.value_damping, least=0)
        if self.micro_batches > 1 and self.rollout != "linear":
            raise _checks.error(
                "gradient_accumulation_steps", "be None with rollout='nonlinear', whose stages move one after "
                "the other and cannot wait for another batch", self.micro_batches,
                "Leave `rollout`, `bilinear`, `alignment` and the papers' forms out.",
            )  # fmt: skip
        _checks.check_choice("coupling", self.coupling, COUPLINGS)
        if self.coupling == "global":
            self._check_global()
        if self.rollout == "linear" and (self.published or self.bilinear):
            option = "bilinear=True" if self.bilinear else f"value_hessian={self.value_hessian!r}"
            raise _checks.error(
                "rollout", f"be 'nonlinear' with {option}, which needs the papers' second forward pass", self.rollout,
                "Leave `rollout` out, and it is chosen.",
            )  # fmt: skip
        if self.group_size is not None and self.value_hessian != "batch":
            raise _checks.error(
                "group_size", f"be None with value_hessian={self.value_hessian!r}", self.group_size,
                "Groups belong to value_hessian='batch'.",
            )  # fmt: skip
        if self.value_hessian == "outer_product" and self.columns != 0:
            raise _checks.error(
                "terminal_hessian", "be 'matched' or 'outer_product' with value_hessian='outer_product'",
                self.terminal_hessian,
                "One of higher rank needs value_hessian='per_sample', the papers' recursion, or 'batch'.",
            )  # fmt: skip
        if self.value_damping and self.value_hessian != "per_sample":
            raise _checks.error(
                "value_damping", "be 0 unless value_hessian='per_sample': V_xx + eps_V I has full rank",
                self.value_damping, "Pass value_hessian='per_sample', or use `DDP(value_damping=...)`.",
            )  # fmt: skip
        if self.player_losses and INFORMATION[self.information].joint:
            raise _checks.error(
                "player_losses", f"be None with information={self.information!r}, where players share one value",
                dict(self.player_losses), "Pass information='feedback': every player has a value of its own loss.",
            )  # fmt: skip
        if self.player_losses and self.rollout != "linear":
            raise _checks.error(
                "player_losses", "be None with rollout='nonlinear', whose recursion carries one loss",
                dict(self.player_losses), "Leave `rollout`, `bilinear`, `alignment` and the papers' forms out.",
            )  # fmt: skip

    def _check_global(self) -> None:
        """Refuses what leaves no game of all replicas' samples."""
        way = "Leave it out, or pass coupling='replica'."
        if self.rollout != "linear":
            reason = "be 'linear' with coupling='global': stage after stage replicas cannot wait for each other"
            raise _checks.error("rollout", reason, self.rollout, way)
        if self.group_size is not None:
            reason = "be None with coupling='global', which puts the samples of all replicas in one group"
            raise _checks.error("group_size", reason, self.group_size, way)
        if self.value_hessian != "batch":
            reason = "be 'batch' with coupling='global': nothing else couples samples"
            raise _checks.error("value_hessian", reason, self.value_hessian, way)
        if self.micro_batches > 1:
            reason = "be None with coupling='global': every micro-batch is a game of its own"
            raise _checks.error("gradient_accumulation_steps", reason, self.micro_batches, way)

    @property
    def published(self) -> bool:
        """Whether the value follows the papers' recursion, with the metric in place of Q_uu and samples uncoupled."""
        return self.value_hessian in {"outer_product", "per_sample"}

    def coupled(self, batch_size: Size | None = None) -> int | None:
        """Samples that one Gram matrix couples.

        Args:
            batch_size: of a batch, if it is known.

        Returns:
            Their number, `None` for the whole batch.
        """
        size = self.group_size if self.value_hessian == "batch" else 1
        whole = size is not None and isinstance(batch_size, int) and size >= batch_size > 1
        return None if whole else size

    @property
    def columns(self) -> int | None:
        """Columns of the terminal factor besides the gradient: 0 if collinear, `None` if as many as there are."""
        if isinstance(self.terminal_hessian, int):
            return self.terminal_hessian
        return None if self.terminal_hessian == "full" else 0


@dataclasses.dataclass(frozen=True)
class DenseOptions:
    """What vanilla DDP may do.

    Attributes:
        second_order: keep the second derivatives of the layers, V_X . F_XX and the like.
        value_damping: Tikhonov term on V_XX.
        line_search: how often a step may be halved; 0 takes every step as it is.
        memory_budget: bytes that the dense matrices may take.
    """

    second_order: bool
    value_damping: float
    line_search: int
    memory_budget: int

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            ValueError: for a value outside its range.
        """
        _checks.check_flag("second_order", self.second_order)
        _checks.check_real("value_damping", self.value_damping, least=0)
        _checks.check_integer("line_search", self.line_search, least=0)
        _checks.check_integer("memory_budget", self.memory_budget, least=1)


@dataclasses.dataclass(frozen=True)
class Clipping:
    """Bounds on gradients, as Keras means them.

    Attributes:
        value: of every entry, or `None`.
        norm: of every variable's gradient, or `None`.
        global_norm: of all gradients together, or `None`.
    """

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Everything a step needs of its optimizer that does not change from step to step.

    Attributes:
        options: of the game.
        blocks: curvature of every player.
        couplings: joint curvature of players of one stage.
        clipping: bounds on gradients.
        control: step control, or `None`.
        undecayed: `id` of the variables that weight decay leaves alone.
        watched: whether a monitor reads numbers about the sample weights.
        wants_outcome: whether step control, a monitor or a bandit reads what the step does to J.
        always_measured: whether a monitor or a bandit reads the loss after every step.
        solver: queues a step's new values in place of the game's recursion (vanilla DDP, the baselines), or `None`.
        momentum: of the variables' steps.
        handed_over: whether another optimizer moves the variables, and the step ends in its gradients.
        compiled: whether XLA compiles the step.
    """

    options: GameOptions
    blocks: tuple[Block, ...]
    couplings: tuple[Coupling, ...] = ()
    clipping: Clipping = Clipping()
    control: LevenbergMarquardt | None = None
    undecayed: frozenset[int] = frozenset()
    watched: bool = False
    wants_outcome: bool = False
    always_measured: bool = False
    solver: Callable[..., None] | None = None
    momentum: Momentum = Momentum()
    handed_over: bool = False
    compiled: bool = False
