"""The calls of a Keras model, in execution order, with nested models inlined.

A Keras model built from symbolic tensors remembers how each tensor was made (`keras_access.node_of`). Walking that
record back from the outputs gives a flat program: a list of `Call`s over numbered `Slot`s. A subclassed model is
called once on symbolic tensors first, which records the same history.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access, keras_graphs
from bellman_tf._typing import Arguments, LayerCall, Nested, Shape
from bellman_tf.game.own_thread import run_in_own_thread
from bellman_tf.game.raw_variables import put_back, raw_variables


class UntraceableModelError(ValueError):
    """The model's `call` cannot be run on symbolic tensors, so its layers cannot be seen."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Number of a tensor in the flat program."""

    index: int


@dataclasses.dataclass(frozen=True)
class Call:
    """One operation applied once.

    Attributes:
        operation: the Keras layer or operation.
        args: positional arguments, tensors replaced by `Slot`s.
        kwargs: keyword arguments, tensors replaced by `Slot`s.
        outputs: slots of the flattened outputs.
        shapes: static shapes of the outputs.
    """

    operation: keras.Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Slot, ...]
    shapes: tuple[Shape, ...]

    @property
    def inputs(self) -> tuple[Slot, ...]:
        """Slots read by this call, in argument order."""
        return tuple(leaf for leaf in keras.tree.flatten((self.args, self.kwargs)) if isinstance(leaf, Slot))


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model as a flat program.

    Attributes:
        inputs: slots of the flattened model inputs.
        outputs: the model's output structure, tensors replaced by `Slot`s.
        calls: every call, each after the calls it reads from.
        trainings: (operation, value) of every call that was given an argument `training`, inlined models included.
        constants: variables whose values the model's own `call` has read, so that they stand in the trace as they were.
    """

    inputs: tuple[Slot, ...]
    outputs: Nested
    calls: tuple[Call, ...]
    trainings: tuple[tuple[keras.Operation, Any], ...] = ()
    constants: tuple[keras.Variable, ...] = ()


class Replay:
    """Values of the slots while a flat program runs.

    Attributes:
        values: tensor of every slot so far.
    """

    def __init__(self, graph: Graph, inputs: list[tf.Tensor]) -> None:
        """Puts the inputs in place.

        Args:
            graph: the program.
            inputs: the model's inputs, flat.
        """
        self.graph = graph
        self.values: dict[Slot, tf.Tensor] = dict(zip(graph.inputs, inputs, strict=True))

    def arguments(self, call: Call) -> Arguments:
        """The call's arguments with slots replaced; a recorded `training` gives way to the step's.

        Args:
            call: of the program, its inputs computed.

        Returns:
            (args, kwargs).
        """
        args, kwargs = keras_access.mapped(
            lambda leaf: self.values[leaf] if isinstance(leaf, Slot) else leaf, (call.args, call.kwargs)
        )
        if "training" in kwargs:
            kwargs["training"] = True
        return args, kwargs

    def run(self, call: Call) -> list[tf.Tensor]:
        """Runs a call and stores its outputs.

        Args:
            call: of the program, its inputs computed.

        Returns:
            The outputs, flat.
        """
        args, kwargs = self.arguments(call)
        return self.store(call, call.operation(*args, **kwargs))

    def store(self, call: Call, outputs: Nested) -> list[tf.Tensor]:
        """Stores the outputs of a call.

        Args:
            call: of the program.
            outputs: its outputs, in their structure.

        Returns:
            The outputs, flat.
        """
        flat = keras.tree.flatten(outputs)
        self.values.update(zip(call.outputs, flat, strict=True))
        return flat

    def result(self) -> Nested:
        """The model's output structure, once every call has run."""
        return keras.tree.map_structure(lambda slot: self.values[slot], self.graph.outputs)


def _is_inlinable(operation: keras.Operation) -> bool:
    """Whether a nested model runs its recorded graph and nothing else."""
    if not isinstance(operation, keras.Function | keras.Sequential) or not isinstance(operation, keras.Model):
        return False
    return _plain_call(type(operation).call)


def _plain_call(call: LayerCall) -> bool:
    module = call.__module__
    return module.startswith(("keras.src.", "bellman_tf."))


