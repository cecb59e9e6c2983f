"""What runs cells: this process, or Ray's workers. Both take the same cells and give the same outcomes."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

from bellman_tf import _checks
from keras_examples.papers import train
from keras_examples.papers.cells import Cell, Outcome

Engine = Callable[[Sequence[Cell], str | None], Iterator[tuple[Cell, Outcome]]]


def local(cells: Sequence[Cell], data_dir: str | None) -> Iterator[tuple[Cell, Outcome]]:
    """Runs cells one after another in this process.

    Args:
        cells: to run.
        data_dir: TFDS directory.

    Yields:
        Each cell and what it gave, as soon as it has ended.
    """
    for group in train.groups(cells):
        yield from train.run(group, data_dir)


def ray(cells: Sequence[Cell], data_dir: str | None) -> Iterator[tuple[Cell, Outcome]]:
    """Runs cells on the workers of Ray, one group that shares a compiled step per task.

    A cluster that runs is joined (RAY_ADDRESS), else one is started on this machine. The workers must be able to
    import this package and to read `data_dir`.

    Args:
        cells: to run.
        data_dir: TFDS directory.

    Yields:
        Each cell and what it gave, as soon as it has ended on any worker.

    Raises:
        ValueError: if Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        advice = 'Install it: pip install "bellman_tf[ray]".'
        raise _checks.error("engine", "be 'local' without the package of that name", "ray", advice)
    import ray as cluster  # an extra: `pip install "bellman_tf[ray]"`

    if not cluster.is_initialized():
        cluster.init(log_to_driver=False, include_dashboard=False)
    task = cluster.remote(num_cpus=1, num_returns="streaming")(train.run)
    waiting = [task.remote(group, data_dir) for group in train.groups(cells)]
    while waiting:
        [ready], _ = cluster.wait(waiting, num_returns=1)
        try:
            reference = next(ready)
        except StopIteration:
            waiting.remove(ready)
            continue
        yield cluster.get(reference)


ENGINES: dict[str, Engine] = {"local": local, "ray": ray}
