"""GTDDP: training as a cooperative dynamic game, one Keras optimizer.

The class names the options and writes them down. `arguments.py` checks them, `binding.py` ties the optimizer to a model
and makes its state, `refusals.py` says which models it does not take, `stepping.py` takes the step, `records.py` keeps
what comes of it, `description.py` puts the players into words.
"""

from typing import Any, Self, Unpack

import keras

from bellman_tf.curvature import config as curvature_config
from bellman_tf.optimizers.arguments import (
    check_averages,
    check_game,
    check_inner,
    check_keras,
    check_momentum,
    game_config,
    gram_named,
    inner_named,
    micro_batches_of,
    rollout_for,
)
from bellman_tf.optimizers.description import Description
from bellman_tf.optimizers.keywords import (
    AllKeywords,
    CouplingName,
    Curvature,
    Gram,
    InformationName,
    InnerMetric,
    InnerOptimizer,
    LearningRate,
    OuterGain,
    OuterScale,
    Paper,
    Rollout,
    StepControl,
    TerminalHessian,
    ValueHessian,
)
from bellman_tf.optimizers.published import published_curvature, published_options
from bellman_tf.optimizers.records import first_control_state
from bellman_tf.optimizers.rejections import Rejections
from bellman_tf.optimizers.stepping import Stepping
from bellman_tf.training.momentum import Momentum
from bellman_tf.training.own_losses import rules_of
from bellman_tf.training.settings import GameOptions
from bellman_tf.training.step_control import STATE_SIZE
from bellman_tf.training.step_control import get as step_control_named


