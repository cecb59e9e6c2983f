"""A player's part of one training step: its input, and the cotangents of its pre-activation.

Every kind of layer computes the same three things from them, in the shapes of its own variables:

    gradient(w)      sum_ij w_ij q_ij      q_ij = gradient of column j of sample i in the player's variables
    inner(K)         <q_ij, K>
    per_sample()     q_ij itself

Column 0 is the back-propagated gradient of the sample's cost; columns 1..r belong to the factor of the terminal
Hessian. No cotangent is divided by the batch size.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.matrix_layout import Extent, MatrixLayout
from bellman_tf.layers.tensors import beside, leading, to_work
from bellman_tf.linalg.constants import constant, number, once, reshape
from bellman_tf.linalg.products import times


def weigh(cotangents: Sequence[tf.Tensor], weights: tf.Tensor) -> tf.Tensor:
    """Sums the columns of each sample with its weights.

    Args:
        cotangents: m tensors `[B, ...]`.
        weights: `[B, m]`.

    Returns:
        `sum_j w_ij c_ij`, `[B, ...]`, in the dtype of the cotangents.
    """
    weights = tf.cast(weights, cotangents[0].dtype)
    tail = [1] * (len(cotangents[0].shape) - 1)
    if len(cotangents) == 1:
        return cotangents[0] * (weights if len(tail) == 1 else reshape(weights, [-1, *tail]))
    return tf.add_n([c * reshape(weights[:, j], [-1, *tail]) for j, c in enumerate(cotangents)])


def weigh_each(tensors: Tensors, columns: Sequence[Tensors], weights: tf.Tensor) -> Tensors:
    """Sums the columns of cotangents of several tensors with the weights of their samples.

    Args:
        tensors: `[B, ...]` each.
        columns: m lists of cotangents, in the shapes of the tensors.
        weights: `[B, m]`.

    Returns:
        One cotangent for each tensor, in its dtype.
    """
    return [
        tf.cast(weigh([to_work(part) for part in parts], weights), tensor.dtype)
        for tensor, *parts in zip(tensors, *columns, strict=True)
    ]


def along(cotangents: Sequence[tf.Tensor], slope: tf.Tensor) -> tf.Tensor:
    """Sums the columns of each sample with the slope of a value.

    Args:
        cotangents: m tensors `[B, ...]`.
        slope: `[B]`, of column 0 alone, or `[B, m]`.

    Returns:
        `[B, ...]`, in the dtype of the cotangents.
    """
    return weigh(cotangents[:1], slope[:, None]) if slope.shape.rank == 1 else weigh(cotangents, slope)


def weigh_smaller(
    inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Weighs one side of products of inputs and cotangents: of one column the side that holds fewer numbers.

    Args:
        inputs: `[B, ...]`.
        cotangents: m tensors `[B, ...]`.
        weights: `[B, m]`.

    Returns:
        Inputs and cotangent whose products are `sum_j w_ij x_i c_ij`.
    """
    sizes = [inputs.shape[1:].num_elements(), cotangents[0].shape[1:].num_elements()]
    if len(cotangents) == 1 and None not in sizes and sizes[0] < sizes[1]:
        return weigh([inputs], weights), cotangents[0]
    return inputs, weigh(cotangents, weights)


