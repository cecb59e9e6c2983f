"""How an optimizer is saved and copied: its state by position, random generators, and what stands inside it."""

import warnings
import weakref
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.optimizers.inner import InnerOptimizerMixin

_SEED = "seed_"  # keys of the random generators' states in the saved file
_LAYOUT = "layout"  # key of what tells states of different metrics apart
_NEW = "For another model, make a new optimizer of the same options: `type(o).from_config(o.get_config())`."
_OTHER = (
    "The saved optimizer had other options or another model. `load_weights(path, skip_mismatch=True)` loads the layers "
    "alone."
)


class SavingMixin(InnerOptimizerMixin):
    """Saving, loading and copying: state of the optimizer and of its model's random generators.

    A file with another number of variables, as in Keras, or with those of another metric is of another optimizer:
    loading warns and leaves the optimizer as it is, so that `load_weights` still loads the layers. A copy (`copy`,
    `pickle`) takes options and state along, not the model; it is compiled into another one, and what belongs to the
    players waits until then.
    """

    # state of a copy, ours and that of an optimizer inside, until `build` makes the variables for it
    _waiting: tuple[tuple[np.ndarray, ...], ...] | None = None
    _model: weakref.ref | None  # the model that the optimizer is bound to
    rejected_batches: keras.Variable
    clamped_values: keras.Variable

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """State of the optimizer and of the model's random generators, so that training resumes exactly.

        Args:
            store: where to save.
        """
        for k, variable in enumerate(self.own_variables):  # Keras saves an optimizer inside this one by itself
            store[str(k)] = variable.numpy()
        store[_LAYOUT] = np.array(self._layout(), "uint32")
        for k, variable in enumerate(self._generators()):
            store[f"{_SEED}{k}"] = variable.numpy()

    def _layout(self) -> int:
        """A checksum of what the state is of each player: other metrics have other ones, other sizes have not."""
        return zlib.crc32(" ".join(self._store.names).encode())

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Loads the saved state; warns and loads nothing if it is that of another optimizer.

        Args:
            store: the saved arrays, by position.

        Raises:
            ValueError: if the variables are those of this optimizer's metric, and a shape does not fit.
        """
        keys = set(store.keys())
        seeds = {key for key in keys if key.startswith(_SEED)}
        own = {key: store[key] for key in keys - seeds - {_LAYOUT}}
        alike = _LAYOUT not in keys or int(np.array(store[_LAYOUT])) == self._layout()  # older files have none
        numbered = set(own) == {str(k) for k in range(len(self.own_variables))}
        if not numbered or not alike or not self._counters_in(own):
            self._warn_skipped(own)
            return
        self._assign(self.own_variables, [own[str(k)] for k in range(len(own))], _OTHER)
        generators = self._generators()
        if len(generators) != len(seeds):
            warnings.warn(
                f"Skipping {len(seeds)} saved random generators for '{self.name}': the model has {len(generators)}. "
                "Dropout draws other masks than in an uninterrupted run.",
                stacklevel=2,
            )
            return
        for k, variable in enumerate(generators):
            variable.assign(store[f"{_SEED}{k}"])

    def _generators(self) -> list[keras.Variable]:
        model = None if self._model is None else self._model()
        return [] if model is None else model.seed_variables()

    def _counters_in(self, own: dict[str, Any]) -> bool:
        """Whether our integer counters stand at their places, which no optimizer of Keras has there."""
        counters = {id(self.rejected_batches), id(self.clamped_values)}
        places = [str(k) for k, variable in enumerate(self.own_variables) if id(variable) in counters]
        return all(tuple(own[k].shape) == () and np.issubdtype(own[k].dtype, np.integer) for k in places)

    def _warn_skipped(self, own: dict[str, Any]) -> None:
        reason = "it was saved by an optimizer of another kind"
        if len(own) != len(self.own_variables):
            reason = f"it has {len(self.own_variables)} variables whereas the saved optimizer has {len(own)} variables"
        if not self.built:
            reason += (
                "; this one makes its state at the first training step or when a `.keras` file is loaded. To go on "
                "where the saved one stood, call `model.optimizer.build(model.trainable_variables)` before loading"
            )
        warnings.warn(f"Skipping variable loading for optimizer '{self.name}', because {reason}.", stacklevel=3)

    def _assign(self, variables: list[keras.Variable], values: Sequence[Any], hint: str) -> None:
        for variable, value in zip(variables, values, strict=True):
            if tuple(value.shape) != tuple(variable.shape):
                name = variable.path if isinstance(variable, keras.Variable) else variable.name
                rule = f"hold shape {tuple(variable.shape)} for {name}"
                raise _checks.error("store", rule, tuple(value.shape), hint)
        with tf.init_scope():  # a model without Input is built, and its optimizer with it, while its step is traced
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies by options and state; the model stays behind, and so do the states of its random generators."""
        parts = self.own_variables, self.inner_state
        state = tuple(tuple(v.numpy() for v in part) for part in parts) if self._waiting is None else self._waiting
        return _copied, (type(self), self.get_config(), state)

    def restore(self) -> None:
        """Gives a copied optimizer the state it was copied with, as soon as there are variables for it.

        Raises:
            ValueError: if the state does not fit the model.
        """
        if self._waiting is None:
            return
        own, inner = self._waiting
        if not self.built:
            first = len(self.own_variables)  # iteration, rate, counters; the rest is made by `build`
            for variable, value in zip(self.own_variables, own[:first], strict=True):
                variable.assign(value)
            place = self.inner_state
            if len(own) == first and len(inner) == len(place):  # all there is, with or without a build
                self._assign(place, inner, _NEW)
                self._waiting = None
            return
        places = [*self.own_variables, *self.inner_state]
        if len(own) != len(self.own_variables) or len(own) + len(inner) != len(places):
            rule = f"give {self.name} the {len(own) + len(inner)} variables that it was copied with"
            raise _checks.error("model", rule, len(places), _NEW)
        self._assign(places, [*own, *inner], _NEW)
        self._waiting = None


def _copied(cls: type[SavingMixin], config: dict[str, Any], state: tuple[Any, ...]) -> SavingMixin:
    """An optimizer with the options and state of another one."""
    optimizer = cls.from_config(config)
    optimizer._waiting = state
    optimizer.restore()
    return optimizer
