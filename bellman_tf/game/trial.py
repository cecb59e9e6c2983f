"""One run of a model with random weights on random samples, and the derivatives of a random sum of its outputs.

With s random numbers in the shape of the outputs z and r one random weight per sample,

    phi_i = <s_i, z_i>,        cotangents: of sum_i phi_i,        gradients: of sum_i r_i phi_i.

`BatchNormalization` mixes samples on purpose; its moments count as constants unless said otherwise.
"""

import contextlib
import functools
import math
from collections.abc import Generator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Gradient, LayerCall, Nested, SomeTensors, StateMapping, Tensors
from bellman_tf.game.instrument import Notes, noting
from bellman_tf.game.synthetic_samples import ConstantMoments, before_activation, mixes, synthetic_weights
from bellman_tf.layers.tensors import HALF, to_work

# Layers of Keras whose random numbers leave every sample in its row.
NOISE = (keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D)
NOISE = (*NOISE, keras.layers.SpatialDropout3D, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
NOISE = (*NOISE, keras.layers.GaussianNoise, keras.layers.RNN)


class WriteRecorder(keras.StatelessScope):
    """A scope without writes that remembers which variables were to be written."""

    def __init__(self, mapping: StateMapping) -> None:
        super().__init__(state_mapping=mapping, collect_losses=True, initialize_variables=False)
        self.written: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        """Keeps a value in the scope, and remembers its variable.

        Args:
            update: (variable, value).
        """
        self.written[id(update[0])] = update[0]
        super().add_update(update)


class Trial:
    """A model, random weights in place of its own, random samples.

    Attributes:
        model: the model.
        values: the weights in place of the trainable variables, by `id` of the variable.
        mapping: the same as (variable, value), for a `keras.StatelessScope`.
        written: variables that the runs so far were to write, by `id`.
        random: where numbers are drawn from.
    """

    def __init__(self, model: keras.Model, inputs: Nested) -> None:
        """Draws the weights.

        Args:
            model: a built model.
            inputs: made-up samples in the structure that it is called with.
        """
        self.model, self._inputs = model, inputs
        self.random = np.random.default_rng(0)
        variables = {id(v): v for v in model.trainable_variables}
        self.values = {key: synthetic_weights(v, self.random) for key, v in variables.items()}
        self.mapping = [(v, self.values[key]) for key, v in variables.items()]
        self.written: dict[int, keras.Variable] = {}

    def generators(self) -> list[keras.Variable]:
        """States of the random generators that the model has used, those of noise left out."""
        noise = [layer for layer in keras_access.layers_of(self.model) if isinstance(layer, NOISE)]
        known = {id(v) for layer in noise for v in layer.non_trainable_variables}
        states = [v for v in self.written.values() if "seed_generator_state" in v.path]
        return [v for v in states if id(v) not in known]

    def run(self, preactivation: Sequence[keras.Layer], output: Sequence[keras.Layer], draw: int = 0) -> "TrialRun":
        """Runs the model once.

        Args:
            preactivation: layers noted before their activation.
            output: layers noted behind it.
            draw: changes the states of random generators.

        Returns:
            The run.
        """
        mapping = list(self.mapping)
        if draw:
            mapping += [(v, v.value + tf.cast(1000 * draw, v.dtype)) for v in self.generators()]
        run = TrialRun(self, WriteRecorder(mapping), preactivation, output)
        run.forward(self._inputs)
        self.written |= run.scope.written
        return run


class TrialRun:
    """One run.

    Attributes:
        notes: of the layers that were asked for.
        apart: how its normalisations ran.
        scope: what it was to write, and the losses that layers add.
        reason: why there are no derivatives; empty otherwise.
        weights: one random number r per sample, apart from each other and from 0.
    """

    def __init__(
        self, trial: Trial, scope: WriteRecorder, preactivation: Sequence[keras.Layer], output: Sequence[keras.Layer]
    ) -> None:
        self._trial, self.scope = trial, scope
        self._tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self.notes = Notes(preactivation, output, self._tape.watch)
        mixing = [layer for layer in keras_access.layers_of(trial.model) if mixes(layer)]
        self.apart = ConstantMoments(mixing, scope, self.notes.calls)
        self.reason = ""

    def forward(self, inputs: Nested) -> None:
        """Runs the model and draws what its outputs are weighed with.

        Args:
            inputs: of the model.
        """
        trial = self._trial
        with self._tape, self.scope, noting(self.notes), self.apart.calls(), _with_indices(trial.model):
            self._tape.watch(list(trial.values.values()))
            keywords = {"training": True} if keras_access.takes_training(trial.model) else {}
            outputs = keras.tree.flatten(trial.model(inputs, **keywords))
        self._targets = [before_activation(leaf) for leaf in outputs if leaf is not None and leaf.dtype.is_floating]
        rows = {int(leaf.shape[0]) if leaf.shape.rank else 0 for leaf in self._targets}
        if len(rows) != 1 or rows == {0}:
            self.reason = f"the model's outputs have different numbers of rows, {sorted(rows)}"
            return
        # A wide output must not hide a narrow one.
        sizes = [math.sqrt(math.prod(leaf.shape[1:])) for leaf in self._targets]
        draws = [trial.random.normal(size=t.shape) / size for t, size in zip(self._targets, sizes, strict=True)]
        self._seeds = [tf.constant(draw, leaf.dtype) for leaf, draw in zip(self._targets, draws, strict=True)]
        self.weights = trial.random.permutation(np.linspace(-1.0, 2.0, rows.pop())) + 0.25

    def weighed(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Multiplies every sample by its weight.

        Args:
            tensors: `[B, ...]`.

        Returns:
            `r_i t_i`.
        """
        r = self.weights
        return [t * tf.cast(tf.reshape(r, [-1] + [1] * (t.shape.rank - 1)), t.dtype) for t in tensors]

    def cotangents(self) -> dict[int, SomeTensors]:
        """Of `sum_i phi_i` at every noted tensor, by `id` of the layer; `None` where nothing connects."""
        sites = {key: [note.site for note in calls] for key, calls in self.notes.calls.items()}
        found = self._tape.gradient(self._targets, sites, output_gradients=self._seeds)
        return {
            key: [None if c is None else tf.convert_to_tensor(c) for c in parts]  # slices, where rows are picked
            for key, parts in found.items()
        }

    def gradients(self, sources: dict[int, tf.Tensor]) -> dict[int, Gradient | None]:
        """Gradients of `sum_i r_i phi_i`.

        Args:
            sources: weights, by `id` of the variable.

        Returns:
            The gradients; `None` where nothing connects.
        """
        return self._tape.gradient(self._targets, sources, output_gradients=self.weighed(self._seeds))

    def behind(self, sites: Tensors, cotangents: Tensors, sources: Tensors) -> list[Gradient | None]:
        """Gradients of `<c, sites>`, those of the layers in front of some tensors alone.

        Args:
            sites: noted tensors.
            cotangents: c, in their shapes.
            sources: weights.

        Returns:
            The gradients; `None` where nothing connects.
        """
        return self._tape.gradient(sites, sources, output_gradients=cotangents)

    def chained(self, sites: list[tf.Tensor]) -> bool:
        """Tells whether one of some tensors is made of another, so that `behind` would count its way twice.

        Args:
            sites: noted tensors, in the order of their calls.

        Returns:
            Whether one is.
        """
        ahead = (self._tape.gradient(sites[k + 1 :], site) for k, site in enumerate(sites[:-1]))
        return any(gradient is not None for gradient in ahead)

    def added(self) -> dict[int, tf.Tensor | None]:
        """Gradients of what layers add to the loss themselves, by `id` of the variable."""
        losses = list(self.scope.losses)
        return self._tape.gradient(losses, self._trial.values) if losses else {}


@contextlib.contextmanager
def _with_indices(model: keras.Model) -> Generator[None, None, None]:
    """Inside the context, tables look different entries up, and none that is not theirs.

    Tokens may come by an input that is declared as floating, and so be drawn as if they were measurements. Made-up
    integers are all 1, which is valid nearly everywhere; but attention to equal tokens has no gradient in what it
    compares them by. Whatever else reads the tokens, masks included, sees them as they were made up.

    Args:
        model: whose tables.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        for layer in keras_access.layers_of(model):
            if isinstance(layer, keras.layers.Embedding):
                own = functools.partial(_look_up, layer, layer.call)
                stack.enter_context(keras_access.replaced(layer, "call", own))
        yield


def _look_up(table: keras.layers.Embedding, own: LayerCall, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
    if isinstance(inputs, tf.Tensor) and not (args or kwargs.get("reverse")):  # reversed, it multiplies by its table
        index = tf.cast(inputs, tf.int32)
        known = (index >= 0) & (index < table.input_dim) & (tf.cast(index, inputs.dtype) == inputs)
        inputs = _spread(table, tf.where(known, index, min(1, table.input_dim - 1)))
    return own(inputs, *args, **kwargs)


def _spread(table: keras.layers.Embedding, indices: tf.Tensor) -> tf.Tensor:
    """Indices that are all the same as different ones, of entries that are not masked; others as they are."""
    first = int(table.mask_zero)
    if table.input_dim <= first:
        return indices
    drawn = tf.random.stateless_uniform(tf.shape(indices), [0, 0], first, table.input_dim, indices.dtype)
    return tf.where(tf.reduce_min(indices) == tf.reduce_max(indices), drawn, indices)


def distance(true: Sequence[Gradient], own: Sequence[Gradient]) -> tuple[float, float]:
    """How far gradients are from others.

    Args:
        true: gradients; the rows of a table are added up.
        own: others, in their shapes.

    Returns:
        The norm of `true` and that of the difference.
    """
    size = math.hypot(*(norm(g) for g in true))
    return size, math.hypot(*(norm(_dense(g) - _dense(h)) for g, h in zip(true, own, strict=True)))


def agree(layer: keras.Layer, true: Sequence[Gradient], own: Sequence[Gradient]) -> bool:
    """Whether gradients are the true ones, up to the rounding of a layer, and say something at all.

    Args:
        layer: where they come from.
        true: gradients.
        own: others, in their shapes.

    Returns:
        Whether they agree.
    """
    size, gap = distance(true, own)
    return math.isfinite(size + gap) and size > 0 and gap <= tolerance(layer) * size


def norm(tensor: Any) -> float:
    """The root of the sum of squares of a gradient's entries, in at least single precision.

    Args:
        tensor: dense, or rows of a table.

    Returns:
        The norm.
    """
    flat = _dense(tensor).numpy().ravel()
    return math.sqrt(float(np.dot(flat, flat)))


def tolerance(layer: keras.Layer) -> float:
    """Relative rounding of a gradient, with a margin: ten and more in single precision, two in half precision.

    A wrong association of rows is off by the gradient's own size, but a second use of a variable by as little as its
    path happens to let through, behind an activation that is saturated for instance.

    Args:
        layer: where it comes from.

    Returns:
        The largest relative difference that counts as rounding.
    """
    return 0.1 if layer.compute_dtype in HALF else 1e-4


@contextlib.contextmanager
def single_precision() -> Generator[None, None, None]:
    """Inside the context a GPU multiplies matrices in single precision, and not with the ten bits of TensorFloat-32.

    Yields:
        Nothing.
    """
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _dense(gradient: Any) -> tf.Tensor:
    """A gradient in at least single precision, the rows of a table added up."""
    return to_work(tf.convert_to_tensor(gradient))
