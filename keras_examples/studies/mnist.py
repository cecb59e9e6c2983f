"""GTDDP beside SGD and RMSprop on MNIST: a residual CNN, with and without BatchNormalization.

    python -m keras_examples.studies.mnist --data-dir DIRECTORY            # about an hour on two cores
    python -m keras_examples.studies.mnist --data-dir DIRECTORY --quick    # less than two minutes

You will see: the mean train loss of the last 30 of 250 steps and the test accuracy, for the baseline and for three
forms of GTDDP (samples uncoupled; coupled, the method; coupled with the papers' terminal Hessian g g'), at learning
rates up to where the baseline stops learning. Needs MNIST as `tensorflow_datasets` prepares it.
"""

import functools
import os
from collections.abc import Sequence

from keras_examples.studies import _command, _data, _networks, _study
from keras_examples.studies._methods import BASE, BLOCK, MATCHED, OUTER, Method

RATES = {"identity": 0.3, "rmsprop": 0.01, "adam": 0.01, "kfac": 0.1, "ekfac": 0.1}
EVERY, TAIL = 10, 30


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.parser(__doc__.splitlines()[0], "results/mnist", 250, ("identity", "rmsprop"), seeds=2, decades=1)
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("TFDS_DATA_DIR"),
        help="TFDS directory; default: environment's TFDS_DATA_DIR",
    )
    parser.add_argument("--batch-sizes", nargs="+", type=_command.whole(1), default=[64, 128], help="batch sizes")
    parser.add_argument(
        "--normalization", nargs="+", choices=("none", "batch"), default=["none", "batch"],
        help="networks: without and with BatchNormalization",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.batch_sizes = 1, min(options.steps, 30), options.batch_sizes[:1]
        options.metrics, options.normalization = options.metrics[:1], options.normalization[:1]
    _command.multiple(parser, "--steps", options.steps, EVERY)
    try:
        data = _data.load("mnist", options.data_dir)
    except ValueError as problem:
        parser.error(str(problem))
    tasks, methods = [], []
    for normalization in options.normalization:
        for batch_size in options.batch_sizes:
            normalized = normalization == "batch"
            network = functools.partial(
                _networks.residual_cnn, data.x_train.shape[1:], width=12, strides=2, normalize=normalized
            )
            name = f"mnist {'BN ' if normalized else ''}B={batch_size}"
            tasks.append(
                _study.Task(
                    name,
                    network,
                    data,
                    batch_size,
                    options.steps,
                    EVERY,
                    RATES,
                    tail=min(TAIL, options.steps),
                    jit=options.jit,
                    beyond=False,
                )  # fmt: skip
            )
            forms = (BASE, BLOCK, MATCHED, OUTER)
            methods.append(
                [
                    Method(metric, form, options.gram, options.invert_every)
                    for metric in options.metrics
                    for form in forms
                ]
            )
    _command.conduct(_command.typed("keras_examples.studies.mnist", arguments), options, tasks, methods)


if __name__ == "__main__":
    main()
