"""A page whose tables are made of the store: each stands between the line of its command and an end.

<!-- papers ddp-table-3 --parts WINE IRIS -->
(the table)
<!-- end -->
"""

import re
import shlex
from collections.abc import Callable, Sequence

PLACE = re.compile(r"(<!-- papers (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def places(text: str) -> list[list[str]]:
    """What makes each table of a page.

    Args:
        text: of the page.

    Returns:
        Arguments of `python -m keras_examples.papers`, one list per table, in order.
    """
    return [shlex.split(found[2]) for found in PLACE.finditer(text)]


def refreshed(text: str, table: Callable[[Sequence[str]], str]) -> str:
    """A page with its tables made again.

    Args:
        text: of the page.
        table: gives a table from the arguments of its place.

    Returns:
        The page; what stands outside the places is as it was.
    """
    return PLACE.sub(lambda found: f"{found[1]}\n{table(shlex.split(found[2]))}\n\n{found[3]}", text)
