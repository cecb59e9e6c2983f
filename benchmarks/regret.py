"""Regret of the bandits beside what theory promises: four bandits, random and switching rewards.

    python -m benchmarks.regret [--quick] [--out benchmarks/regret.json] [--plot docs/bandit_regret.png]

Regret after k rounds is the sum of the best single arm's mean rewards so far minus those of the arms played. All runs
of a bandit are played side by side, in one compiled loop. Rewards are 0 or 1. The problems, M = 4:

    gap 0.3, gap 0.05    means 0.5 + gap / 2 for one arm and 0.5 - gap / 2 for the others, in every round
    switching level      the gap of 0.1 stays with one arm, but all means jump between nearly 0 and nearly 1, in phases
                         that grow by a factor of 1.6 (the "stochastically constrained adversary" of Zimmert and
                         Seldin 2021, made to mislead averages of rewards)
    switching best arm   a different arm is better by 0.4 in the first fifth of the rounds

The bounds: 2 sqrt(M k ln M) for Exp3 and 4 sqrt(M k ln M) for Exp3++ hold for every problem; that of UCB1,
sum over the worse arms of 8 ln k / gap + (1 + pi^2 / 3) gap, for the first two. The logarithmic bounds of Exp3++ start
to bind later than any training run (their constants are in the hundreds, see `bellman_tf/bandit/policies.py`); their
shape is drawn as sum of ln k / gap.
"""

import argparse
import json
import math
import os
import pathlib
import platform
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from bellman_tf import bandit

ARMS = 4
BANDITS = {
    "exp3++": bandit.Exp3PlusPlus(),
    "exp3": bandit.Exp3(),
    "ucb1": bandit.UCB1(),
    "uniform": bandit.Uniform(),
}


def constant_gap(gap: float, rounds: int) -> np.ndarray:
    """Mean reward of each arm in each round, `[rounds, M]`; arm 2 is the best."""
    means = np.full((rounds, ARMS), 0.5 - gap / 2)
    means[:, 2] += gap
    return means


def switching_level(rounds: int, gap: float = 0.1) -> np.ndarray:
    """The best arm stays, the level of all rewards jumps."""
    means, start, length, high = np.zeros((rounds, ARMS)), 0, 10.0, False
    while start < rounds:
        stop = start + math.ceil(length)
        means[start:stop] = 1 - gap if high else 0.0
        start, length, high = stop, 1.6 * length, not high
    means[:, 2] += gap
    return means


