"""DDPN, "DDPNOpt": Table 3, Figures 3 and 4."""

import dataclasses

from keras_examples.papers.calls import call
from keras_examples.papers.catalogue_ddp import DDP, DIGITS, FASHION, MNIST
from keras_examples.papers.catalogue_rows import (
    ADAM,
    ADAPTIVE_RATES,
    BASELINES,
    EKFAC,
    EMSA,
    RMSPROP,
    SGD,
    beside,
    printed,
    timed,
)
from keras_examples.papers.experiment import Experiment, Part, Row, published

FF_DIGITS = dataclasses.replace(DIGITS, name="FF, DIGITS")
FF_MNIST = dataclasses.replace(MNIST, name="FF, MNIST", share=1.0)
FF_FASHION = dataclasses.replace(FASHION, name="FF, Fashion-MNIST", share=1.0)
CNN_MNIST = Part("CNN, MNIST", "mnist", call("papers.convolutions", widths=(16, 16, 16)), 128, 1500)
CNN_CIFAR = Part("CNN, CIFAR-10", "cifar-10", call("papers.convolutions", widths=(32, 32, 32)), 128, 4000)
CNN_SVHN = dataclasses.replace(CNN_CIFAR, name="CNN, SVHN", data="svhn")
PARTS = (FF_DIGITS, FF_MNIST, FF_FASHION, CNN_MNIST, CNN_SVHN, CNN_CIFAR)
FF, CNN = (tuple(part.name for part in PARTS[k : k + 3]) for k in (0, 3))

VANILLA = dataclasses.replace(DDP, name="vanilla DDP", only=(FF_DIGITS.name,))
DIAGONAL = Row(
    "DDPNOpt", published("DDPNOpt", "", terminal_hessian="full", curvature="rmsprop"), ADAPTIVE_RATES, "RMSprop",
    only=FF,
)  # fmt: skip
OUTER = dataclasses.replace(beside(EKFAC, "DDPNOpt, CNN", "DDPNOpt", ""), only=CNN)
ROWS = (*BASELINES, EMSA, VANILLA, DIAGONAL, OUTER)
PAIRS = tuple(
    row
    for base in (SGD, RMSPROP, EKFAC)
    for row in (base, beside(base, f"DDPNOpt, {base.name}", "DDPNOpt", "", terminal_hessian="full"))
)
TABLE_3 = (
    printed(FF_DIGITS.name, ROWS, accuracy=(95.36, 94.33, 94.98, 95.24, 94.87, 91.68, 95.13, None))
    | printed(FF_MNIST.name, ROWS, accuracy=(92.65, 91.89, 92.54, 92.73, 90.24, None, 93.30, None))
    | printed(FF_FASHION.name, ROWS, accuracy=(82.49, 83.87, 84.36, 84.12, 82.04, None, 84.98, None))
    | printed(CNN_MNIST.name, ROWS, accuracy=(97.66, 98.05, 98.04, 98.02, 96.48, None, None, 98.09))
    | printed(CNN_SVHN.name, ROWS, accuracy=(88.05, 88.41, 87.76, 90.63, 79.45, None, None, 90.70))
    | printed(CNN_CIFAR.name, ROWS, accuracy=(68.95, 70.52, 70.04, 71.85, 61.42, None, None, 71.92))
)
DECAYS = (0.0, 1e-4, 1e-3, 1e-2)


def _decayed(decay: float) -> Part:
    network = call("papers.fully_connected", hidden=(20,) * 4, activation="tanh", decay=decay)
    return Part(f"decay {decay:g}", "digits", network, 8, 1500)


def batches(sizes: tuple[int, ...]) -> tuple[Part, ...]:
    """The fully connected network on MNIST at several B, a few steps to time."""
    return tuple(Part(f"MNIST, B = {size}", "mnist", MNIST.network, size, 60, share=0.5) for size in sizes)


EXPERIMENTS = (
    Experiment(
        "ddpnopt-table-3", "DDPN, Table 3", "test accuracy of DDPNOpt beside four baselines, E-MSA and vanilla DDP",
        PARTS, ROWS, seeds=10, report="table", printed=TABLE_3,
    ),
    Experiment(
        "ddpnopt-fig-3", "DDPN, Fig. 3", "time of a step against B: DDPNOpt beside its baselines",
        batches((1, 8, 32, 128)),
        timed(
            SGD, ADAM, EKFAC, beside(SGD, "DDPNOpt, SGD", "DDPNOpt", ""),
            beside(EKFAC, "DDPNOpt, EKFAC", "DDPNOpt", ""),
        ),
        seeds=1, report="costs", tune=0,
        also="python -m benchmarks.batch_scaling (memory; vanilla DDP wants 5 GB for one sample here)",
    ),
    Experiment(
        "ddpnopt-fig-4", "DDPN, Fig. 4a", "DDPNOpt is better than its baseline over a grid of rates and weight decays",
        tuple(_decayed(decay) for decay in DECAYS), PAIRS, seeds=10, report="grid", tune=0,
    ),
)  # fmt: skip
