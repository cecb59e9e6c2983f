"""Second derivatives of J in the model's outputs from the one call that computes it.

Two small tapes are open while J is computed and watch the outputs and their logits, nothing of the model. Their records
hold the loss's own operations; a product H v is one derivative of the inner tape's gradient. The loss is not called
again, so a loss that counts, draws or writes does it once.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import tensorflow as tf

from bellman_tf._checks import error
from bellman_tf._typing import Tensors
from bellman_tf.losses.ends import OutputEnd, carried_logits
from bellman_tf.losses.samples import at_least_float32, entries_per_sample


@dataclass(frozen=True, eq=False)
class _Source:
    """What the tapes watch of one output: the output, and the logits that the loss may follow it back to."""

    end: OutputEnd
    logits: tf.Tensor | None


class CurvatureTapes:
    """The two tapes; `curvature_tapes` opens them."""

    def __init__(self, ends: Sequence[OutputEnd]) -> None:
        self._outer = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self._inner = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self._sources = [_Source(end, _logits(end)) for end in ends]
        self._points = [tensor for s in self._sources for tensor in (s.end.output, s.logits) if tensor is not None]

    @contextlib.contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Records what is computed inside.

        Yields:
            Nothing.
        """
        with self._outer, self._inner:
            self._outer.watch(self._points)
            self._inner.watch(self._points)
            yield

    def curvature(
        self,
        loss: tf.Tensor,
        scale: tf.Tensor | float,
        ends: Sequence[int],
        before: Sequence[bool],
        keep_first: bool = False,
        linear: Sequence[int] = (),
        less: Sequence[tuple[tf.Tensor, tf.Tensor]] = (),
    ) -> "LossCurvature":
        """Differentiates once; call it when the tapes have stopped recording.

        Args:
            loss: J, computed while they recorded.
            scale: B, so that derivatives belong to phi_i = B J_i.
            ends: which outputs.
            before: for each of them, whether to differentiate in its logits instead of in the output.
            keep_first: keep the first of them if J depends on none, with derivatives zero.
            linear: outputs in which J counts as linear, because its second derivatives cannot be had.
            less: pairs of loss values and numbers in their shape, whose products are taken off B J.

        Returns:
            First derivatives of B J, and the way to the second. Outputs that J does not depend on are left out. An
            output with logits whose activation is not known is differentiated in the logits if J depends on those
            alone, else in the output.
        """
        sources = [self._sources[k] for k in ends]
        points = {id(t): t for s in sources for t in (s.end.output, s.logits) if t is not None}
        with self._outer:
            targets, seeds = [loss, *(v for v, _ in less)], [tf.cast(scale, loss.dtype), *(-f for _, f in less)]
            found = self._inner.gradient(targets, list(points.values()), output_gradients=seeds)
            slopes = {key: tf.convert_to_tensor(g) for key, g in zip(points, found, strict=True) if g is not None}
            every = self._groups(ends, before, slopes)
            groups = [group for group in every if group.connected(slopes)]
            if keep_first and not groups:
                groups = every[:1]
            gradient = [group.total(slopes) for group in groups]
        straight = [any(k in linear for k in group.ends) for group in groups]
        return LossCurvature(self._outer, groups, list(points.values()), straight, gradient)

    def _groups(self, ends: Sequence[int], before: Sequence[bool], slopes: dict[int, tf.Tensor]) -> list["_Coordinate"]:
        """Outputs with one coordinate tensor together: logits may be an output themselves."""
        groups: dict[int, _Coordinate] = {}
        for k, cut in zip(ends, before, strict=True):
            source = self._sources[k]
            end = source.end
            if end.logits is not None and end.activation is None:
                cut = id(end.output) not in slopes
            z = end.coordinate(cut)
            group = groups.setdefault(id(z), _Coordinate(z, [], [], []))
            group.ends.append(k)
            if cut:
                group.direct.append(z if source.logits is None else source.logits)
                if end.activation is not None:
                    group.through.append(end)
            else:
                group.direct.append(z)
        return list(groups.values())