class _Tracer:
    """Walks the record of calls, giving each symbolic tensor a slot."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.trainings: list[tuple[keras.Operation, Any]] = []
        self.count = 0

    def new_slot(self) -> Slot:
        self.count += 1
        return Slot(self.count - 1)

    def run(self, inputs: list[keras.KerasTensor], outputs: Nested, slots: list[Slot]) -> Nested:
        """Records the calls between symbolic `inputs` and `outputs`; returns `outputs` as slots."""
        known = {id(tensor): slot for tensor, slot in zip(inputs, slots, strict=True)}
        for node in self._sorted_nodes(outputs, set(known)):
            args, kwargs = keras_access.mapped(
                lambda leaf: known[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf,
                (node.arguments.args, node.arguments.kwargs),
            )
            made = self._apply(node, args, kwargs)
            known.update({id(tensor): slot for tensor, slot in zip(node.outputs, made, strict=True)})
        return keras.tree.map_structure(lambda leaf: known[id(leaf)], outputs)

    def _apply(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Slot]:
        operation = node.operation
        if kwargs.get("training") is not None:
            self.trainings.append((operation, kwargs["training"]))
        if _is_inlinable(operation) and operation.built:
            inner = [leaf for leaf in keras.tree.flatten(args) if isinstance(leaf, Slot)]
            if len(inner) == len(operation.inputs):
                return keras.tree.flatten(self.run(operation.inputs, operation.outputs, inner))
        made = [self.new_slot() for _ in node.outputs]
        shapes = tuple(tuple(tensor.shape) for tensor in node.outputs)
        self.calls.append(Call(operation, args, kwargs, tuple(made), shapes))
        return made

    @staticmethod
    def _sorted_nodes(outputs: Nested, stop: set[int]) -> list[Any]:
        """Nodes that lead to `outputs`, each after the nodes it reads from (depth first, no recursion)."""
        order, done = [], set()
        stack = [(tensor, False) for tensor in reversed(keras.tree.flatten(outputs))]
        while stack:
            item, ready = stack.pop()
            if ready:
                order.append(item)
                continue
            if id(item) in stop:
                continue
            node = keras_access.node_of(item)
            if id(node) in done:
                continue
            done.add(id(node))
            stack.append((node, True))
            stack.extend((tensor, False) for tensor in reversed(node.input_tensors))
        return order


class _Reads(keras.StatelessScope):
    """A scope that remembers what is read in it; writes and losses are discarded. Symbolic layers have their own."""

    def __init__(self) -> None:
        super().__init__(collect_losses=True)
        self.read: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """The value written to a variable in this scope; `None` if there is none.

        Args:
            variable: of Keras.

        Returns:
            The value.
        """
        self.read[id(variable)] = variable
        return super().get_current_value(variable)


def _symbolic_subclass(model: keras.Model) -> tuple[list[keras.KerasTensor], Nested, tuple[keras.Variable, ...]]:
    """Calls a subclassed model once on symbolic inputs of the shapes it was built with; also the variables it read."""
    shapes = getattr(model, "_game_input_signature", None)
    if shapes is None:
        raise UntraceableModelError(
            "`model` must have been called on data before its layers can be listed. "
            f"Received: model={model.name!r}, not built. Call it once on a batch, or build it."
        )
    leaves = [None if leaf is None else keras_access.input_like(leaf) for leaf in keras.tree.flatten(shapes)]
    inputs = [leaf for leaf in leaves if leaf is not None]
    packed = keras.tree.pack_sequence_as(shapes, leaves)
    keywords = {"training": True} if keras_access.takes_training(model) else {}

    def call() -> tuple[Nested, dict[int, keras.Variable]]:
        with put_back(raw_variables(model)), _Reads() as scope:
            return type(model).call(model, packed, **keywords), scope.read

    try:
        # A thread of its own runs eagerly, whatever the caller traces: what `call` computes alone becomes a value.
        outputs, read = run_in_own_thread(call)
        return inputs, outputs, tuple(read.values())
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        # What Keras and TensorFlow raise when a KerasTensor meets raw tf.* code or Python control flow on values.
        raise UntraceableModelError(
            f"`model` must run on symbolic tensors. Received: model={model.name!r}, "
            f"whose `call` cannot run on symbolic tensors: {error}"
        ) from error


def trace(model: keras.Model) -> Graph:
    """Lists the calls of a model.

    Args:
        model: functional, Sequential, or a subclassed model that has seen a batch.

    Returns:
        The flat program, nested functional and Sequential models inlined.

    Raises:
        UntraceableModelError: if a subclassed model's `call` needs values (raw `tf.*` code, Python control flow on
            tensors), or its input shapes are not known yet.
    """
    if _is_inlinable(model):
        inputs, outputs = list(model.inputs), model.output if isinstance(model, keras.Function) else model.outputs[0]
        constants: tuple[keras.Variable, ...] = ()
    else:
        inputs, outputs, constants = _symbolic_subclass(model)
    tracer = _Tracer()
    slots = [tracer.new_slot() for _ in inputs]
    structure = tracer.run(inputs, outputs, slots)
    return Graph(tuple(slots), structure, tuple(tracer.calls), tuple(tracer.trainings), constants)


def changed(graph: Graph, model: keras.Model) -> str:
    """Compares a trace with the model's `call` as it is now.

    Args:
        graph: the trace.
        model: the model that it was made of.

    Returns:
        What is different; empty if nothing is, as for a functional or Sequential model, whose record does not change.
    """
    if _is_inlinable(model):
        return ""
    try:
        with keras_graphs.nodes_forgotten(model):
            now = trace(model)
    except UntraceableModelError as error:
        return str(error)
    if len(now.calls) != len(graph.calls):
        return f"it makes {len(now.calls)} calls and made {len(graph.calls)}"
    for old, new in zip(graph.calls, now.calls, strict=True):
        if old.operation is not new.operation and _settings(old.operation) != _settings(new.operation):
            return f"it calls '{new.operation.name}' where it called '{old.operation.name}'"
        before, after = (keras.tree.flatten((call.args, call.kwargs)) for call in (old, new))
        if len(before) != len(after) or not all(map(_same, before, after)):
            return f"the arguments of '{new.operation.name}' are no longer {_shown(before)} but {_shown(after)}"
    if keras.tree.flatten(now.outputs) != keras.tree.flatten(graph.outputs):
        return "it returns other tensors"
    return ""


_PLAIN = (bool, int, float, str, tuple, type(None))


def _settings(operation: keras.Operation) -> Any:
    """What tells operations of `keras.ops` apart; a layer is only itself."""
    if isinstance(operation, keras.Layer):
        return operation
    public = {k: v for k, v in vars(operation).items() if isinstance(v, _PLAIN) and k != "name" and k[0] != "_"}
    return type(operation), tuple(public.items())


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, keras.Variable) or isinstance(second, keras.Variable):
        return False
    if hasattr(first, "shape") or hasattr(second, "shape"):
        return np.array_equal(first, second)
    return type(first) is type(second) and (first == second or not isinstance(first, (*_PLAIN, Slot)))


def _shown(leaves: list[Any]) -> str:
    return ", ".join(repr(leaf) for leaf in leaves if isinstance(leaf, _PLAIN)) or "those"
