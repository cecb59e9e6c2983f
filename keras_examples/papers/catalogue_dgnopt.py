"""DGN, "Dynamic Game Theoretic Neural Optimizer": Tables 2 to 4, Figures 3, 5 to 8, 10, 11."""

import dataclasses

from keras_examples.papers.calls import call
from keras_examples.papers.catalogue_gtddp import CGB, CIFAR_100, COOPERATIVE_RATES, OPEN, residual
from keras_examples.papers.catalogue_rows import BASELINES, EKFAC, EKFAC_CITED, EMSA, SGD, beside, printed, timed
from keras_examples.papers.cells import DROPS
from keras_examples.papers.experiment import Experiment, Part, Row, published

RESNET = call("papers.resnet18")
SMALL_RESNET = call("studies.shortcut_cnn", width=4, strides=2, blocks=1)
DIGITS = Part("DIGITS", "digits", residual(5, 1, "tanh"), 8, 1500)
MNIST = Part("MNIST", "mnist", residual(12, 3, "relu", strides=2, pool=4), 128, 1500)
CIFAR = Part("CIFAR-10", "cifar-10", RESNET, 128, 40000, schedule=DROPS, small=SMALL_RESNET)
# Not in the paper: ResNet-18 with an eighth of the channels, what two cores train in hours and not in weeks.
EIGHTH = Part(
    "CIFAR-10, width 8", "cifar-10", call("papers.resnet18", width=8), 128, 40000, schedule=DROPS,
    small=SMALL_RESNET,
)  # fmt: skip
SVHN = Part("SVHN", "svhn", residual(16, 3, "relu", strides=2, pool=4), 128, 8000)
FEEDBACK = tuple(beside(base, f"{base.name}, C", "DGNOpt", "", information="feedback") for base in BASELINES)
JOINT = beside(EKFAC, "EKFAC, C-CG", "DGNOpt", "")
DGNOPT = dataclasses.replace(FEEDBACK[3], name="DGNOpt, EKFAC")
DGNOPT_SGD = dataclasses.replace(FEEDBACK[0], name="DGNOpt, SGD")
ORDER = (*BASELINES, EMSA, DGNOPT, DGNOPT_SGD)
TABLE_2 = (
    printed("DIGITS", ORDER, accuracy=(96.05, 95.97, 95.71, 96.11, 94.00, 96.34, 96.34))
    | printed("MNIST", ORDER, accuracy=(98.65, 98.61, 98.49, 98.77, 98.25, 98.76, 98.76))
    | printed("SVHN", ORDER, accuracy=(88.58, 88.96, 89.20, 88.75, 87.40, 89.22, 89.22))
    | printed("CIFAR-100", ORDER, accuracy=(71.78, 71.65, 71.96, 71.95, 62.63, 72.24, 72.24))
    | printed("CIFAR-10", ORDER, accuracy=(82.94, 83.75, 85.66, 85.65, 75.60, 85.85, 85.85))
)
BY_METRIC = tuple(row for pair in zip(BASELINES, FEEDBACK, strict=True) for row in pair)

PLAYERS = (1, 2, 4, 6)
RATE, EKFAC_RATE = 0.05, 0.01
STACK = call("papers.convolutions", widths=(32,) * 4, dense=(64,), every=2)
SMALL_STACK = call("papers.convolutions", widths=(8, 8), dense=(16,))
SMALLEST_STACK = call("papers.convolutions", widths=(8,))
SHARED = (
    Part("CIFAR-10", "cifar-10", STACK, 128, 6000, watch=True, level=60.0, small=SMALL_STACK),
    # Not in the paper: a level that a few hundred steps reach.
    Part("CIFAR-10, 40 %", "cifar-10", STACK, 128, 6000, watch=True, level=40.0, small=SMALL_STACK),
    Part("SVHN", "svhn", STACK, 128, 6000, watch=True, level=80.0),
    Part(
        "DIGITS", "digits", call("papers.convolutions", widths=(16,) * 4, dense=(32,), every=2), 32, 600, watch=True,
        level=90.0,
    ),
)  # fmt: skip


def players(curvature: str, count: int) -> object:
    """DGNOpt with fictitious players and feedback."""
    return published("DGNOpt", "", curvature=curvature, information="feedback", players=count)


ACROSS = tuple(
    row
    for n in PLAYERS
    for row in (
        Row(f"N = {n}", players("identity", n), (RATE,)),
        Row(f"SGD at {n} times the rate", SGD.method, (round(n * RATE, 4),)),
    )
)
STEPS_TO = {"CIFAR-10": (3620, 2970, 2980, 5830), "SVHN": (5140, 2310, 1250, 800)}
TABLE_3 = {
    (part, f"N = {n}"): {"steps": float(steps)}
    for part, counts in STEPS_TO.items()
    for n, steps in zip(PLAYERS, counts, strict=True)
}

