"""GT, "A Differential Game Theoretic Neural Optimizer for Training Residual Networks": Table 2, Figures 1, 6, 7, 8."""

import dataclasses

from keras_examples.papers.calls import call
from keras_examples.papers.catalogue_ddpnopt import batches
from keras_examples.papers.catalogue_rows import BASELINES, EKFAC, SGD, beside, printed, rescaled, timed
from keras_examples.papers.cells import DROPS
from keras_examples.papers.experiment import Experiment, Part, Row, published


def residual(width: int, blocks: int, activation: str, **options: int) -> object:
    """A residual network of the papers, see `networks.residual_blocks`."""
    return call("papers.residual_blocks", width=width, blocks=blocks, activation=activation, **options)


DIGITS = Part("DIGITS", "digits", residual(5, 1, "relu"), 8, 1500)
MNIST = Part("MNIST", "mnist", residual(12, 1, "relu", strides=2, pool=4), 128, 1500)
CIFAR = Part("CIFAR-10", "cifar-10", residual(16, 4, "relu", strides=2, pool=4), 128, 8000)
SVHN = Part("SVHN", "svhn", residual(16, 1, "relu", strides=2, pool=4), 128, 8000)
CIFAR_100 = Part("CIFAR-100", "cifar-100", call("papers.resnet18", classes=100), 128, 40000, schedule=DROPS)
# As DGNOpt has it for DIGITS; GT-DDP App. C says ReLU for all.
DIGITS_TANH = Part("DIGITS, tanh", "digits", residual(5, 1, "tanh"), 8, 1500)
PARTS = (DIGITS, DIGITS_TANH, MNIST, SVHN, CIFAR, CIFAR_100)
GAMES = tuple(beside(base, f"GT-DDP-{base.name}", "GTDDP", "") for base in BASELINES)
PAIRS = tuple(row for pair in zip(BASELINES, GAMES, strict=True) for row in pair)
ORDER = (*BASELINES, *GAMES)
TABLE_2 = (
    printed(
        "DIGITS", ORDER, loss=(0.0053, 0.0247, 0.0182, 0.0514, 0.0050, 0.0124, 0.0081, 0.0514),
        accuracy=(96.09, 95.61, 95.81, 95.31, 96.10, 95.92, 95.84, 95.55),
    )
    | printed(
        "MNIST", ORDER, loss=(0.0250, 0.0284, 0.0330, 0.0290, 0.0240, 0.0282, 0.0312, 0.0291),
        accuracy=(98.59, 98.52, 98.51, 98.56, 98.62, 98.53, 98.51, 98.56),
    )
    | printed(
        "SVHN", ORDER, loss=(0.2755, 0.2670, 0.2544, 0.2049, 0.2692, 0.2637, 0.2517, 0.2047),
        accuracy=(88.58, 88.96, 89.20, 88.75, 89.90, 89.02, 89.22, 89.91),
    )
    | printed(
        "CIFAR-100", ORDER, loss=(0.0075, 0.0058, 0.0055, 0.0120, 0.0075, 0.0058, 0.0054, 0.0125),
        accuracy=(71.78, 71.65, 71.96, 71.95, 72.06, 71.91, 72.19, 72.24),
    )
    | printed(
        "CIFAR-10", ORDER, loss=(0.0296, 0.0107, 0.0127, 0.0922, 0.0284, 0.0069, 0.0096, 0.0907),
        accuracy=(74.69, 70.88, 72.51, 74.33, 74.69, 70.97, 72.68, 74.18),
    )
)  # fmt: skip

COOPERATIVE_RATES = (0.001, 0.003)
CGB = Part(
    "MNIST, cooperative blocks", "mnist", call("studies.cooperative_blocks", width=8), 12, 10000, watch=True,
    small=call("studies.cooperative_blocks", width=4, convolutions=2),
)  # fmt: skip
OPEN = Row("EKFAC", EKFAC.method, COOPERATIVE_RATES)
GT_EKFAC = Row("GT-EKFAC", published("EKFAC", "", curvature=rescaled()), COOPERATIVE_RATES, "EKFAC")
GT_DDP_EKFAC = Row("GT-DDP-EKFAC", published("GTDDP", "", curvature=rescaled()), COOPERATIVE_RATES, "EKFAC")
BY_SEED = {"SGD": (0.1, 0.2, 0.3), "EKFAC": (0.02, 0.04, 0.06)}

EXPERIMENTS = (
    Experiment(
        "gtddp-table-2", "GT-DDP, Table 2", "train loss and accuracy of GT-DDP beside the baseline of the same metric",
        PARTS, PAIRS, seeds=6, report="table", printed=TABLE_2,
    ),
    Experiment(
        "gtddp-fig-1", "GT-DDP, Fig. 1", "time of a step against B: GT-DDP beside its baselines, MNIST",
        batches((1, 8, 32, 128)),
        timed(SGD, EKFAC, beside(SGD, "GT-DDP-SGD", "GTDDP", ""), beside(EKFAC, "GT-DDP-EKFAC", "GTDDP", "")),
        seeds=1, report="costs", tune=0, also="python -m benchmarks.batch_scaling (memory; vanilla DDP)",
    ),
    Experiment(
        "gtddp-fig-6a", "GT-DDP, Fig. 6a", "training curves: GT-DDP follows its baseline",
        PARTS, PAIRS, seeds=6, report="curves",
    ),
    Experiment(
        "gtddp-fig-6b", "GT-DDP, Fig. 6b", "the variance over the seeds falls",
        PARTS, PAIRS, seeds=6, report="variance",
    ),
    Experiment(
        "gtddp-fig-7b", "GT-DDP, Fig. 7b", "GT-EKFAC converges better than EKFAC on cooperative blocks",
        (CGB,), (OPEN, GT_EKFAC, GT_DDP_EKFAC), seeds=3, report="curves",
        also="python -m keras_examples.studies.cooperative_block (with SGD at 1/(2 damping) to 1/damping of the rate)",
    ),
    Experiment(
        "gtddp-fig-8", "GT-DDP, Fig. 8", "the variance over the seeds falls by up to 80 % at each of three rates",
        (CIFAR, DIGITS_TANH),
        tuple(
            dataclasses.replace(row, rates=BY_SEED[base.name])
            for base in (SGD, EKFAC)
            for row in (base, beside(base, f"GT-DDP-{base.name}", "GTDDP", ""))
        ),
        seeds=3, report="variance", tune=0,
    ),
)  # fmt: skip
