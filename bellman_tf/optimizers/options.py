"""The game's options in one place, checked once."""

import dataclasses

from bellman_tf import _checks
from bellman_tf.curvature.gram import FORMS
from bellman_tf.training.policy import INFORMATION

VALUE_HESSIANS = ("batch", "block_diagonal", "outer_product")
TERMINAL_HESSIANS = ("matched", "outer_product", "full")


@dataclasses.dataclass(frozen=True)
class GameOptions:
    """What the recursion may know and keep.

    Attributes:
        information: information structure, one of `INFORMATION`.
        value_hessian: which samples the value Hessian couples, one of `VALUE_HESSIANS`.
        terminal_hessian: one of `TERMINAL_HESSIANS`, or the rank of its truncation.
        group_size: samples coupled together; `None` is the whole batch.
        bilinear: whether the weighted gradient uses the layer's new input (claims OURS-7).
        gram: form of the Gram matrices, one of `FORMS`.
    """

    information: str
    value_hessian: str
    terminal_hessian: str | int
    group_size: int | None
    bilinear: bool
    gram: str

    def __post_init__(self) -> None:
        """Checks every option and their combinations.

        Raises:
            ValueError: for a value outside its range, or options that exclude each other.
        """
        _checks.check_choice("information", self.information, INFORMATION)
        _checks.check_choice("value_hessian", self.value_hessian, VALUE_HESSIANS)
        if isinstance(self.terminal_hessian, int) and not isinstance(self.terminal_hessian, bool):
            _checks.check_integer("terminal_hessian", self.terminal_hessian, least=1)
        elif self.terminal_hessian not in TERMINAL_HESSIANS:
            names = ", ".join(map(repr, TERMINAL_HESSIANS))
            raise _checks.error("terminal_hessian", f"be one of {names} or a rank >= 1", self.terminal_hessian)
        if self.group_size is not None:
            _checks.check_integer("group_size", self.group_size, least=1)
        _checks.check_flag("bilinear", self.bilinear)
        _checks.check_choice("gram", self.gram, FORMS)
        if self.group_size is not None and self.value_hessian != "batch":
            raise _checks.error(
                "group_size", f"be None with value_hessian={self.value_hessian!r}", self.group_size,
                "Groups belong to value_hessian='batch'.",
            )  # fmt: skip
        if self.value_hessian == "outer_product" and self.columns != 0:
            raise _checks.error(
                "terminal_hessian", "be 'matched' or 'outer_product' with value_hessian='outer_product'",
                self.terminal_hessian, "A terminal Hessian of higher rank needs value_hessian='batch'.",
            )  # fmt: skip

    @property
    def columns(self) -> int | None:
        """Columns of the terminal factor besides the gradient: 0 if collinear, `None` if as many as there are."""
        if self.terminal_hessian in {"matched", "outer_product"}:
            return 0
        return None if self.terminal_hessian == "full" else self.terminal_hessian
