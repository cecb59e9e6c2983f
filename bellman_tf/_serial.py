"""What a frozen dataclass of options needs to be written into a saved model and read back."""

import dataclasses
from typing import Any, Self

from bellman_tf._typing import Serialised


@dataclasses.dataclass(frozen=True)
class Serialisable:
    """Base of options that Keras saves by their fields."""

    def get_config(self) -> dict[str, Any]:
        """The fields, for Keras serialisation."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Serialised) -> Self:
        """Rebuilds the object from its fields."""
        return cls(**config)