@dataclass(frozen=True, eq=False)
class _Coordinate:
    """One tensor z that J is a function of: directly, and through activations y = a(z)."""

    z: tf.Tensor
    ends: list[int]
    direct: Tensors
    through: list[OutputEnd]

    def connected(self, slopes: dict[int, tf.Tensor]) -> bool:
        return any(id(t) in slopes for t in [*self.direct, *(end.output for end in self.through)])

    def total(self, slopes: dict[int, tf.Tensor]) -> tf.Tensor:
        """dJ/dz by the chain rule, zeros if there is none; recorded by the outer tape."""
        direct = {id(t): slopes[id(t)] for t in self.direct if id(t) in slopes}
        parts = [tf.cast(slope, self.z.dtype) for slope in direct.values()]
        for end in self.through:
            if id(end.output) in slopes:
                parts.append(tf.cast(through_activation(end, slopes[id(end.output)]), self.z.dtype))
        return tf.add_n(parts) if parts else tf.zeros_like(self.z)


@dataclass(frozen=True, eq=False)
class LossCurvature:
    """B J as a function of some outputs (or logits), to second order.

    Attributes:
        gradient: B dJ/dz for each of `z`.
    """

    _outer: tf.GradientTape
    _coordinates: list[_Coordinate]
    _points: Tensors
    _linear: list[bool]
    gradient: Tensors

    @property
    def z(self) -> Tensors:
        """The tensors it is a function of, each once."""
        return [coordinate.z for coordinate in self._coordinates]

    @property
    def ends(self) -> list[int]:
        """Numbers of the outputs that have a part in it."""
        return [k for coordinate in self._coordinates for k in coordinate.ends]

    def hessian_times(self, vectors: Sequence[tf.Tensor]) -> Tensors:
        """H v, H the Hessian of B J over all of `z` and all samples.

        Args:
            vectors: one tensor per entry of `z`, shaped like it.

        Returns:
            Tensors shaped like `z`. Where J couples samples, sample i also receives sum_j H_ij v_j.
        """
        bent = [
            (g, tf.cast(v, g.dtype))
            for g, v, linear in zip(self.gradient, vectors, self._linear, strict=True)
            if not linear
        ]
        if not bent:
            return [tf.zeros_like(z) for z in self.z]
        targets, seeds = zip(*bent, strict=True)
        found = self._outer.gradient(
            list(targets), self._points, output_gradients=list(seeds), unconnected_gradients="zero"
        )
        slopes = {id(point): tf.convert_to_tensor(g) for point, g in zip(self._points, found, strict=True)}
        return [
            tf.zeros_like(coordinate.z) if linear else coordinate.total(slopes)
            for coordinate, linear in zip(self._coordinates, self._linear, strict=True)
        ]

    def hessian(self, separate: bool) -> tf.Tensor:
        """Diagonal blocks of the Hessian, sample by sample, over all of `z`.

        Args:
            separate: J is a sum over samples. Then D products with one entry in *all* samples give every block; a J
                that couples samples after all gives sum_j H_ij. If False, B x D products with one entry of one sample
                give the diagonal blocks H_ii of a coupled J (Dice, Tversky); its blocks between samples are dropped.

        Returns:
            `[B, D, D]`, symmetric, D (static) running over the flattened `z` in order; float32 or float64.
        """
        size = sum(entries_per_sample(z) for z in self.z)
        samples = tf.shape(self.z[0])[0]
        dtype = at_least_float32(self.z[0]).dtype

        @tf.autograph.experimental.do_not_convert
        def column(k: tf.Tensor) -> tf.Tensor:
            unit = tf.broadcast_to(tf.one_hot(k, size, dtype=dtype), [samples, size])
            return self.flat_hessian_times(unit)  # [B, D]

        @tf.autograph.experimental.do_not_convert
        def block_column(k: tf.Tensor) -> tf.Tensor:
            unit = tf.reshape(tf.one_hot(k, samples * size, dtype=dtype), [samples, size])
            return tf.gather(self.flat_hessian_times(unit), k // size)  # [D]

        if separate:
            H = tf.map_fn(column, tf.range(size), fn_output_signature=dtype)  # [D, B, D]
            H = tf.transpose(H, [1, 2, 0])
        else:
            H = tf.map_fn(block_column, tf.range(samples * size), fn_output_signature=dtype)  # [B D, D]
            H = tf.reshape(H, [samples, size, size])
        H = tf.ensure_shape(H, [None, size, size])
        return 0.5 * (H + tf.linalg.matrix_transpose(H))

    def flat_hessian_times(self, v: tf.Tensor) -> tf.Tensor:
        """H v for the outputs flattened and side by side.

        Args:
            v: `[B, D]`.

        Returns:
            `[B, D]`, dtype of `v`.
        """
        return flatten_samples(self.hessian_times(split_samples(v, self.z)), v.dtype)


@contextlib.contextmanager
def curvature_tapes(ends: Sequence[OutputEnd]) -> Generator[CurvatureTapes, None, None]:
    """Opens the tapes around the computation of J from the model's outputs.

    Args:
        ends: the outputs that J may depend on, see `find_end`.

    Yields:
        The tapes; call their `curvature` after the context.

    Example:
        >>> y = tf.constant([[1.0, 2.0]])
        >>> with curvature_tapes([OutputEnd(y)]) as probe:
        ...     J = tf.reduce_sum(y**3)
        >>> probe.curvature(J, 1.0, [0], [False]).hessian_times([tf.ones_like(y)])[0].numpy().tolist()
        [[6.0, 12.0]]
    """
    probe = CurvatureTapes(ends)
    with probe.recording():
        yield probe


def through_activation(end: OutputEnd, cotangent: tf.Tensor) -> tf.Tensor:
    """Takes a cotangent of the output to the logits; the Jacobians of both activations are functions of the output.

    Args:
        end: an output with the name of its last activation.
        cotangent: shaped like the output.

    Returns:
        The cotangent of the logits. The Jacobian is symmetric: the product with it is the same.

    Raises:
        ValueError: if the activation is not known.
    """
    y = end.output
    if end.activation == "softmax":
        return y * (cotangent - tf.reduce_sum(y * cotangent, axis=-1, keepdims=True))
    if end.activation == "sigmoid":
        return y * (1.0 - y) * cotangent
    raise error("activation", "be 'softmax' or 'sigmoid'", end.activation, "Differentiate in the output itself.")


def flatten_samples(tensors: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Flattens tensors sample by sample and puts them side by side.

    Args:
        tensors: `[B, ...]` each.
        dtype: of the result.

    Returns:
        `[B, D]`.
    """
    flat = [tf.cast(tf.reshape(t, [tf.shape(t)[0], -1]), dtype) for t in tensors]
    return flat[0] if len(flat) == 1 else tf.concat(flat, axis=1)


def split_samples(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> Tensors:
    """Undoes `flatten_samples`.

    Args:
        flat: `[B, D]`.
        like: the tensors whose shapes and dtypes to restore.

    Returns:
        The tensors.
    """
    if len(like) == 1:
        return [tf.cast(tf.reshape(flat, tf.shape(like[0])), like[0].dtype)]
    sizes = [t.shape[1:].num_elements() or tf.size(t[:1]) for t in like]
    parts = tf.split(flat, sizes, axis=1)
    return [tf.cast(tf.reshape(part, tf.shape(t)), t.dtype) for part, t in zip(parts, like, strict=True)]


def _logits(end: OutputEnd) -> tf.Tensor | None:
    """What to watch besides the output: the logits that Keras would find, else those the end names."""
    carried = carried_logits(end.output)
    return end.logits if carried is None else carried
