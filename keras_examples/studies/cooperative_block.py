"""The cooperative-block network: EKFAC under four information structures, GT-EKFAC, and plain SGD as the control.

    python -m keras_examples.studies.cooperative_block --data-dir DIRECTORY    # 14 minutes, two busy cores
    python -m keras_examples.studies.cooperative_block --quick                 # less than a minute, on DIGITS

The network of GT-DDP Fig. 7 and DGNOpt Fig. 3: pairs of layers with a common input whose outputs are added, B = 12. You
will see, from the same weights on the same batches:

- EKFAC under the information structures of DGNOpt: open loop O (EKFAC itself), feedback C, and the two in which players
  know each other's actions: O-CG is the open-loop step with cross blocks between the players (DGNOpt Def. 8, with the
  papers' or the exact blocks), C-CG has a joint value with feedback besides;
- the joint value alone, without cross blocks, with and without feedback;
- GT-EKFAC: EKFAC with the curvature that a partner leaves (`cooperative="rescale"`, GT-DDP Cor. 7);
- Keras's SGD at the rates 1/(2 gamma), 1/(sqrt(2) gamma) and 1/gamma times EKFAC's, gamma its damping. With two
  identical players the rescaled eigenvalues gamma + lambda gamma/(gamma + lambda) lie between gamma and 2 gamma,
  whatever lambda is: the curvature is gone and what is left should train like SGD at a rate between these.

The table has each method's loss (mean of the last 60 steps) at every rate, and how far its curve is on average
from that of the nearest SGD. The last layer has no partner: GT-EKFAC keeps its EKFAC, SGD does not.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

import keras
import numpy as np

import bellman_tf as btf
from keras_examples.studies import _command, _networks, _report, _study
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant

RATES = (0.001, 0.003)
DAMPING = 0.01
FACTORS = {"1/(2 gamma)": 0.5 / DAMPING, "1/(sqrt(2) gamma)": math.sqrt(0.5) / DAMPING, "1/gamma": 1 / DAMPING}
EVERY, TAIL, BATCH = 20, 60, 12
FIGURE = "cooperative_block.png"
# Name: information, cross blocks of EKFAC.
METHODS = {
    "EKFAC (O)": ("open", False),
    "EKFAC, C": ("feedback", False),
    "joint value": ("cooperative", False),
    "joint value without feedback": ("cooperative_open", False),
    "GT-EKFAC": ("open", "rescale"),
    "GT-EKFAC, joint value": ("cooperative", "rescale"),
    "O-CG, published": ("open", "published"),
    "O-CG, exact": ("open", "exact"),
    "C-CG, exact": ("cooperative", "exact"),
}


def ekfac(information: str, cooperative: str | bool) -> btf.GTDDP:
    """EKFAC with whole patches as the input factor of convolutions, which "exact" needs, for all alike."""
    curvature = btf.curvature.EKFAC(damping=DAMPING, convolution="patches", cooperative=cooperative)
    return btf.GTDDP(curvature=curvature, information=information)


def variants(names: Sequence[str]) -> list[tuple[Variant, float]]:
    """The methods, each with the factor on its rates."""
    ours = [(Variant(name, functools.partial(ekfac, *METHODS[name]), "ekfac"), 1.0) for name in names]
    return ours + [(Variant(f"SGD, {name}", keras.optimizers.SGD, "sgd"), factor) for name, factor in FACTORS.items()]


def mean_loss(records: list[dict], method: str, rate: float) -> float:
    """Mean over the seeds."""
    return float(np.mean([r["loss"] for r in records if (r["method"], r["base"]) == (method, rate)]))


def mean_curve(records: list[dict], method: str, rate: float) -> np.ndarray:
    """Mean over the seeds."""
    return np.mean([r["curve"] for r in records if (r["method"], r["base"]) == (method, rate)], axis=0)


def nearest_sgd(records: list[dict], method: str, rate: float) -> tuple[float, str]:
    """The control whose curve at the same rate is nearest: mean relative difference and its name."""
    own = mean_curve(records, method, rate)
    controls = dict.fromkeys(r["method"] for r in records if r["metric"] == "sgd")
    found = []
    for name in controls:
        other = mean_curve(records, name, rate)
        gap = float(np.mean(np.abs(own - other) / other)) if np.isfinite([own, other]).all() else math.inf
        found.append((gap, name))
    return min(found)


def table(records: list[dict]) -> str:
    """One row per data set and method."""
    rates = sorted({r["base"] for r in records})
    head = (
        "data",
        "method",
        *(f"rate {rate:g}" for rate in rates),
        "accuracy at best",
        "curve from nearest SGD, by rate",
        "ms/step",
    )
    rows = [head]
    for task, method in dict.fromkeys((r["task"], r["method"]) for r in records):
        everything = [r for r in records if r["task"] == task]
        own = [r for r in everything if r["method"] == method]
        best = min(rates, key=lambda rate: mean_loss(everything, method, rate))
        accuracy = [100 * r["accuracy"] for r in own if r["base"] == best]
        nearest = [nearest_sgd(everything, method, rate) for rate in rates]
        near = ", ".join(f"{100 * gap:.0f} % from {name.removeprefix('SGD, ')}" for gap, name in nearest)
        cells = [_report.spread_text([r["loss"] for r in own if r["base"] == rate]) for rate in rates]
        speed = f"{np.median([r['milliseconds'] for r in own]):.0f}"
        rows.append(
            (
                task,
                method,
                *cells,
                f"{np.mean(accuracy):.1f} +- {np.std(accuracy):.1f}",
                near if own[0]["metric"] == "ekfac" else "-",
                speed,
            )
        )
    return markdown(rows)


def plot(records: list[dict], path: object) -> None:
    """Curves, means over the seeds: the information structures and GT-EKFAC beside SGD, all at one rate per column."""
    tasks, rates = (list(dict.fromkeys(r[key] for r in records)) for key in ("task", "base"))
    figure = _report.new_figure(3.2 * len(rates), 2.8 * len(tasks))
    axes = figure.subplots(len(tasks), len(rates), squeeze=False, sharey="row")
    for line, task in zip(axes, tasks, strict=True):
        own = [r for r in records if r["task"] == task]
        for axis, rate in zip(line, rates, strict=True):
            for number, method in enumerate(dict.fromkeys(r["method"] for r in own)):
                style = (
                    {"color": "0.6", "lw": 2.5, "zorder": 0}
                    if method.startswith("SGD")
                    else {"color": f"C{number}", "lw": 1}
                )
                curve = np.minimum(mean_curve(own, method, rate), _report.CEILING)
                axis.semilogy(EVERY * np.arange(1, len(curve) + 1), curve, label=method, **style)
            axis.set_title(f"{task}, rate {rate:g} (SGD: times 1/(2 gamma) ... 1/gamma)", fontsize=6)
            axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=5)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("train loss", fontsize=8)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(__doc__.splitlines()[0], "results/cooperative_block", "mnist", 200, seeds=2)
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="learning rates of EKFAC")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="forms of EKFAC")
    options = parser.parse_args(arguments)
    convolutions = 3
    if options.quick:
        options.seeds, options.steps, convolutions = 1, min(options.steps, 60), 1
        options.rates, options.methods = options.rates[1:2] or options.rates, ["EKFAC (O)", "GT-EKFAC"]
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("mnist",), 20000)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    methods = variants(options.methods)
    progress = _report.Progress(len(data) * len(methods) * len(options.rates) * options.seeds)
    records = []
    for name, each in data.items():
        network = functools.partial(_networks.cooperative_blocks, each.x_train.shape[1:], 8, convolutions)
        task = _study.Task(name, network, each, BATCH, options.steps, EVERY, {}, tail=min(TAIL, options.steps))
        for variant, factor in methods:
            trainer = _study.Trainer(task, variant)
            for rate in options.rates:
                for run in trainer.runs([factor * rate], options.seeds, progress):
                    records.append(dataclasses.asdict(run) | {"base": rate})
    plot(records, options.out / FIGURE)
    _command.report(options, table(records), records, time.perf_counter() - start, [FIGURE])


if __name__ == "__main__":
    main()
