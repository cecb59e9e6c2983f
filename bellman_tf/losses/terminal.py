"""From one call of `compute_loss` to the terminal data of the recursion.

with tape:
    y_pred = model(x, training=True)
    with record_loss(find_ends(y_pred), tape) as record:
        J = model.compute_loss(x, y, y_pred, sample_weight)
cost = terminal_cost(record, J, B, keras_computes_loss(model))
g, f = tape.gradient(J, [cost.z, cost.values], output_gradients=B)
curvature = terminal_curvature(cost, g, f, "matched")
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import keras
import tensorflow as tf

from bellman_tf._checks import check_choice, error
from bellman_tf._typing import Tensors
from bellman_tf.losses.automatic import AutomaticHead
from bellman_tf.losses.closed_form import AUTOMATIC, LossForm
from bellman_tf.losses.ends import OutputEnd, carried_logits, find_end
from bellman_tf.losses.excluded_losses import NOTHING, ExcludedLosses
from bellman_tf.losses.forms import agree, closed_form, once_differentiable, recognise, terminal_head
from bellman_tf.losses.head import Head
from bellman_tf.losses.joint import hessian_factor, matched_coefficient
from bellman_tf.losses.observe import Observation, observe_losses, per_sample
from bellman_tf.losses.probe import CurvatureTapes, LossCurvature, curvature_tapes, flatten_samples
from bellman_tf.losses.samples import at_least_float32, entries_per_sample
from bellman_tf.losses.signs import Signs
from bellman_tf.losses.sum import SumOfHeads

TerminalName: TypeAlias = Literal["matched", "outer_product", "full"]
TerminalHessian: TypeAlias = TerminalName | int
TERMINAL_HESSIANS = get_args(TerminalName)


@dataclass(frozen=True, eq=False)
class LossRecord:
    """The losses that were called while J was computed, and tapes of that computation.

    Attributes:
        ends: the outputs that J may depend on, each once.
        observed: the Keras losses that were called.
        probe: tapes that hold the loss's own operations.
    """

    ends: list[OutputEnd]
    observed: list[Observation]
    probe: CurvatureTapes


@dataclass(frozen=True, eq=False)
class _ClosedOutput:
    """An output all of whose losses have a closed form with one cut."""

    end: OutputEnd
    forms: list[LossForm]
    observed: list[Observation]

    @property
    def before(self) -> bool:
        return self.forms[0].before_activation

    @property
    def z(self) -> tf.Tensor:
        return self.end.coordinate(self.before)

    @property
    def pairs(self) -> list[tuple[LossForm, Observation]]:
        return list(zip(self.forms, self.observed, strict=True))

    def head(self, derivatives: Sequence[tf.Tensor]) -> Head:
        z = self.z
        carried = carried_logits(self.end.output) if self.before else None
        if carried is not None:
            z = carried  # what Keras computes with; `z` may be a cast away from it
        parts = tuple(terminal_head(form, seen, z, f) for (form, seen), f in zip(self.pairs, derivatives, strict=True))
        return parts[0] if len(parts) == 1 else SumOfHeads(parts)


@dataclass(frozen=True, eq=False)
class TerminalCost:
    """B J as a function of the outputs that carry a loss.

    Attributes:
        z: the tensors its Hessian is taken in: outputs, or logits before a last softmax or sigmoid. Their first axis is
            the sample.
        values: loss values, B dJ/d(values) of which `terminal_curvature` reads.
        rows: R, the length of the first axis of `z`; a Python int if it is static.
    """

    z: Tensors
    values: Tensors
    rows: int | tf.Tensor
    _closed: list[_ClosedOutput]
    _automatic: AutomaticHead | None

    def heads(self, at_values: Sequence[tf.Tensor]) -> list[Head]:
        """Hessians of all outputs.

        Args:
            at_values: B dJ/d(loss values), in the order of `values`.

        Returns:
            One head per output with a closed form; then, if there is anything else, one for all of that together.
        """
        remaining = iter(at_values)
        heads = [part.head([next(remaining) for _ in part.observed]) for part in self._closed]
        return heads if self._automatic is None else [*heads, self._automatic]

    def per_head(self, tensors: Sequence[tf.Tensor]) -> Tensors:
        """Joins tensors shaped like `z` to one per head.

        Args:
            tensors: one per entry of `z`.

        Returns:
            One per head, float32 or float64.
        """
        tensors = [at_least_float32(t) for t in tensors]
        count = len(self._closed)
        if self._automatic is None:
            return tensors
        return [*tensors[:count], flatten_samples(tensors[count:], tensors[count].dtype)]

    def draw(self, at_values: Sequence[tf.Tensor], signs: Signs) -> Tensors:
        """A random cotangent of every sample, whose second moment is the sample's terminal Hessian.

        Args:
            at_values: B dJ/d(loss values), in the order of `values`.
            signs: of the draw.

        Returns:
            Tensors shaped like `z`. For a J that couples samples those of its diagonal blocks.
        """
        drawn = [head.draw(signs) for head in self.heads(at_values)]
        [column] = self.columns([tf.reshape(part, [tf.shape(part)[0], -1, 1]) for part in drawn])
        return column

    def columns(self, factors: Sequence[tf.Tensor]) -> list[Tensors]:
        """Factors of the heads as cotangents of `z`.

        Args:
            factors: `[R, D_k, r]` per head.

        Returns:
            r lists of tensors shaped like `z`.
        """
        count = len(self._closed)
        parts = list(factors[:count])
        if self._automatic is not None:
            parts += tf.split(factors[count], [entries_per_sample(z) for z in self.z[count:]], axis=1)
        return [
            [tf.cast(tf.reshape(Z[:, :, j], tf.shape(z)), z.dtype) for Z, z in zip(parts, self.z, strict=True)]
            for j in range(factors[0].shape[-1])
        ]


@dataclass(frozen=True, eq=False)
class TerminalCurvature:
    """The terminal Hessian in the form that the recursion takes; exactly one of the two is given.

    Attributes:
        beta_squared: `[R]`, coefficient of g g' where the Hessian is collinear with the gradient.
        columns: r lists of tensors shaped like `TerminalCost.z`: columns of Z with Z Z' = H.
    """

    beta_squared: tf.Tensor | None = None
    columns: list[Tensors] | None = None


def keras_computes_loss(model: keras.Model) -> bool:
    """Whether J is made by Keras's own `compute_loss`: a weighted sum of compiled losses, each on one output.

    Args:
        model: the model.

    Returns:
        False if the model's class, or the model itself, has its own.
    """
    return getattr(model.compute_loss, "__func__", None) is keras.Model.compute_loss


def find_ends(y_pred: Any) -> list[OutputEnd]:
    """Ends of all floating outputs.

    Args:
        y_pred: what the model returned, any structure.

    Returns:
        One per tensor, in the order of `keras.tree.flatten`.
    """
    leaves = [leaf for leaf in keras.tree.flatten(y_pred) if isinstance(leaf, tf.Tensor) and leaf.dtype.is_floating]
    return [find_end(leaf) for leaf in leaves]


@contextlib.contextmanager
def record_loss(
    ends: Sequence[OutputEnd], tape: tf.GradientTape | None = None
) -> Generator[LossRecord, None, None]:  # fmt: skip
    """Records how J comes from the outputs; open it around `compute_loss` alone, so that losses of layers stay outside.

    Args:
        ends: the outputs; one without logits is looked at again with `find_end`.
        tape: the tape that differentiates J; it shall watch the loss values.

    Yields:
        The record.
    """
    unique = {id(end.output): end if end.logits is not None else find_end(end.output) for end in ends}
    with observe_losses(tape) as observed, curvature_tapes(list(unique.values())) as probe:
        yield LossRecord(list(unique.values()), observed, probe)


def terminal_cost(
    record: LossRecord,
    loss: tf.Tensor,
    scale: tf.Tensor | float,
    closed: bool,
    excluded: ExcludedLosses = NOTHING,
) -> TerminalCost:
    """Sorts the outputs: those with a closed form, and the rest, differentiated through the probe.

    Args:
        record: of `record_loss`.
        loss: J.
        scale: B, samples of the whole (global) batch: sample i has the cost phi_i = B J_i.
        closed: whether J is a weighted sum of the observed losses, see `keras_computes_loss`. If not, all of J is
            differentiated: a model's own `compute_loss` may do anything to a loss that it calls.
        excluded: losses that are taken out of J, with all losses of their outputs.

    Returns:
        The terminal cost.

    Raises:
        ValueError: if there is no output to differentiate in, or the outputs have different numbers of rows.
    """
    seen = [[o for o in record.observed if o.y_pred is end.output] for end in record.ends]
    closed = closed and sum(map(len, seen)) == len(record.observed)
    left_out = {k for k, end in enumerate(record.ends) if id(end.output) in excluded.outputs}
    felt = [[] if k in left_out else observed for k, observed in enumerate(seen)]
    parts = _closed_outputs(record.ends, felt) if closed else []
    taken = {id(part.end.output) for part in parts}
    shared = {id(part.z) for part in parts}  # an output without a loss may be the logits of another
    rest = [
        k
        for k, end in enumerate(record.ends)
        if k not in left_out and id(end.output) not in taken and (seen[k] or id(end.output) not in shared)
    ]
    automatic = _automatic(record, loss, scale, rest, seen, closed, bool(parts), excluded)
    z = [part.z for part in parts] + ([] if automatic is None else automatic.curvature.z)
    values = [o.values for part in parts for o in part.observed]
    return TerminalCost(z, values, _rows(z), parts, automatic)


def terminal_curvature(
    cost: TerminalCost,
    at_z: Sequence[tf.Tensor],
    at_values: Sequence[tf.Tensor],
    terminal_hessian: TerminalHessian = "matched",
) -> TerminalCurvature:
    """Terminal Hessian of every sample, from the derivatives that one backward pass gives.

    Args:
        cost: the terminal cost.
        at_z: B dJ/dz, one tensor per entry of `cost.z`.
        at_values: B dJ/d(loss values), one tensor per entry of `cost.values`.
        terminal_hessian: "matched" (the true curvature along the gradient), "outer_product" (1), "full" (all columns),
            or the number of columns.

    Returns:
        `beta_squared` for the first two, `columns` for the others. Negative curvature counts as 0, and so
        does that of a sample whose second derivatives are not finite. For a J that couples samples "matched" has the
        curvature of J along the gradients of all samples; columns see its diagonal blocks.
    """
    if terminal_hessian == "outer_product":
        return TerminalCurvature(tf.ones([cost.rows], at_least_float32(cost.z[0]).dtype))
    heads = cost.heads(at_values)
    if terminal_hessian == "matched":
        # `at_z` holds every way from an output to J. With several outputs one may lead through another.
        g = cost.per_head(at_z) if len(cost.z) == 1 else [head.gradient() for head in heads]
        return TerminalCurvature(matched_coefficient(heads, g))
    if isinstance(terminal_hessian, str):
        check_choice("terminal_hessian", terminal_hessian, TERMINAL_HESSIANS)
        return TerminalCurvature(columns=cost.columns(hessian_factor(heads)))
    return TerminalCurvature(columns=cost.columns(hessian_factor(heads, terminal_hessian)))


def _closed_outputs(ends: Sequence[OutputEnd], seen: Sequence[list[Observation]]) -> list[_ClosedOutput]:
    """Outputs with a closed form, each with a `z` that no other loss is a function of."""
    parts, places = [], []
    for end, observed in zip(ends, seen, strict=True):
        if not observed:
            continue
        rank = end.output.shape.rank
        forms = agree([recognise(o.loss, end.activation, rank, o.reached) for o in observed], end.activation)
        part = _ClosedOutput(end, forms, observed)
        if all(f.kind != AUTOMATIC and closed_form(f.kind).fits(f, o.y_true, part.z) for f, o in part.pairs):
            parts.append(part)
            places.append(id(part.z))
        else:
            places.append(id(end.output if end.logits is None else end.logits))
    return [part for part in parts if places.count(id(part.z)) == 1]


def _automatic(
    record: LossRecord,
    loss: tf.Tensor,
    scale: tf.Tensor | float,
    rest: list[int],
    seen: list[list[Observation]],
    closed: bool,
    others: bool,
    excluded: ExcludedLosses,
) -> AutomaticHead | None:
    """The outputs that are left over, unless J does not depend on them."""
    if not rest:
        return None
    before = [record.ends[k].logits is not None for k in rest]
    linear = [k for k in rest if any(once_differentiable(o.loss) for o in seen[k])]
    curvature: LossCurvature = record.probe.curvature(loss, scale, rest, before, not others, linear, excluded.less)
    if not curvature.z:
        return None
    separate = closed and all(seen[k] and all(per_sample(o) for o in seen[k]) for k in curvature.ends)
    return AutomaticHead(curvature, separate)


def _rows(z: Tensors) -> int | tf.Tensor:
    """Rows that all of `z` share."""
    if not z:
        raise error("outputs", "hold a floating tensor", z, "Use information='open'.")
    sizes = [tensor.shape[0] if tensor.shape.rank else None for tensor in z]
    known = {size for size in sizes if size is not None}
    if len(known) > 1 or any(tensor.shape.rank == 0 for tensor in z):
        raise error(
            "outputs", "have one row per sample in every output that carries a loss", [t.shape for t in z],
            "Use information='open', or give the loss outputs with one row per sample.",
        )  # fmt: skip
    return known.pop() if known else tf.shape(z[0])[0]
