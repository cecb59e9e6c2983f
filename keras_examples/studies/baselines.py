"""The papers' baselines side by side: SGD, EKFAC as cited, KWNG and E-MSA on the papers' network for DIGITS.

    python -m keras_examples.studies.baselines            # about a quarter of an hour on two cores
    python -m keras_examples.studies.baselines --quick    # less than one minute
    python -m keras_examples.studies.baselines --data mnist --data-dir DIRECTORY

You will see: the train loss of every method at every rate of a small grid, mean and spread over the seeds; at the best
rate the test accuracy and the time of a step; and what the papers report for the same network. Pixels are standardised,
as the papers do. A row of E-MSA has a weight rho of its penalties, its rates are shares of the way to the minimum.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

import bellman_tf as btf
from keras_examples.studies import _command, _data, _networks, _report, _study
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant

EVERY = 25
BATCH_SIZES = {"digits": 8, "mnist": 16, "cifar10": 16}
SHARES = (0.3, 1.0)
PAPERS = {  # DIGITS: DDP1 Tab. 3, DDPN Tab. 3
    "SGD": "0.0400 / 95.3, - / 95.4",
    "EKFAC as cited": "0.0864 / 94.5, - / 95.2",
    "KWNG": "0.1321 / 93.8",
    "E-MSA": "- / 94.9",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A method and its rates.

    Attributes:
        name: what the table calls it.
        family: whose value of the papers stands beside it.
        make: a new optimizer.
        rates: to train at.
    """

    name: str
    family: str
    make: Callable[[], keras.optimizers.Optimizer]
    rates: tuple[float, ...]


def rows(iterations: int) -> list[Row]:
    """The methods; `iterations` of L-BFGS in a step of E-MSA."""
    emsa = btf.baselines.EMSA
    return [
        Row("SGD", "SGD", keras.optimizers.SGD, (0.07, 0.15, 0.3, 0.5)),
        Row("EKFAC as cited", "EKFAC as cited", btf.EKFAC.as_cited, (0.01, 0.03, 0.1, 0.3)),
        Row("KWNG", "KWNG", btf.baselines.KWNG, (0.03, 0.1, 0.3, 1.0)),
        Row("KWNG, all coordinates", "KWNG", functools.partial(btf.baselines.KWNG, coordinates="all"), (0.3,)),
        *(
            Row(f"E-MSA, rho = {rho:g}", "E-MSA", functools.partial(emsa, rho=rho, iterations=iterations), SHARES)
            for rho in (1.0, 10.0)
        ),
    ]


def table(records: list[dict]) -> str:
    """One row per data set and method; losses at its rates, then the best rate."""
    lines = [("data", "method", "train loss at rate", "best", "test accuracy", "ms a step", "papers")]
    for name, method in dict.fromkeys((r["task"], r["method"]) for r in records):
        own = [r for r in records if (r["task"], r["method"]) == (name, method)]
        by_rate = {rate: [r for r in own if r["rate"] == rate] for rate in dict.fromkeys(r["rate"] for r in own)}
        means = {rate: float(np.mean([r["loss"] for r in runs])) for rate, runs in by_rate.items()}
        cells = [f"{rate:g}: {_report.spread_text([r['loss'] for r in runs])}" for rate, runs in by_rate.items()]
        best = min(means, key=means.get)
        accuracies = [100 * r["accuracy"] for r in by_rate[best]]
        reported = PAPERS[own[0]["form"]] if name.startswith("digits") else "-"
        milliseconds = _report.number_text(float(np.median([r["milliseconds"] for r in own])))
        accuracy = f"{np.mean(accuracies):.1f} +- {np.std(accuracies):.1f}"
        lines.append((name, method, "; ".join(cells), f"{best:g}", accuracy, milliseconds, reported))
    return markdown(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(__doc__.splitlines()[0], "results/baselines", "digits", 1500, seeds=3)
    parser.add_argument("--iterations", type=_command.whole(1), default=5, help="of L-BFGS in a step of E-MSA")
    options = parser.parse_args(arguments)
    methods = rows(options.iterations)
    if options.quick:
        options.seeds, options.steps = 1, min(options.steps, 50)
        methods = [dataclasses.replace(row, rates=row.rates[:2][-1:]) for row in methods]
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("digits",), 60000)
    start = time.perf_counter()
    progress = _report.Progress(len(data) * options.seeds * sum(len(row.rates) for row in methods))
    records = []
    for name, each in data.items():
        network = functools.partial(_networks.tanh_mlp, each.x_train.shape[1:])
        size = BATCH_SIZES[name]
        task = _study.Task(f"{name}, B = {size}", network, _data.standardised(each), size, options.steps, EVERY, {})
        for row in methods:
            trainer = _study.Trainer(task, Variant(row.name, row.make, form=row.family))
            records += [dataclasses.asdict(run) for run in trainer.runs(row.rates, options.seeds, progress)]
    _command.report(options, table(records), records, time.perf_counter() - start, [])


if __name__ == "__main__":
    main()