def weighted_sum(samples: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sums numbers per sample and column.

    Args:
        samples: `[B, m, *shape]`, `shape` static.
        weights: `[B, m]`.

    Returns:
        `sum_ij w_ij q_ij`, `shape`.
    """
    shape = samples.shape[2:]
    weights = tf.cast(weights, samples.dtype)
    weights = weights if samples.shape[1] == 1 else reshape(weights, [-1, 1])
    rows = reshape(samples, [-1, shape.num_elements()])
    return reshape(tf.matmul(weights, rows, transpose_a=True), shape.as_list())


def sample_products(inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]) -> tf.Tensor:
    """Products of inputs and cotangents summed over positions: gradients per sample in matrix form.

    Args:
        inputs: `[B, L, d]`.
        cotangents: m tensors `[B, L, e]`.

    Returns:
        `x_i' c_ij`, `[B, m, d, e]`.
    """
    return beside([tf.matmul(inputs, c, transpose_a=True) for c in cotangents])


class Columns(list[tf.Tensor]):
    """The cotangents of a capture, one tensor `[B, ...]` per column, and what has been made of them."""


class Capture:
    """Base of the captures; subclasses hold the tensors of one player at one step.

    Attributes:
        cotangents: m tensors `[B, ...]`, one per column.
    """

    positions: int | None = None  # places where the layer is applied to one sample, where that is static

    def __init__(self, cotangents: Sequence[tf.Tensor]) -> None:
        self.cotangents = Columns(cotangents)

    @property
    def columns(self) -> int:
        """Number of columns m."""
        return len(self.cotangents)

    @property
    def batch_size(self) -> tf.Tensor | int:
        """Samples in the batch, static where known."""
        static = self.cotangents[0].shape[0]
        return static if static is not None else tf.shape(self.cotangents[0])[0]

    @property
    def extent(self) -> Extent:
        """Static sizes."""
        raise NotImplementedError

    def mean_squares(self) -> Tensors:
        """`(1/B) sum_i q_i^2` entry by entry, from column 0, in the shapes of the variables."""
        first = [tf.squeeze(q, 1) if q.shape[1] == 1 else q[:, 0] for q in self.per_sample()]
        return [tf.reduce_mean(tf.square(q), constant(0)) for q in first]

    def mean_weights(self) -> tf.Tensor:
        """Weights of the plain mean gradient, `[B, m]`: 1/B in column 0."""
        c = self.cotangents[0]
        dtype = tf.float64 if c.dtype == tf.float64 else tf.float32
        size = tf.cast(self.batch_size, dtype)
        first = tf.fill([self.batch_size, 1], 1.0 / size)
        return tf.pad(first, [[0, 0], [0, self.columns - 1]])

    def tensors(self) -> Tensors:
        """What the capture is made of, tensors `[B, ...]`: the samples of `made_of`."""
        raise NotImplementedError

    def made_of(self, tensors: Tensors) -> "Capture":
        """The capture of the same layer on other samples.

        Args:
            tensors: in the order of `tensors`.

        Returns:
            A capture of the same type.
        """
        raise NotImplementedError

    def scaled(self, alpha: tf.Tensor) -> "Capture":
        """The same capture with one column, `along(cotangents, alpha)`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.cotangents = Columns([along(self.cotangents, alpha)])
        return other

    def with_inputs(self, inputs: tf.Tensor) -> "Capture":
        """The same cotangents with the layer's new input (claims OURS-7); `self` where that has no meaning."""
        return self

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij` for `weights` `[B, m]`, in the shapes of the player's variables."""
        raise NotImplementedError

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`, for `direction` in the shapes of the variables."""
        raise NotImplementedError

    def per_sample(self) -> Tensors:
        """`q_ij`, `[B, m, *shape]` for each variable."""
        raise NotImplementedError


class MatrixCapture(Capture):
    """A player whose variables are one matrix.

    Attributes:
        layout: how kernel and bias make that matrix.
    """

    def __init__(self, cotangents: Sequence[tf.Tensor], layout: MatrixLayout) -> None:
        super().__init__(cotangents)
        self.layout = layout

    @property
    def extent(self) -> Extent:
        """Static sizes."""
        return self.layout.extent(self.columns, self.positions)

    @property
    def bias(self) -> bool:
        """Whether a bias variable follows the kernel."""
        return self.layout.bias_shape is not None

    def augmented(self) -> tf.Tensor:
        """What each position multiplies by the matrix, `[B(, L), rows(+1)]`: inputs or patches, then the bias's one."""
        raise NotImplementedError

    def features(self) -> tf.Tensor:
        """`augmented` without the constant feature of the bias, `[B(, L), rows]`."""
        raise NotImplementedError

    def input_moment(self, form: str = "patches") -> tf.Tensor:
        """`A = (1/B) sum_i sum_l x_il x_il'` over the augmented rows, `[rows(+1), rows(+1)]`.

        Args:
            form: of a convolution's moment; other layers have one.

        Returns:
            The moment.
        """
        x = self.augmented()
        flat = _rows(x)
        return tf.matmul(flat, flat, transpose_a=True) / number(self.batch_size, x.dtype)

    def kernel_per_sample(self) -> tf.Tensor:
        """Per-sample gradients of the kernel in matrix form, `[B, m, rows, e]`."""
        raise NotImplementedError

    def bias_per_sample(self) -> tf.Tensor:
        """`sum_l c_ijl`, `[B, m, e]`."""
        axes, columns = list(range(1, len(self.cotangents[0].shape) - 1)), self.cotangents
        return once(columns, "sums", lambda: beside([tf.reduce_sum(c, constant(axes)) if axes else c for c in columns]))

    def feature_gradients(self, count: int) -> tf.Tensor:
        """Per-sample gradients of the first `count` rows, `[B, m, count, e]`, of a player with several positions."""
        return sample_products(self.features()[..., :count], self.cotangents)

    def features_over(self, count: int) -> tf.Tensor:
        """How many input features there are for each of `count`, scalar."""
        return number(self.layout.rows / count, self.cotangents[0].dtype)

    def mixed_gradients(self, mixing: tf.Tensor) -> tf.Tensor:
        """Per-sample gradients of mixtures of the input features, of a player with several positions.

        Args:
            mixing: `[rows, r]`, or `[rows + 1, r]` where the bias's feature is one of those that are mixed.

        Returns:
            `mixing' q_ij` of the gradients in matrix form, `[B, m, r, e]`.
        """
        rows = self.layout.rows
        x = times(self.features(), mixing[:rows])
        return sample_products(x + mixing[rows] if mixing.shape[0] > rows else x, self.cotangents)

    def matrix_per_sample(self) -> tf.Tensor:
        """Per-sample gradients in matrix form, `[B, m, rows(+1), e]`."""
        kernel = self.kernel_per_sample()
        return tf.concat([kernel, self.bias_per_sample()[:, :, None]], axis=2) if self.bias else kernel

    def per_sample(self) -> Tensors:
        """`q_ij`, `[B, m, *shape]` for kernel and bias."""
        kernel = self.layout.kernel_variable(self.kernel_per_sample())
        shape = self.layout.bias_shape
        if shape is None:
            return [kernel]
        bias = self.bias_per_sample()
        return [kernel, reshape(bias, [*leading(bias, 1), *shape])]

    def bias_gradient(self, weights: tf.Tensor) -> tf.Tensor:
        """`sum_ijl w_ij c_ijl` for `weights` `[B, m]`, in the shape of the bias; `[e]` without one."""
        total, shape = weighted_sum(self.bias_per_sample(), weights), self.layout.bias_shape
        return total if shape is None else reshape(total, shape)

    def cotangent_moment(self) -> tf.Tensor:
        """`B = (1/(B L)) sum_i sum_l c_il c_il'`, `[e, e]`, from column 0."""
        flat = _rows(self.cotangents[0])
        return tf.matmul(flat, flat, transpose_a=True) / number(flat.shape[0] or tf.shape(flat)[0], flat.dtype)


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """`[..., d]` as one list of rows, `[N, d]`."""
    return tensor if len(tensor.shape) == 2 else reshape(tensor, [-1, tensor.shape[-1]])


class PerSampleCapture(Capture):
    """A player whose per-sample gradients are small enough to form: everything follows from them."""

    def __init__(
        self,
        cotangents: Sequence[tf.Tensor],
        operands: Sequence[tf.Tensor],
        form: Callable[..., Tensors],
        total: Callable[..., Tensors] | None = None,
    ) -> None:
        """Stores how one column's cotangent becomes per-sample gradients.

        Args:
            cotangents: m tensors `[B, ...]`.
            operands: what else of the samples is needed, tensors `[B, ...]`.
            form: maps one cotangent and the operands to `q_i`, `[B, *shape]` for each variable.
            total: gives their sums over the samples from the same arguments, where gradients per sample may be too many
                to form; by default they are formed.
        """
        super().__init__(cotangents)
        self._operands, self._form, self._total = list(operands), form, total
        self._formed: Tensors | None = None

    @property
    def extent(self) -> Extent:
        """Static sizes."""
        return Extent(sum(math.prod(q.shape[2:]) for q in self.per_sample()), self.columns)

    def scaled(self, alpha: tf.Tensor) -> "Capture":
        """The same capture with one column, `along(cotangents, alpha)`."""
        return PerSampleCapture([along(self.cotangents, alpha)], self._operands, self._form, self._total)

    def tensors(self) -> Tensors:
        """Cotangents, then operands."""
        return [*self.cotangents, *self._operands]

    def made_of(self, tensors: Tensors) -> "PerSampleCapture":
        """The same form on other samples."""
        return PerSampleCapture(tensors[: self.columns], tensors[self.columns :], self._form, self._total)

    def per_sample(self) -> Tensors:
        """`q_ij`, `[B, m, *shape]` for each variable, formed once."""
        if self._formed is None:
            columns = [self._form(c, *self._operands) for c in self.cotangents]
            self._formed = [beside(parts) for parts in zip(*columns, strict=True)]
        return self._formed

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij` for `weights` `[B, m]`."""
        if self._total is not None:
            return self._total(weigh(self.cotangents, weights), *self._operands)
        return [weighted_sum(q, weights) for q in self.per_sample()]

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`."""
        parts = [
            tf.reduce_sum(q * tf.cast(K, q.dtype), axis=list(range(2, len(q.shape))))
            for q, K in zip(self.per_sample(), direction, strict=True)
        ]
        return tf.add_n(parts)
