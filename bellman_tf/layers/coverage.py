"""How one layer is covered: where its cotangent is taken, how it is captured, and of which variables.

Every family of layers has a file with two functions, which `registry.py` finds by the Keras class:

    capture_...(layer, inputs, cotangents) -> Capture
        layer        a built layer
        inputs       its first argument, [B, ...], in the layer's data format
        cotangents   m tensors [B, ...] in the shape of the pre-activation or of the output (`Coverage.site`)
        bias         whether the bias, where there is one, belongs to the capture; only in families that may have one

    cover_...(layer, bias) -> Coverage, or the reason why the layer is played open-loop
        layer        a built layer of the family
        bias         whether the bias (the shift of a normalisation) belongs to the player

A capture's tensors stand in the order of the layer's trainable variables.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Shape
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.matrix_layout import Extent, MatrixLayout

PREACTIVATION, OUTPUT = "preactivation", "output"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How one layer is covered.

    Attributes:
        kind: name of the layer family.
        site: where the cotangent is taken: "preactivation" (before `layer.activation`) or "output".
        capture: `capture_...` of the family, its `bias` chosen.
        variables: the layer's variables that the capture has gradients of, in order.
        matrix: the matrix layout, where there is one.
        convolution: whether the layer is a convolution.
        taps: kernel taps of a convolution, else 1.
        table: whether the layer is a table of rows picked by token.
    """

    kind: str
    site: str
    capture: Callable[[keras.Layer, tf.Tensor, Sequence[tf.Tensor]], Capture]
    variables: tuple[keras.Variable, ...] = dataclasses.field(compare=False)
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1
    table: bool = False

    def extent(self, output_shape: Shape, columns: int = 1) -> Extent:
        """Static sizes of the player, those that its captures will have.

        Args:
            output_shape: of the layer, batch axis first; `None` for sizes that are not static.
            columns: cotangents per sample.

        Returns:
            The sizes.
        """
        parameters = sum(math.prod(v.shape) for v in self.variables)
        sizes = [size for size in output_shape[1:] if size is not None]
        numbers = math.prod(sizes) if len(sizes) == len(output_shape) - 1 else None
        if self.matrix is not None:
            positions = None if numbers is None else numbers // self.matrix.width
            return self.matrix.extent(columns, positions, self.taps if self.convolution else 0)
        if self.table:
            vocabulary, width = self.variables[0].shape
            positions = None if numbers is None else numbers // width
            return Extent(parameters, columns, positions, width=width, vocabulary=vocabulary)
        return Extent(parameters, columns)


def expected(layer: keras.Layer, names: tuple[str, ...]) -> tuple[keras.Variable, ...] | None:
    """The named variables of a layer, if they are all that it trains.

    Args:
        layer: a built layer.
        names: of attributes, in the order of the layer's variables; those that are `None` are passed over.

    Returns:
        The variables, or `None` if the layer trains others, or not all of these.
    """
    present = [v for v in (getattr(layer, name, None) for name in names) if v is not None]
    same = [id(v) for v in present] == [id(v) for v in layer.trainable_variables]
    return tuple(present) if same else None


def cover_kernels(
    kind: str,
    layer: keras.Layer,
    bias: bool,
    capture: Callable[..., Capture],
    *,
    kernels: tuple[str, ...] = ("kernel",),
    layout: Callable[[keras.Layer, bool], MatrixLayout | None] | None = None,
    convolution: bool = False,
) -> Coverage | str:
    """Coverage of a layer that trains kernels and perhaps a bias, at its pre-activation.

    Args:
        kind: name of the layer family.
        layer: a built layer.
        bias: whether the bias, where there is one, belongs to the capture.
        capture: function of (layer, inputs, cotangents, bias).
        kernels: names of the kernels, in the order of the layer's variables.
        layout: the matrix layout as a function of (layer, bias); `None` for a family without a matrix form.
        convolution: whether the layer is a convolution with a matrix form.

    Returns:
        The coverage, or the reason why the layer is played open-loop.
    """
    variables = expected(layer, (*kernels, "bias"))
    if variables is None:
        return f"its trainable variables are not just {'kernel' if len(kernels) == 1 else 'its kernels'} and bias"
    bias = bias and layer.bias is not None
    return Coverage(
        kind,
        PREACTIVATION,
        functools.partial(capture, bias=bias),
        variables[: len(kernels) + bias],
        layout(layer, bias) if layout is not None else None,
        convolution,
        math.prod(layer.kernel_size) if convolution else 1,
    )


def built_shape(layer: keras.Layer) -> Shape:
    """Shape of the input that a layer was built for.

    Args:
        layer: a built layer of one input.

    Returns:
        The shape, batch axis first.

    Raises:
        ValueError: if Keras kept none.
    """
    config = layer.get_build_config()
    if config is None:
        raise _checks.error("layer", "be built for one input", layer.name, "Call the model on a batch first.")
    return config["input_shape"]


def bias_shape(layer: keras.Layer, bias: bool) -> tuple[int, ...] | None:
    """Shape of a layer's bias, for `MatrixLayout`.

    Args:
        layer: a built layer.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The shape, or `None` without a bias.
    """
    return tuple(layer.bias.shape) if bias and layer.bias is not None else None
