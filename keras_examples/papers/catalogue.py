"""Every table and figure of the four papers by name: experiments, looks into a model, and other commands' answers."""

import dataclasses
from collections.abc import Callable, Sequence

from keras_examples.papers import catalogue_ddp, catalogue_ddpnopt, catalogue_dgnopt, catalogue_gtddp
from keras_examples.papers.experiment import Experiment
from keras_examples.papers.looks import LOOKS, Look
from keras_examples.studies import feedback_maps


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """A figure that another example makes.

    Attributes:
        name: on the command line.
        place: paper and number.
        shows: what the paper says that it shows.
        command: what makes it.
        main: the same as a function of the arguments.
    """

    name: str
    place: str
    shows: str
    command: str
    main: Callable[[Sequence[str]], None]


FEEDBACK_MAPS = "python -m keras_examples.studies.feedback_maps"
OTHERS = (
    Elsewhere(
        "ddp-fig-3", "DDP1, Fig. 3", "a trained net's last gain has as many large singular values as clusters",
        FEEDBACK_MAPS, feedback_maps.main,
    ),
    Elsewhere(
        "gtddp-fig-6c", "GT-DDP, Fig. 6c", "leading eigenvectors of feedback matrices show differences of digits",
        FEEDBACK_MAPS, feedback_maps.main,
    ),
)  # fmt: skip

Entry = Experiment | Look | Elsewhere
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        *catalogue_ddp.EXPERIMENTS,
        *catalogue_ddpnopt.EXPERIMENTS,
        *catalogue_gtddp.EXPERIMENTS,
        *catalogue_dgnopt.EXPERIMENTS,
        *LOOKS,
        *OTHERS,
    )
}