ALIGNED = (
    Part(
        "CIFAR-10", "cifar-10", RESNET, 128, 40000, schedule=DROPS, watch=True,
        small=call("papers.dense_shortcut", width=8),
    ),
    dataclasses.replace(EIGHTH, watch=True),
    Part("SVHN", "svhn", call("studies.shortcut_cnn", width=12, strides=2, blocks=1), 128, 3000, watch=True),
    Part("MNIST", "mnist", call("studies.shortcut_cnn", width=12, strides=4, blocks=1), 128, 600, watch=True),
    Part("DIGITS", "digits", call("studies.shortcut_cnn", width=8, strides=2, blocks=1), 32, 450, watch=True),
)  # fmt: skip


ALIGNED_RATES = (0.003, 0.02)


def aligned(name: str, **options: object) -> Row:
    """DGNOpt with EKFAC, shortcuts placed by a rule, under C-CG unless the options say otherwise."""
    method = published("DGNOpt", "", curvature="ekfac", **options)
    return Row(name, method, ALIGNED_RATES, "EKFAC", reward=options["alignment"] == "adaptive")


RULES = {"fixed": {"alignment": "asap"}, "random": {"alignment": "random"}} | {
    "adaptive": {"alignment": "adaptive", "bandit": "exp3++"}
}
PLACED = (
    dataclasses.replace(EKFAC, rates=ALIGNED_RATES),
    *(aligned(name, **options) for name, options in RULES.items()),
)
# The same without cooperative gains: C, where the paper has C-CG.
PLACED_ALONE = tuple(
    dataclasses.replace(aligned(f"{name}, C", information="feedback", **options), only=("DIGITS",))
    for name, options in RULES.items()
)
TABLE_4 = printed("CIFAR-10", PLACED, accuracy=(84.67, 85.20, 85.27, 85.65)) | printed(
    "SVHN", PLACED, accuracy=(87.49, 88.20, 88.12, 88.33)
)
COOPERATIVE = call("btf.curvature.EKFAC", cooperative="published", cooperative_sign=-1, convolution="patches")
STRUCTURES = (
    dataclasses.replace(OPEN, name="EKFAC"),
    Row(
        "O-CG", published("DGNOpt", "", information="open", curvature=COOPERATIVE), COOPERATIVE_RATES, "EKFAC"
    ),
    Row("C", published("DGNOpt", "", curvature="ekfac", information="feedback"), COOPERATIVE_RATES, "EKFAC"),
    Row("C-CG", published("DGNOpt", "", curvature="ekfac"), COOPERATIVE_RATES, "EKFAC"),
)  # fmt: skip

EXPERIMENTS = (
    Experiment(
        "dgnopt-table-2", "DGN, Table 2", "test accuracy of DGNOpt beside four baselines and E-MSA",
        (DIGITS, MNIST, SVHN, CIFAR, EIGHTH, CIFAR_100),
        (*ORDER, dataclasses.replace(EKFAC_CITED, only=(DIGITS.name,))), seeds=6, report="table", printed=TABLE_2,
    ),
    Experiment(
        "dgnopt-fig-3b", "DGN, Fig. 3b", "more information trains faster on cooperative blocks (O, O-CG, C, C-CG)",
        (CGB,), STRUCTURES, seeds=3, report="curves", also="python -m keras_examples.studies.cooperative_block",
    ),
    Experiment(
        "dgnopt-fig-5", "DGN, Fig. 5 and 10", "a step of FNE and GR takes within 40 % of the time of EKFAC's",
        (
            Part("DIGITS, B = 8", "digits", DIGITS.network, 8, 60),
            Part("MNIST, B = 128", "mnist", MNIST.network, 128, 30),
        ),
        timed(EKFAC, FEEDBACK[3], JOINT), seeds=3, report="costs", tune=0,
        also="python -m benchmarks.batch_scaling (memory, Fig. 10)",
    ),
    Experiment(
        "dgnopt-fig-6", "DGN, Fig. 6", "accuracy changes for the better with more information, for each baseline",
        (DIGITS, MNIST, SVHN, CIFAR, EIGHTH), (*BY_METRIC, JOINT), seeds=6, report="difference",
    ),
    Experiment(
        "dgnopt-table-3", "DGN, Table 3 and Fig. 7", "steps to an accuracy fall with the number of players",
        SHARED, ACROSS, seeds=3, report="steps", tune=0, printed=TABLE_3,
        also="python -m keras_examples.studies.fictitious_players (a network that really has N layers)",
    ),
    Experiment(
        "dgnopt-fig-11", "DGN, Fig. 11", "EKFAC with N fictitious players is best with N = 2",
        (dataclasses.replace(SHARED[0], small=SMALLEST_STACK), *SHARED[1:]),
        tuple(Row(f"N = {n}", players("ekfac", n), (EKFAC_RATE,)) for n in PLAYERS), seeds=3, report="steps", tune=0,
    ),
    Experiment(
        "dgnopt-table-4", "DGN, Table 4 and Fig. 8", "adaptive alignment is above random and fixed, all above EKFAC",
        ALIGNED, (*PLACED, *PLACED_ALONE), seeds=6, report="table", tune=0, printed=TABLE_4,
        also="python -m keras_examples.studies.alignment",
    ),
)  # fmt: skip