@keras.saving.register_keras_serializable("bellman_tf")
class GTDDP(Description, Rejections, Stepping):
    """Differential dynamic programming on networks as games: layers are players, and the players of a stage cooperate.

    Every step solves a Bellman recursion over the layers, exactly, in the space of the batch's samples; the update of
    a layer is its gradient with the samples re-weighted, `-M^{-1} sum_i w_i q_i`, where the weights take into account
    how the layers before it have just changed the state. With `information="open"` all weights are 1/B and the
    optimizer is its curvature's baseline: SGD, RMSprop, Adam, K-FAC, EKFAC.

    On several replicas (`with tf.distribute.MirroredStrategy(...).scope():` around model and `compile`) each replica
    solves the game of its own samples, as one replica does with `group_size` = samples of a replica; `group_size`
    makes smaller groups, and `coupling="global"` one game of the samples of all. Gradients are added, statistics of
    the metrics averaged before the metric is used, and a batch is rejected by all replicas if it is bad on one, so
    that weights and state are the same bits everywhere. As in Keras, J is the mean of the replicas' mean losses: in a
    last batch that cannot be shared evenly the samples of a replica with fewer count for more, and replicas without
    samples have no part in gradient and statistics (J is still divided by the number of all). What is Keras's stays
    Keras's: an `inner_optimizer` clips each replica's gradient before they are added, moving statistics of a
    BatchNormalization are each replica's own unless it has `synchronized=True`, and Dropout draws the same mask on
    every replica. For the linear roll-out, without XLA.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule`, or callable; `None` is 0.03.
        curvature: metric M: "identity", "rmsprop", "adam", "kfac", "ekfac", "full", or an object of
            `bellman_tf.curvature`; `None` is "kfac".
        inner_optimizer: any `keras.optimizers.Optimizer`, or its name: it moves the variables, with the gradient of
            the re-weighted loss. Rate, schedule, momentum, weight decay, clipping and averages are its own (leave them
            out here), and so is the metric, in place of `curvature`: of SGD the learning rate; of RMSprop, Adam, AdamW
            and Nadam their diagonal, as it stands before the step; of any other one number per variable, the length of
            its last step over that of the gradient. A bad batch changes neither the variables nor its state. Gradients
            of tables arrive dense: Keras's own Adam squares the parts of a row that is used twice one by one, this one
            their sum. `step_control` is refused: its damping would change the metric and not the step.
        inner_metric: of SGD and RMSprop with momentum. "gain" is the learning rate divided by 1 - momentum, what a
            gradient moves in the end; "rate" what it moves in its own step, too little at large rates.
        momentum: share of a step that the next one keeps, as in Keras's SGD; the policy knows the displacement that it
            will cause. With the linear roll-out and any curvature but "adam", which has its own.
        nesterov: Nesterov's momentum, as in Keras's SGD.
        momentum_in_policy: whether the policy feeds back on that displacement; else it only adds to the step.
        information: "open" (no value Hessian), "feedback" (every player its own value), "cooperative_open" (joint
            value, no feedback in the forward pass) or "cooperative".
        value_hessian: "batch" (samples coupled, exact), "block_diagonal" (uncoupled), "outer_product" (the papers'
            recursion with two numbers per sample, and its clamp) or "per_sample" (the same with a matrix per sample,
            for any terminal Hessian: DDP1 Eq. 15, DDPN Eq. 9).
        terminal_hessian: "matched" (the loss's true curvature along its gradient), "outer_product" (g g'), "full"
            (the loss's Hessian), or an integer rank of its truncation.
        group_size: couple samples in groups of this size; `None` is the whole batch.
        coupling: on several replicas, "replica" (each couples its own samples) or "global" (the samples of all replicas
            play one game, as on one replica that holds the whole batch; see `docs/devices.md`).
        bilinear: form the re-weighted gradient with the layer's new input; needs the nonlinear roll-out.
        rollout: "linear" (the default: the model runs once, as it is, and the step is the gradient of a re-weighted
            loss; any model that Keras can train) or "nonlinear" (the papers' second forward pass, stage by stage, on a
            traced copy of the model; chosen where an option needs it). A model that a traced copy would train wrongly
            (constants made of variables, state written in `call`, `training=` given there, rows that are not samples,
            a call that cannot be traced) is refused at the first step, with the layer or variable.
        outer_scale: of `value_hessian="outer_product"` and "per_sample", whose scale the papers leave open: "mean" (the
            value is that of the batch's mean loss, c = 1/B, and g g' the outer product of that loss's gradient, as
            automatic differentiation of a mean returns it: beta^2 starts at 1/B), "batch" (c = 1/B as well, but
            beta^2 = 1: the outer product of each sample's own gradient) or "sample" (the value is each sample's own:
            beta^2 = 1 and c = 1). Of an outer product only "mean" trains where its baseline does, and not on
            every network (claim OURS-23); for other terminal Hessians "mean" and "batch" are the same.
        outer_gain: of the same: "batch" (V_x^(i) with the gain of the batch, DDP1 Eq. 36) or "own" (with each sample's
            own Q_u^(i), as DDPN Alg. 3 prints it).
        value_damping: of `value_hessian="per_sample"`: eps_V of DDPN Alg. 3, a Tikhonov term on V_xx at every stage,
            for networks with small states. V_xx is that of the mean loss, or with `outer_scale="sample"` each sample's.
        gram: how Gram matrices are formed, see `bellman_tf.curvature.gram`; "auto" chooses by static shapes, and a
            `bellman_tf.curvature.GramLimits` says from which sizes on it approximates.
        gram_memory: bytes that what one Gram matrix is formed of may take, gradients per sample or products of pairs of
            positions, 2**28 by default; above it the matrix is formed in blocks of samples, with the same result,
            layers one after the other. `game_summary` says from how many samples on. B x B itself is not counted.
        player_losses: which outputs' losses players feel, of a model with several outputs: maps names of players, as
            `game_summary` shows them, or patterns of them ("critic_*") to names of outputs. Players not named feel
            every loss; penalties that layers add are felt by all. Each player then minimises its own loss, in
            gradient, value and curvature, and sees what the others do to it. With information="feedback" or "open".
        step_control: `None`, "levenberg_marquardt" or a `bellman_tf.LevenbergMarquardt`: damping to where the step is
            best for samples that had no part in it, and steps that raise the loss refused. Needs
            `value_hessian="batch"` without groups, an `information` with a value, a curvature without a mean of
            gradients (not "adam", but `Adam(beta_1=0.0)`), no `inner_optimizer` and no momentum: a velocity that raises
            the loss would be refused step after step, whatever the damping. The state is in `damping` and
            `refused_steps`.
        weight_decay: decoupled, as in Keras.
        clipnorm: per variable, as in Keras.
        clipvalue: per variable, as in Keras.
        global_clipnorm: as in Keras; with `rollout="nonlinear"` only for `information="open"`, because there stages
            update one after the other and there is no global gradient to clip.
        use_ema: as in Keras.
        ema_momentum: as in Keras.
        ema_overwrite_frequency: as in Keras.
        loss_scale_factor: must be `None`.
        gradient_accumulation_steps: as in Keras: weights move every k-th step, by the mean of k gradients, and
            `iterations` counts their moves. Every micro-batch plays a game of its own, so that k of them are one batch
            with `group_size` of a micro-batch; see `bellman_tf.training.accumulation` for what is exact. With an inner
            optimizer it is the inner one's. Not with the nonlinear roll-out or `step_control`. A micro-batch that is
            not finite is left out; where the update that k of them make is not finite, all k are dropped.
        name: as in Keras.

    Raises:
        ValueError: for an option outside its range or a combination that cannot work, with the reason.

    Source: GTDDP (all), DGN Secs. 3-4, in the exact form of claims OURS-2, OURS-4.

    Example:
        >>> model = btf.Sequential([keras.Input((2,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
        >>> model.compile(optimizer=btf.GTDDP(learning_rate=0.03), loss="mse")
        >>> x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")
        >>> losses = model.fit(x, x[:, :1] * x[:, 1:], epochs=20, verbose=0).history["loss"]
        >>> losses[-1] < losses[0]
        True
        >>> around = btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(1e-3))  # AdamW moves the variables
    """

    def __init__(
        self,
        learning_rate: LearningRate | None = None,
        *,
        curvature: Curvature | None = None,
        inner_optimizer: InnerOptimizer | None = None,
        inner_metric: InnerMetric = "gain",
        momentum: float = 0.0,
        nesterov: bool = False,
        momentum_in_policy: bool = True,
        information: InformationName = "cooperative",
        value_hessian: ValueHessian = "batch",
        terminal_hessian: TerminalHessian = "matched",
        group_size: int | None = None,
        coupling: CouplingName = "replica",
        bilinear: bool = False,
        rollout: Rollout | None = None,
        outer_scale: OuterScale = "mean",
        outer_gain: OuterGain = "batch",
        value_damping: float = 0.0,
        gram: Gram = "auto",
        gram_memory: int | None = None,
        player_losses: dict[str, list[str]] | None = None,
        step_control: StepControl | None = None,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        rollout = rollout_for(rollout, value_hessian, bilinear)
        check_averages(use_ema, ema_momentum, ema_overwrite_frequency, name)
        kept = Momentum(momentum, nesterov, momentum_in_policy)
        inner, control = inner_named(inner_optimizer), step_control_named(step_control)
        form, limits = gram_named(gram, gram_memory)
        options = GameOptions(
            information,
            value_hessian,
            terminal_hessian,
            group_size,
            bilinear,
            form,
            rollout,
            outer_scale,
            outer_gain,
            value_damping,
            limits,
            rules_of(player_losses),
            micro_batches_of(inner, gradient_accumulation_steps),
            coupling,
        )
        check_inner(
            inner,
            options,
            inner_metric,
            curvature=curvature,  # the first to be named: a subclass has a rate of its own to go with it
            learning_rate=learning_rate,
            step_control=step_control,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema or None,
            gradient_accumulation_steps=gradient_accumulation_steps,
            momentum=momentum or None,
            nesterov=nesterov or None,
        )
        metric = None if inner is not None else curvature_config.get("kfac" if curvature is None else curvature)
        learning_rate = learning_rate if learning_rate is not None else 0.03 if inner is None else 0.0
        check_game(options, metric, step_control)
        check_momentum(kept, options, metric, step_control)
        learning_rate = check_keras(
            learning_rate,
            options,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            loss_scale_factor=loss_scale_factor,
            step_control=step_control,
        )
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.options = options
        self.curvature = metric
        self.inner_metric, self.momentum = inner_metric, kept
        if inner is not None:
            self.inner_optimizer = inner
        self._chosen = True
        self.step_control = control
        self.rejected_in_a_row = self.add_variable((), dtype="int64", name="rejected_in_a_row")
        self.rejected_batches = self.add_variable(
            (), dtype="int64", name="rejected_batches", aggregation="only_first_replica"
        )
        self.clamped_values = self.add_variable(
            (), dtype="int64", name="clamped_values", aggregation="only_first_replica"
        )
        if control is not None:
            initial: Any = first_control_state  # a callable, which Keras's annotation leaves out
            self.control_state = self.add_variable((STATE_SIZE,), initializer=initial, dtype="float32", name="control")
            self.refused_steps = self.add_variable((), dtype="int64", name="refused_steps")

    published_in: Paper | None = "gtddp"

    @classmethod
    def as_published(
        cls, learning_rate: LearningRate | None = None, *, paper: Paper | None = None, **options: Unpack[AllKeywords]
    ) -> Self:
        """The setting that follows a paper to the letter where the letter is computable.

        The metric stands for Q_uu, samples are uncoupled, the value's slope makes the metric's statistics, clamps are
        counted, Gram matrices are exact (`gram="exact"`). "kfac" and "ekfac" take whole patches of convolutions, and
        the papers' cross blocks where players share a value; an object of `bellman_tf.curvature` is taken as it is.
        With `information="open"` it is the curvature's baseline, without a value Hessian.

        What differs between the papers:

        - "ddp" (DDP1): players with values of their own, the loss's whole Hessian carried as a matrix per sample,
          CurvApprox in place of Q_uu (Eq. 15).
        - "ddpnopt": the same with the outer product g g' for convolutional networks; for feed-forward ones the paper
          has none: pass `terminal_hessian="full"` (Eq. 9).
        - "gtddp": players share a value; g g'; cross terms with + (Eqs. 53, 54).
        - "dgnopt": players share a value; g g'; cross terms with - (Eq. 15), defined for two players: a stage of more
          is refused, and `paper="gtddp"` takes its place. `terminal_hessian=r` is its "top eigenspace", taken of the
          terminal Hessian alone.

        Where the papers are not followed, or leave the choice:

        - Scale: no paper says what the terminal value is divided by. `outer_scale` has the readings; the default is
          the one that trains. `outer_gain="own"` is the letter of DDPN Alg. 3, each sample's own Q_u in V_x; the
          default has the batch's, as DDP1 Eq. 36. `value_damping` is the optional eps_V of DDPN Alg. 3.
        - The sign under the root of GT Eqs. 21-23 is printed +; it is -, else the value grows (claim GTDDP-P5), and
          Eq. 23 has cross terms (claim GTDDP-P6). Both corrections are made.
        - DGN Eq. 7 adds the terminal cost once per player; here it counts once. With N players that is a learning rate
          N times smaller under a fixed metric, and nothing else (claim OURS-11).
        - DDPN Table 2 has E[Q_u o Q_u] over the batch and eps outside the root; "rmsprop" and "adam" are Keras's, with
          a running mean of the squared mean and Keras's eps. The learning rate belongs to M in the recursion too.
        - `DGNOpt(players=N)` divides the damping by N, which is what N identical players make of one layer (claim
          OURS-8); the factors of DGN Eq. 15 would be singular for them.

        Args:
            learning_rate: as in the constructor.
            paper: "ddp", "ddpnopt", "gtddp" or "dgnopt"; `None` is the paper of the class, and for `KFAC` and `EKFAC`
                the baseline.
            **options: any other option.

        Returns:
            The optimizer.

        Example:
            >>> optimizer = btf.GTDDP.as_published(0.1)
            >>> optimizer.options.value_hessian, optimizer.curvature.cooperative
            ('outer_product', 'published')
            >>> btf.GTDDP.as_published(0.1, paper="ddp").options.information
            'feedback'
        """
        followed = cls.published_in if paper is None else paper
        made = published_options(followed, dict(options))
        optimizer = cls(**made) if learning_rate is None else cls(learning_rate, **made)
        if isinstance(options.get("curvature") or "kfac", str) and optimizer.curvature is not None:
            information = optimizer.options.information
            optimizer.curvature = published_curvature(followed, optimizer.curvature, information)
        return optimizer

    def get_config(self) -> dict[str, Any]:
        """The options, for Keras serialisation."""
        config = super().get_config()
        config.pop("loss_scale_factor", None)
        config.update(
            game_config(self.options),
            curvature=keras.saving.serialize_keras_object(self.curvature),
            inner_optimizer=None,
            inner_metric=self.inner_metric,
            momentum=self.momentum.beta,
            nesterov=self.momentum.nesterov,
            momentum_in_policy=self.momentum.in_policy,
            step_control=keras.saving.serialize_keras_object(self.step_control),
        )
        if self.inner is not None:
            config["learning_rate"] = None
            config["inner_optimizer"] = keras.saving.serialize_keras_object(self.inner)
        return config
