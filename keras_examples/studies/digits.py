"""GTDDP beside SGD, RMSprop, Adam, K-FAC and EKFAC on real DIGITS.

    python -m keras_examples.digits            # about 5 minutes on two cores
    python -m keras_examples.digits --quick    # less than one

You will see: for every metric, GTDDP's loss next to that of the baseline with the same metric, at learning rates over
two decades, and what happens at ten times the best rate, where the baseline breaks. Two networks: the papers' tanh MLP
with B = 8, and a small residual CNN whose blocks are games of cooperating players.
"""

import argparse
import functools
from collections.abc import Sequence

from keras_examples.studies import _command, _data, _networks, _study
from keras_examples.studies._methods import BASE, BLOCK, MATCHED, METRICS, OUTER, Method

MLP, CNN = "digits mlp", "digits cnn"
MLP_RATES = {"identity": 0.1, "rmsprop": 0.01, "adam": 0.01, "kfac": 0.03, "ekfac": 0.03}
CNN_RATES = {"identity": 0.3, "rmsprop": 0.01, "adam": 0.01, "kfac": 0.03, "ekfac": 0.03}
MLP_EVERY, CNN_EVERY = 50, 10


def rows(options: argparse.Namespace, variants: Sequence[str]) -> list[Method]:
    """Baseline and GTDDP for each metric, and GTDDP's further forms for the metrics in `variants`."""
    methods = []
    for metric in options.metrics:
        forms = (BASE, MATCHED, BLOCK, OUTER) if metric in variants else (BASE, MATCHED)
        methods += [Method(metric, form, options.gram, options.invert_every) for form in forms]
    return methods


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.parser(__doc__.splitlines()[0], "results/digits", 1500, METRICS, seeds=2)
    parser.add_argument(
        "--networks", nargs="+", choices=("mlp", "cnn"), default=["mlp", "cnn"], help="networks to train"
    )
    parser.add_argument(
        "--variants", nargs="*", choices=METRICS, default=["identity"],
        help="metrics whose GTDDP also runs uncoupled and with the papers' terminal Hessian, on the MLP",
    )  # fmt: skip
    parser.add_argument("--cnn-steps", type=_command.whole(1), default=150, help="length of a run of the CNN")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.decades, options.steps, options.cnn_steps = 1, 1, 100, 50
        few = [metric for metric in options.metrics if metric in {"identity", "kfac"}]
        options.metrics = few or options.metrics[:1]
    _command.multiple(parser, "--steps", options.steps, MLP_EVERY)
    _command.multiple(parser, "--cnn-steps", options.cnn_steps, CNN_EVERY)
    data = _data.digits()
    shape = data.x_train.shape[1:]
    tasks, methods = [], []
    if "mlp" in options.networks:
        network = functools.partial(_networks.tanh_mlp, shape)
        tasks.append(_study.Task(MLP, network, data, 8, options.steps, MLP_EVERY, MLP_RATES, jit=options.jit))
        methods.append(rows(options, () if options.quick else options.variants))
    if "cnn" in options.networks:
        network = functools.partial(_networks.residual_cnn, shape, width=12, strides=2, normalize=False)
        tasks.append(_study.Task(CNN, network, data, 32, options.cnn_steps, CNN_EVERY, CNN_RATES, jit=options.jit))
        methods.append(rows(options, ("identity",))[: 2 if options.quick else None])
    _command.conduct(_command.typed("keras_examples.digits", arguments), options, tasks, methods)


if __name__ == "__main__":
    main()
