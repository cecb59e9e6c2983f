"""Runs a model beside what the caller is doing: in a thread of its own, eager, recording on no outer tape."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar


class _Place(threading.local):
    """Whether this thread runs a model only to look at it."""

    aside = False


_place = _Place()


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def run_in_own_thread(
    function: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
) -> Result:
    """Runs a function in a thread of its own.

    Args:
        function: what to run.
        *arguments: of the function.
        **named: of the function.

    Returns:
        What it returns; what it raises is raised here.
    """

    def run() -> Result:
        _place.aside = True
        return function(*arguments, **named)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def in_own_thread() -> bool:
    """Whether this thread was started by `run_in_own_thread`, so that the samples it sees are made up."""
    return _place.aside
