"""Information structures: which Gram matrices and deviations enter a player's weights. Source: DGN Table 1."""

import dataclasses
from typing import Literal, TypeAlias

InformationName: TypeAlias = Literal["open", "feedback", "cooperative_open", "cooperative"]


@dataclasses.dataclass(frozen=True)
class Information:
    """What enters the sample weights of a player.

    Attributes:
        curved: whether the value's curvature is used at all; without it every step is the baseline's.
        joint: whether the players of a stage share one value.
        feedback: whether the state's deviation enters the weights.
    """

    curved: bool
    joint: bool
    feedback: bool


INFORMATION = {
    "open": Information(curved=False, joint=False, feedback=False),
    "feedback": Information(curved=True, joint=False, feedback=True),
    "cooperative_open": Information(curved=True, joint=True, feedback=False),
    "cooperative": Information(curved=True, joint=True, feedback=True),
}
