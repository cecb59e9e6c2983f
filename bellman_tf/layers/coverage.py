"""How one layer is covered: where its cotangent is taken, how it is captured, and of which variables."""

import dataclasses
import math
from collections.abc import Callable

import keras

from bellman_tf.layers.capture import Extent, MatrixLayout

PREACTIVATION, OUTPUT = "preactivation", "output"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How one layer is covered.

    Attributes:
        kind: name of the layer family.
        site: where the cotangent is taken: "preactivation" (before `layer.activation`) or "output".
        capture: function of (layer, inputs, cotangents).
        variables: the layer's variables that the capture speaks of, in order.
        matrix: the matrix layout, where there is one.
        convolution: whether the layer is a convolution.
        taps: kernel taps of a convolution, else 1.
        table: whether the layer is a table of rows picked by token.
    """

    kind: str
    site: str
    capture: Callable
    variables: tuple = dataclasses.field(compare=False)
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1
    table: bool = False

    def extent(self, output_shape: tuple, columns: int = 1) -> Extent:
        """Static sizes of the player, those that its captures will have.

        Args:
            output_shape: of the layer, batch axis first; `None` for sizes that are not static.
            columns: cotangents per sample.

        Returns:
            The sizes.
        """
        parameters = sum(math.prod(v.shape) for v in self.variables)
        width = self.matrix.width if self.matrix is not None else output_shape[-1]
        positions = None if None in output_shape[1:] else math.prod(output_shape[1:]) // width
        if self.matrix is not None:
            return self.matrix.extent(columns, positions, self.taps if self.convolution else 0)
        if self.table:
            return Extent(parameters, columns, positions, width=width, vocabulary=self.variables[0].shape[0])
        return Extent(parameters, columns)


def expected(layer: keras.Layer, names: tuple[str, ...]) -> tuple | None:
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
