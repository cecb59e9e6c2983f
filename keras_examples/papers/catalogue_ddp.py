"""DDP1, "Differential Dynamic Programming Neural Optimizer": Tables 3 and 4, Figures 4, 5, 6, 8."""

import dataclasses

from keras_examples.papers.calls import call
from keras_examples.papers.catalogue_rows import (
    EKFAC,
    EKFAC_CITED,
    KFAC,
    KWNG,
    RMSPROP,
    SGD,
    SGD_RATES,
    beside,
    printed,
    timed,
)
from keras_examples.papers.experiment import Experiment, Part, Row, published


def _dense(units: int, activation: str, classes: int = 10, sigmoid: bool = False) -> object:
    options = {"classes": classes, "sigmoid": sigmoid}
    return call("papers.fully_connected", hidden=(units,) * 4, activation=activation, **options)


WINE = Part("WINE", "wine", _dense(10, "tanh", 3, sigmoid=True), 32, 1000)
IRIS = Part("IRIS", "iris", _dense(10, "tanh", 3), 32, 1000)
DIGITS = Part("DIGITS", "digits", _dense(20, "tanh"), 8, 1500)
MNIST = Part("MNIST 50 %", "mnist", _dense(32, "relu"), 16, 5000, share=0.5)
FASHION = Part("Fashion-MNIST 50 %", "fashion-mnist", MNIST.network, 16, 5000, share=0.5)
SMALL = ("WINE", "IRIS", "DIGITS")
PARTS = (WINE, IRIS, DIGITS, MNIST, FASHION)

DDP_SGD = beside(SGD, "DDP-SGD", "DDPNOpt", "ddp")
DDP_RMSPROP = beside(RMSPROP, "DDP-RMSprop", "DDPNOpt", "ddp")
DDP_EKFAC = beside(EKFAC, "DDP-EKFAC", "DDPNOpt", "ddp")
DDP = Row("DDP", published("DDP", ""), SGD_RATES, only=SMALL)
CITED = dataclasses.replace(EKFAC_CITED, only=SMALL)
ROWS = (SGD, RMSPROP, KFAC, EKFAC, KWNG, DDP_SGD, DDP_RMSPROP, DDP_EKFAC, DDP)
# App. D.2: the Tikhonov term on V_xx decides how well DDP-RMSprop does; no value is printed.
DAMPED = tuple(
    beside(base, f"DDP-{base.name}, eps_V = 0.01", "DDPNOpt", "ddp", value_damping=0.01) for base in (SGD, RMSPROP)
)
PAIRS = (SGD, DDP_SGD, RMSPROP, DDP_RMSPROP, EKFAC, DDP_EKFAC)

TABLE_3 = (
    printed(
        "WINE", ROWS,
        loss=(0.5654, 0.5515, 0.5601, 0.5610, 0.5565, 0.5657, 0.5515, 0.5610, 0.5649),
        accuracy=(94.35, 98.10, 97.78, 94.60, 98.67, 94.29, 98.10, 94.60, 98.00),
    )
    | printed(
        "IRIS", ROWS,
        loss=(0.0514, 0.0942, 0.0588, 0.0514, 0.0673, 0.0505, 0.0515, 0.0567, 0.0552),
        accuracy=(93.00, 91.48, 94.28, 94.86, 94.07, 93.79, 94.81, 92.72, 94.44),
    )
    | printed(
        "DIGITS", ROWS,
        loss=(0.0400, 0.0562, 0.4474, 0.0864, 0.1321, 0.0364, 0.0450, 0.0666, 0.2197),
        accuracy=(95.28, 94.52, 84.61, 94.53, 93.83, 95.43, 94.71, 95.36, 91.94),
    )
    | printed(
        "MNIST 50 %", ROWS,
        loss=(0.2321, 0.2742, 0.2964, 0.2392, 0.3689, 0.2242, 0.2291, 0.2365, None),
        accuracy=(92.60, 91.30, 92.02, 92.79, 88.92, 92.84, 92.42, 92.67, None),
    )
    | printed(
        "Fashion-MNIST 50 %", ROWS,
        loss=(0.4695, 0.4202, 0.4572, 0.4257, 0.4518, 0.4717, 0.4191, 0.4204, None),
        accuracy=(82.48, 84.24, 84.27, 84.14, 84.02, 82.46, 84.2, 84.39, None),
    )
)  # fmt: skip
FEEDBACK = (DDP_SGD, DDP_RMSPROP, DDP_EKFAC)
TABLE_4 = (
    printed("WINE", FEEDBACK, loss=(-1.312, 9.263, 0.179), accuracy=(-0.732, -1.813, 0.177))
    | printed("IRIS", FEEDBACK, loss=(-2.474, 1.038, -4.601), accuracy=(-4.021, -1.854, -0.713))
    | printed("DIGITS", FEEDBACK, loss=(-1.514, -3.165, -9.020), accuracy=(-6.743, -6.468, -39.971))
    | printed("MNIST 50 %", FEEDBACK, loss=(0.331, -1.352, -0.216), accuracy=(-5.263, -32.503, 6.344))
    | printed("Fashion-MNIST 50 %", FEEDBACK, loss=(-1.324, 3.464, -2.327), accuracy=(-4.767, 20.254, 4.443))
)

EXPERIMENTS = (
    Experiment(
        "ddp-table-3", "DDP1, Table 3", "train loss and test accuracy of DDP in four forms beside five baselines",
        PARTS, (*ROWS, *DAMPED, CITED), seeds=8, report="table", printed=TABLE_3,
        also="python -m keras_examples.studies.baselines",
    ),
    Experiment(
        "ddp-table-4", "DDP1, Table 4", "variance of loss and accuracy falls with feedback, at the same rate",
        PARTS, PAIRS, seeds=8, report="variance", printed=TABLE_4,
    ),
    Experiment(
        "ddp-fig-4", "DDP1, Fig. 4", "training curves on DIGITS, vanilla DDP among them",
        (DIGITS,), (*PAIRS, DDP), seeds=8, report="curves",
    ),
    Experiment(
        "ddp-fig-5", "DDP1, Fig. 5", "feedback steadies the training at a rate above the best one, DIGITS",
        (DIGITS,), PAIRS, seeds=8, report="curves", perturbed=True,
    ),
    Experiment(
        "ddp-fig-7", "DDP1, Fig. 7", "where the variance falls, training is slightly faster, DIGITS",
        (DIGITS,), PAIRS, seeds=8, report="curves",
    ),
    Experiment(
        "ddp-fig-8", "DDP1, Fig. 8", "the same as Fig. 5 on WINE, IRIS, MNIST, Fashion-MNIST",
        (WINE, IRIS, MNIST, FASHION), PAIRS, seeds=8, report="curves", perturbed=True,
    ),
    Experiment(
        "ddp-fig-6", "DDP1, Fig. 6", "a step of DDP-EKFAC takes 1.1 to 1.6 times that of EKFAC, by hidden width",
        tuple(
            Part(f"DIGITS, width {units}", "digits", _dense(units, "tanh"), 8, 60) for units in (10, 20, 32, 64)
        ),
        timed(EKFAC, DDP_EKFAC), seeds=3, report="costs", tune=0,
    ),
)  # fmt: skip
