"""Optimizers and networks by name and options, so that a run can be compared, written down and sent to a process."""

import dataclasses
import functools

import keras

import bellman_tf as btf
from keras_examples.papers import networks
from keras_examples.studies import _networks

ROOTS = {"btf": btf, "keras": keras, "studies": _networks, "papers": networks}


@dataclasses.dataclass(frozen=True)
class Call:
    """A function or class by its dotted name, with options.

    Attributes:
        name: below one of `ROOTS`, as in "btf.GTDDP.as_published".
        options: names and values; a value may be a call itself.
    """

    name: str
    options: tuple[tuple[str, object], ...] = ()

    def make(self, *first: object) -> object:
        """What the call returns.

        Args:
            *first: positional arguments before the options.

        Returns:
            The object.
        """
        root, *path = self.name.split(".")
        target = functools.reduce(getattr, path, ROOTS[root])
        made = {key: value.make() if isinstance(value, Call) else value for key, value in self.options}
        return target(*first, **made)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={_text(value)}' for key, value in self.options)})"


def call(name: str, **options: object) -> Call:
    """A call with its options as keywords.

    Args:
        name: as in `Call`.
        **options: of the function.

    Returns:
        The call.
    """
    return Call(name, tuple(options.items()))


def _text(value: object) -> str:
    return str(value) if isinstance(value, Call) else repr(value)
