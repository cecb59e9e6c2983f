"""What the four papers print, as options: which of them an `as_published` follows, and what that makes of them."""

import dataclasses
from typing import Any

from bellman_tf import _checks
from bellman_tf.curvature import config as curvature_config
from bellman_tf.losses import TerminalHessian
from bellman_tf.optimizers.keywords import Paper
from bellman_tf.training.information import INFORMATION, InformationName

# Per paper: its information structure, its terminal Hessian, and the sign of the cross terms between two players.
PAPERS: dict[Paper, tuple[InformationName, TerminalHessian, curvature_config.Sign]] = {
    "ddp": ("feedback", "full", 1),
    "ddpnopt": ("feedback", "outer_product", 1),
    "gtddp": ("cooperative", "outer_product", 1),
    "dgnopt": ("cooperative", "outer_product", -1),
}


def published_options(paper: Paper | None, options: dict[str, Any]) -> dict[str, Any]:
    """Completes the options of an `as_published`.

    Args:
        paper: name of the paper, `None` for a baseline.
        options: what the user passed.

    Returns:
        The constructor's options.

    Raises:
        ValueError: for a paper that is not one of `PAPERS`, or options that are none.
    """
    if paper is not None:
        _checks.check_choice("paper", paper, PAPERS)
    information, terminal, _ = ("open", None, 1) if paper is None else PAPERS[paper]
    information = options.get("information", information)
    made: dict[str, Any] = {"information": information, "gram": "exact"}
    if _has_value(information):
        terminal = options.get("terminal_hessian", terminal or "outer_product")
        _checks.check_real("value_damping", options.get("value_damping", 0.0), least=0)
        named = isinstance(terminal, str) and terminal in {"outer_product", "matched"}
        outer = named and not options.get("value_damping")
        made |= {"terminal_hessian": terminal, "value_hessian": "outer_product" if outer else "per_sample"}
    return made | options


def _has_value(information: InformationName) -> bool:
    _checks.check_choice("information", information, INFORMATION)
    return INFORMATION[information].curved


def published_curvature(
    paper: Paper | None, curvature: curvature_config.Config, information: InformationName
) -> curvature_config.Config:
    """A curvature that was named, as the papers have it.

    Args:
        paper: name of the paper, `None` for a baseline.
        curvature: with the defaults of its name.
        information: information structure.

    Returns:
        The curvature: K-FAC and EKFAC with whole patches of convolutions and, where players share a value, the papers'
        cross blocks.
    """
    if not isinstance(curvature, curvature_config.KFAC):
        return curvature
    joint = INFORMATION[information].joint
    return dataclasses.replace(
        curvature,
        convolution="patches",
        cooperative="published" if joint else False,
        cooperative_sign=PAPERS[paper][2] if joint and paper is not None else 1,
    )