def switching_best(rounds: int) -> np.ndarray:
    """Arm 0 is best at first, arm 2 afterwards."""
    means = np.full((rounds, ARMS), 0.3)
    means[: rounds // 5, 0] += 0.4
    means[rounds // 5 :, 2] += 0.4
    return means


def problems(rounds: int) -> dict[str, np.ndarray]:
    """Every problem's mean rewards."""
    return {
        "gap 0.3": constant_gap(0.3, rounds),
        "gap 0.05": constant_gap(0.05, rounds),
        "switching level": switching_level(rounds),
        "switching best arm": switching_best(rounds),
    }


def player(one: bandit.Bandit, rounds: int, runs: int) -> Callable:
    """Compiled play of independent runs: mean rewards `[rounds, M]` and a seed to the arms played, `[rounds, runs]`."""

    @tf.function
    def play(means: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        state, arms = one.init(ARMS, shape=(runs,)), tf.TensorArray(tf.int32, rounds, element_shape=[runs])
        for k in tf.range(rounds):
            p = one.probabilities(state)
            arm = bandit.draw(p, tf.stack([2 * seed, k]))
            pays = tf.random.stateless_uniform([runs], tf.stack([2 * seed + 1, k])) < tf.gather(means[k], arm)
            state = one.update(state, arm, tf.cast(pays, tf.float32), tf.gather(p, arm, axis=1, batch_dims=1))
            arms = arms.write(k, arm)
        return arms.stack()

    return play


def regret(means: np.ndarray, arms: np.ndarray) -> np.ndarray:
    """Regret after each round and of each run, `[rounds, runs]`, against the best arm of the rounds so far."""
    best = np.cumsum(means, axis=0).max(axis=1)
    return best[:, None] - np.cumsum(np.take_along_axis(means, arms, axis=1), axis=0)


def bounds(name: str, means: np.ndarray) -> dict[str, np.ndarray]:
    """The theoretical curves of a problem, `[rounds]` each."""
    k = np.arange(1, len(means) + 1)
    root = np.sqrt(ARMS * k * math.log(ARMS))
    curves = {"exp3": 2 * root, "exp3++": 4 * root}
    if name.startswith("gap"):
        gaps = means[0].max() - means[0]
        gaps = gaps[gaps > 0]
        curves["ucb1"] = (8 / gaps).sum() * np.log(k) + (1 + math.pi**2 / 3) * gaps.sum()
        curves["sum of ln k / gap"] = (1 / gaps).sum() * np.log(k)
    return curves


def measure(rounds: int, runs: int) -> tuple[dict, dict]:
    """Plays everything; returns the numbers of the table and the curves of the figure."""
    tables = problems(rounds)
    results: dict = {problem: {} for problem in tables}
    curves: dict = {problem: {"bounds": bounds(problem, means)} for problem, means in tables.items()}
    for name, one in BANDITS.items():
        play = player(one, rounds, runs)
        for seed, (problem, means) in enumerate(tables.items()):
            arms = play(tf.constant(means, tf.float32), tf.constant(seed)).numpy()
            curve = curves[problem][name] = regret(means, arms)
            results[problem][name] = row(curve, curves[problem]["bounds"].get(name))
            best = int(means.sum(axis=0).argmax())
            results[problem][name]["share of best arm"] = round(float((arms == best).mean()), 3)
    return results, curves


def row(curve: np.ndarray, bound: np.ndarray | None) -> dict:
    """Numbers of one bandit on one problem."""
    last, mean = curve[-1], curve.mean(axis=1)
    known = bound is not None
    return {
        "regret": round(float(mean[-1]), 2),
        "standard_error": round(float(last.std(ddof=1) / math.sqrt(last.size)), 2),
        "10% and 90% of runs": [round(float(q), 2) for q in np.quantile(last, [0.1, 0.9])],
        "halfway": round(float(mean[len(mean) // 2 - 1]), 2),
        "bound": round(float(bound[-1]), 2) if known else None,
        "largest share of bound": round(float((mean / bound).max()), 3) if known else None,
    }


def report(results: dict, rounds: int) -> str:
    """The table as text."""
    head = f"{'':14}{'regret':>9}{'+-':>6}{'10%':>9}{'90%':>9}{'halfway':>9}{'bound':>9}{'best arm':>10}"
    lines = []
    for problem, rows in results.items():
        lines += ["", f"{problem}, {rounds} rounds", head]
        for name, entry in rows.items():
            low, high = entry["10% and 90% of runs"]
            bound = "-" if entry["bound"] is None else f"{entry['bound']:.0f}"
            lines.append(
                f"{name:14}{entry['regret']:9.1f}{entry['standard_error']:6.1f}{low:9.1f}{high:9.1f}"
                f"{entry['halfway']:9.1f}{bound:>9}{entry['share of best arm']:10.2f}"
            )
    return "\n".join(lines)


def plot(curves: dict, path: str) -> None:
    """Draws mean regret, the middle 80 % of the runs, and the bounds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = dict(zip((*BANDITS, "sum of ln k / gap"), ("C0", "C1", "C2", "C7", "k"), strict=True))
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    named = {}
    for axes, (problem, lines) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        means = {name: lines[name].mean(axis=1) for name in BANDITS}
        k = np.arange(1, len(means["uniform"]) + 1)
        for name, mean in means.items():
            [named[name]] = axes.plot(k, mean, color=colours[name])
            axes.fill_between(k, *np.quantile(lines[name], [0.1, 0.9], axis=1), color=colours[name], alpha=0.15, lw=0)
        for name, curve in lines["bounds"].items():
            label, style = (f"bound of {name}", "--") if name in BANDITS else (name, ":")
            [named[label]] = axes.plot(k, curve, color=colours[name], linestyle=style, linewidth=1)
        axes.set(title=problem, xlabel="rounds", ylabel="regret against the best single arm", xlim=(0, len(k)))
        axes.set_ylim(1.1 * min(0, *(mean.min() for mean in means.values())), 1.15 * means["uniform"].max())
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
    figure.suptitle("Mean regret and the middle 80 % of the runs; 4 arms")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="300 rounds, 20 runs")
    parser.add_argument("--out", default="")
    parser.add_argument("--plot", default="")
    options = parser.parse_args()
    rounds, runs = (300, 20) if options.quick else (options.rounds, options.runs)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    results, curves = measure(rounds, runs)
    print(report(results, rounds))
    if options.out:
        about = {
            "machine": platform.platform(),
            "tensorflow": tf.__version__,
            "rounds": rounds,
            "runs": runs,
            "arms": ARMS,
        }
        pathlib.Path(options.out).write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    if options.plot:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
