"""Runs a model beside what the caller is doing: in a thread of its own, eager, recording on no outer tape."""

import concurrent.futures
import threading
from collections.abc import Callable


class _Place(threading.local):
    """Whether this thread runs a model only to look at it."""

    aside = False


_place = _Place()


def run_aside(function: Callable, *arguments: object) -> object:
    """Runs a function in a thread of its own.

    Args:
        function: what to run.
        *arguments: of the function.

    Returns:
        What it returns; what it raises is raised here.
    """

    def run() -> object:
        _place.aside = True
        return function(*arguments)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def is_aside() -> bool:
    """Whether this thread was started by `run_aside`, so that the samples it sees are made up."""
    return _place.aside
