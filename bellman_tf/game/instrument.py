"""Notes what layers see while a model runs as it is: their inputs, and the tensors their cotangents belong to.

For the time of one call of the model an instance attribute `call` stands in front of a layer's own `call`, which
`keras.Layer.__call__` (and wrappers such as `TimeDistributed`) then run. The layer's code, its masks, casts and losses
are untouched. Notes belong to one thread; other threads that call the same layer run its own `call` unnoted.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf

from bellman_tf._typing import LayerCall, Nested

# Where TensorFlow runs loops and branches that the user writes: `tf.while_loop`, `tf.cond`, `tf.map_fn`, `tf.scan`.
CONTROL_FLOW = {f"tensorflow.python.ops.{name}" for name in ("while_loop", "cond", "map_fn", "functional_ops")}

Watcher: TypeAlias = Callable[[tf.Tensor], None]  # is shown a tensor on its way


class Note(NamedTuple):
    """One call of one layer.

    Attributes:
        inputs: the layer's first tensor argument.
        site: the tensor whose cotangent is wanted: the pre-activation, or the output.
    """

    inputs: tf.Tensor
    site: tf.Tensor


class Notes:
    """What a thread notes while its model runs.

    Attributes:
        calls: the notes of each layer, by `id`, in the order of the first call.
        hidden: ids of layers that were called inside a loop or another function graph, where no note can be taken.
    """

    def __init__(self, preactivation: Iterable[keras.Layer], output: Iterable[keras.Layer], watch: Watcher) -> None:
        """Chooses the layers to note.

        Args:
            preactivation: layers noted before their `activation`.
            output: layers noted behind it.
            watch: called with every noted tensor, usually `tape.watch`.
        """
        self._before = {id(layer): layer for layer in preactivation}
        self._behind = {id(layer): layer for layer in output}
        self._watch = watch
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self.calls: dict[int, list[Note]] = {}
        self.hidden: set[int] = set()

    @property
    def layers(self) -> list[keras.Layer]:
        """The layers that are noted."""
        return [*self._before.values(), *self._behind.values()]

    def run(self, layer: keras.Layer, call: LayerCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Nested:
        """Runs a layer's own `call` and notes it.

        Args:
            layer: the layer.
            call: its own `call`.
            args: of the call.
            kwargs: of the call.

        Returns:
            What `call` returns.
        """
        key = id(layer)
        inputs: Any = next((leaf for leaf in keras.tree.flatten((args, kwargs)) if _is_tensor(leaf)), None)
        if isinstance(inputs, tf.SparseTensor):
            inputs = tf.ensure_shape(tf.sparse.to_dense(inputs), inputs.shape)
        if key in self._before:
            with tapped(layer, functools.partial(self._note, key, inputs)):
                return call(*args, **kwargs)
        if key not in self._behind:
            return call(*args, **kwargs)
        outputs = call(*args, **kwargs)
        for leaf in keras.tree.flatten(outputs):
            if tf.is_tensor(leaf) and leaf.dtype.is_floating:
                self._note(key, inputs, leaf)
        return outputs

    def _note(self, key: int, inputs: Any, site: tf.Tensor) -> None:
        apart = _inside_control_flow() if self._graph is None else getattr(site, "graph", None) is not self._graph
        if apart:
            self.hidden.add(key)
            return
        self._watch(site)
        self.calls.setdefault(key, []).append(Note(inputs, site))


def _is_tensor(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and not isinstance(leaf, keras.KerasTensor)


def _inside_control_flow() -> bool:
    """Whether TensorFlow runs a loop or a branch right now, which a compiled step makes a graph of its own."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "") in CONTROL_FLOW:
            return True
        frame = frame.f_back
    return False


class _Running(threading.local):
    """The notes that this thread takes; `None` outside `noting`."""

    notes: Notes | None = None


_running = _Running()
_lock = threading.Lock()
_users: dict[int, int] = {}  # how many threads note a layer at the moment
_kept: dict[int, LayerCall] = {}  # an instance attribute `call` that was there before


@contextlib.contextmanager
def noting(notes: Notes) -> Generator[Notes, None, None]:
    """Inside the context, calls of the layers of `notes` by this thread are noted.

    Args:
        notes: where to note.

    Yields:
        `notes`.
    """
    outside, layers = _running.notes, notes.layers
    with _lock:
        for layer in layers:
            _install(layer)
    _running.notes = notes
    try:
        yield notes
    finally:
        _running.notes = outside
        with _lock:
            for layer in layers:
                _remove(layer)


def _install(layer: keras.Layer) -> None:
    key = id(layer)
    _users[key] = _users.get(key, 0) + 1
    if _users[key] > 1:
        return
    own = layer.call
    if "call" in vars(layer):
        _kept[key] = own

    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Nested:
        notes = _running.notes
        return own(*args, **kwargs) if notes is None else notes.run(layer, own, args, kwargs)

    object.__setattr__(layer, "call", call)  # past Keras's attribute tracking


def _remove(layer: keras.Layer) -> None:
    key = id(layer)
    _users[key] -= 1
    if _users[key]:
        return
    del _users[key]
    if key in _kept:
        object.__setattr__(layer, "call", _kept.pop(key))
    else:
        object.__delattr__(layer, "call")


@contextlib.contextmanager
def tapped(layer: keras.Layer, tap: Watcher) -> Generator[None, None, None]:
    """Inside the context, `layer` hands its pre-activation to `tap` before the activation.

    Swapping the public attribute keeps the layer's own code: activity regularizers, masks and casts are untouched.
    Other threads that call the layer meanwhile pass straight through.

    Args:
        layer: a layer with an `activation` attribute.
        tap: called with the pre-activation.

    Yields:
        Nothing.
    """
    outside = dict(_taps.of)
    with _lock:
        _open_tap(layer)
    _taps.of[id(layer)] = tap
    try:
        yield
    finally:
        _taps.of = outside
        with _lock:
            _close_tap(layer)


class _Taps(threading.local):
    """What this thread hands pre-activations to, by `id` of the layer."""

    def __init__(self) -> None:
        self.of: dict[int, Watcher] = {}


_taps = _Taps()
_tapping: dict[int, int] = {}  # how many threads tap a layer at the moment
_activations: dict[int, Callable[[tf.Tensor], tf.Tensor] | None] = {}


def _open_tap(layer: keras.Layer) -> None:
    key = id(layer)
    _tapping[key] = _tapping.get(key, 0) + 1
    if _tapping[key] > 1:
        return
    activation = _activations[key] = layer.activation

    def through(h: tf.Tensor) -> tf.Tensor:
        tap = _taps.of.get(key)
        if tap is not None:
            tap(h)
        return h if activation is None else activation(h)

    object.__setattr__(layer, "activation", through)  # past Keras's attribute tracking


def _close_tap(layer: keras.Layer) -> None:
    key = id(layer)
    _tapping[key] -= 1
    if not _tapping[key]:
        del _tapping[key]
        object.__setattr__(layer, "activation", _activations.pop(key))
