"""Several calls of one layer as one capture: the gradient of a sample is the sum over the calls.

Where the variables are one matrix the positions of all calls stand side by side, so that moments and Gram forms see one
longer sample. Elsewhere the results of the calls are added.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.convolution import Convolution
from bellman_tf.layers.dense import LinearMap
from bellman_tf.layers.embedding import Lookup
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.layers.tensors import with_ones


class Summed(Capture):
    """Calls whose results are added.

    Attributes:
        calls: one capture per call.
    """

    def __init__(self, calls: Sequence[Capture]) -> None:
        super().__init__(calls[0].cotangents)
        self.calls = list(calls)

    @property
    def extent(self) -> Extent:
        """Static sizes, those of one call."""
        return self.calls[0].extent

    def scaled(self, alpha: tf.Tensor) -> "Summed":
        """The same calls with one column, `along(cotangents, alpha)`."""
        return Summed([call.scaled(alpha) for call in self.calls])

    def tensors(self) -> Tensors:
        """Those of all calls."""
        return [tensor for call in self.calls for tensor in call.tensors()]

    def made_of(self, tensors: Tensors) -> "Summed":
        """The same calls on other samples."""
        return Summed([call.made_of(t) for call, t in zip(self.calls, _shares(self.calls, tensors), strict=True)])

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij` for `weights` `[B, m]`."""
        return _added([call.gradient(weights) for call in self.calls])

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`."""
        return tf.add_n([call.inner(direction) for call in self.calls])

    def per_sample(self) -> Tensors:
        """`q_ij`, `[B, m, *shape]` for each variable."""
        return _added([call.per_sample() for call in self.calls])


class RepeatedMap(LinearMap):
    """Calls of a Dense or EinsumDense layer, one behind the other."""

    def __init__(self, calls: Sequence[LinearMap]) -> None:
        """Puts the positions of all calls side by side.

        Args:
            calls: one capture per call.
        """
        columns = zip(*(call.cotangents for call in calls), strict=True)
        layout = calls[0].layout
        super().__init__(
            _side_by_side([call.inputs for call in calls]),
            [_side_by_side(column) for column in columns],
            layout.kernel_shape,
            layout.bias_shape,
        )

    def with_inputs(self, inputs: tf.Tensor) -> "RepeatedMap":
        """The capture itself: a new input of one call says nothing of the others."""
        return self


class RepeatedLookup(Lookup):
    """Calls of an embedding, one behind the other."""

    def __init__(self, calls: Sequence[Lookup]) -> None:
        """Puts the positions of all calls side by side.

        Args:
            calls: one capture per call.
        """
        columns = zip(*(call.cotangents for call in calls), strict=True)
        tokens = tf.concat([call.tokens for call in calls], axis=1)
        super().__init__(tokens, [tf.concat(column, axis=1) for column in columns], calls[0].vocabulary)


class RepeatedConvolution(TapCapture):
    """Calls of a convolution: sums of what the taps bring together, positions side by side elsewhere.

    Attributes:
        calls: one capture per call.
    """

    def __init__(self, calls: Sequence[Convolution]) -> None:
        columns = zip(*(call.cotangents for call in calls), strict=True)
        super().__init__([tf.concat(column, axis=1) for column in columns], calls[0].layout)
        self.calls, self.groups = list(calls), calls[0].groups
        counts = [call.positions for call in calls]
        self.positions = total(counts)

    @property
    def extent(self) -> Extent:
        """Static sizes."""
        return self.layout.extent(self.columns, self.positions, self.calls[0].extent.taps)

    @property
    def centre(self) -> int:
        """Number of the kernel's centre tap."""
        return self.calls[0].centre

    def _add(self, result: Callable[[Convolution], tf.Tensor]) -> tf.Tensor:
        return tf.add_n([result(call) for call in self.calls])

    def scaled(self, alpha: tf.Tensor) -> "RepeatedConvolution":
        """The same calls with one column, `along(cotangents, alpha)`."""
        return RepeatedConvolution([call.scaled(alpha) for call in self.calls])

    def thinned(self, channels: int) -> "RepeatedConvolution":
        """As `Convolution.thinned`."""
        return RepeatedConvolution([call.thinned(channels) for call in self.calls])

    def tensors(self) -> Tensors:
        """Those of all calls."""
        return [tensor for call in self.calls for tensor in call.tensors()]

    def made_of(self, tensors: Tensors) -> "RepeatedConvolution":
        """The same calls on other samples."""
        return RepeatedConvolution(
            [call.made_of(t) for call, t in zip(self.calls, _shares(self.calls, tensors), strict=True)]
        )

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij` for `weights` `[B, m]`."""
        return _added([call.gradient(weights) for call in self.calls])

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`."""
        return self._add(lambda call: call.inner(direction))

    def sides(self, number: int) -> tuple[tf.Tensor, Tensors]:
        """What one tap brings together in all calls, positions side by side."""
        inputs, columns = zip(*(call.sides(number) for call in self.calls), strict=True)
        return tf.concat(inputs, axis=1), [tf.concat(column, axis=1) for column in zip(*columns, strict=True)]

    def tap_gradients(self, number: int) -> tf.Tensor:
        """As `Convolution.tap_gradients`."""
        return self._add(lambda call: call.tap_gradients(number))

    def rotated_tap_gradients(self, number: int, left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `Convolution.rotated_tap_gradients`."""
        q, turned = _added([call.rotated_tap_gradients(number, left, right) for call in self.calls])
        return q, turned

    def tap_moments(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """As `Convolution.tap_moments`."""
        return self._add(lambda call: call.tap_moments(left, right))

    def bias_per_sample(self) -> tf.Tensor:
        """`sum_l c_ijl`, `[B, m, c_out]`."""
        return self._add(lambda call: call.bias_per_sample())

    def kernel_per_sample(self) -> tf.Tensor:
        """Per-sample gradients of the kernel in matrix form, `[B, m, rows, e]`."""
        return self._add(lambda call: call.kernel_per_sample())

    def features(self) -> tf.Tensor:
        """Patches, `[B, L, rows]`."""
        return tf.concat([call.features() for call in self.calls], axis=1)

    def augmented(self) -> tf.Tensor:
        """Patches with the constant feature of the bias, `[B, L, rows(+1)]`."""
        return with_ones(self.features()) if self.bias else self.features()

    def input_moment(self, form: str = "patches") -> tf.Tensor:
        """As `Convolution.input_moment`: a sum over positions."""
        return self._add(lambda call: call.input_moment(form))

    def group_input_moments(self, form: str) -> tf.Tensor:
        """As `Convolution.group_input_moments`."""
        return self._add(lambda call: call.group_input_moments(form))


_REPEATED: tuple[tuple[type[Capture], Callable[[Any], Capture]], ...] = (
    (LinearMap, RepeatedMap),
    (Lookup, RepeatedLookup),
    (Convolution, RepeatedConvolution),
    (Capture, Summed),
)


def join_calls(captures: Sequence[Capture]) -> Capture:
    """Joins the captures of several calls of one layer.

    Args:
        captures: one per call, of the same samples in the same order, with the same number of columns.

    Returns:
        A capture whose per-sample gradients are the sums over the calls.
    """
    if len(captures) == 1:
        return captures[0]
    joined = next(joined for kind, joined in _REPEATED if isinstance(captures[0], kind))
    return joined(captures)


def joined_extent(extents: Sequence[Extent]) -> Extent:
    """Static sizes of `join_calls`, from those of the calls.

    Args:
        extents: one per call.

    Returns:
        Those of one call with the positions of all.
    """
    counts = [extent.positions for extent in extents]
    return dataclasses.replace(extents[0], positions=total(counts))


def total(counts: Sequence[int | None]) -> int | None:
    """Sum of static sizes, `None` where one is not static."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _side_by_side(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Tensors `[B, d]` or `[B, L, d]` as one `[B, sum of L, d]`."""
    return tf.concat([t[:, None] if len(t.shape) == 2 else t for t in tensors], axis=1)


def _shares(calls: Sequence[Capture], tensors: Tensors) -> list[Tensors]:
    """The tensors of every call, out of those of all."""
    remaining = iter(tensors)
    return [[next(remaining) for _ in call.tensors()] for call in calls]


def _added(results: Iterable[Sequence[tf.Tensor]]) -> Tensors:
    return [tf.add_n(parts) for parts in zip(*results, strict=True)]
