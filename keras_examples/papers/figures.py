"""Figures of the experiments: curves with their spread, heat maps of differences."""

import math
import pathlib

import numpy as np

from keras_examples.papers.cells import Store
from keras_examples.papers.experiment import Experiment, Part
from keras_examples.papers.reports import MEASURES, accuracy_changes, grid_values
from keras_examples.studies._report import CEILING, new_figure


def curves(experiment: Experiment, store: Store, path: pathlib.Path) -> bool:
    """Train loss, and test accuracy where it was watched, with the spread over the seeds; a row per part and rate kind.

    Runs that broke are counted in the legend and not drawn.

    Args:
        experiment: with its parts and rows.
        store: of what was run.
        path: of the image.

    Returns:
        Whether there was anything to draw.
    """
    panels = []
    for part in experiment.parts:
        lines = _lines(experiment, store, part)
        panels += [(part, kind, lines[kind]) for kind in lines if lines[kind]]
    if not panels:
        return False
    watched = any(part.watch for part, _, _ in panels)
    figure = new_figure(4.6 * (1 + watched), 3.0 * len(panels))
    axes = figure.subplots(len(panels), 1 + watched, squeeze=False)
    for line, (part, kind, rows) in zip(axes, panels, strict=True):
        for number, (name, found) in enumerate(rows.items()):
            whole = [each for each in found if math.isfinite(each.loss)]
            broken = f", {len(found) - len(whole)} of {len(found)} broke" if len(whole) < len(found) else ""
            style = {"color": f"C{number // 2}" if experiment.perturbed else f"C{number}", "label": name + broken}
            style["ls"] = "-" if not experiment.perturbed or number % 2 else ":"
            _band(line[0], [np.minimum(each.curve, CEILING) for each in whole], part, style)
            if watched and part.watch:
                _band(line[1], [each.accuracies for each in whole], part, style)
        line[0].set(yscale="log", title=f"{part.name}, {kind}", ylabel="train loss", xlabel="step")
        line[0].legend(fontsize=6)
        if watched:
            line[1].set(ylabel="test accuracy", xlabel="step")
    figure.savefig(path, dpi=90)
    return True


def _lines(experiment: Experiment, store: Store, part: Part) -> dict[str, dict[str, list]]:
    """Kind of rate -> row with its rate -> outcomes."""
    kinds: dict[str, dict[str, list]] = {"best rates": {}, "perturbed rates": {}}
    for row in experiment.rows_of(part):
        base = experiment.base_of(row) or row
        chosen = {"best rates": experiment.best_rate(store, part, base if experiment.perturbed else row)}
        if experiment.perturbed:
            chosen["perturbed rates"] = experiment.perturbed_rate(store, part, base)
        for kind, rate in chosen.items():
            found = [] if rate is None else experiment.outcomes(store, part, row, rate)
            if found:
                kinds[kind][f"{row.name}, {rate:g}"] = found
    return kinds


def _band(axis: object, curves: list, part: Part, style: dict) -> None:
    if not curves:
        axis.plot([], [], **style)
        return
    values = np.array(curves, float)
    at = part.steps * np.arange(1, values.shape[1] + 1) / values.shape[1]
    axis.plot(at, values.mean(axis=0), lw=1.2, **style)
    axis.fill_between(at, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.12, lw=0)


def heat_maps(experiment: Experiment, store: Store, path: pathlib.Path) -> bool:
    """Differences to the baseline over the grid, blue where the method is better; a row per measure.

    Args:
        experiment: with the report "grid".
        store: of what was run.
        path: of the image.

    Returns:
        Whether there was anything to draw.
    """
    rows = [row for row in experiment.rows if row.base]
    figure = new_figure(3.4 * len(rows), 2.6 * len(MEASURES))
    axes = figure.subplots(len(MEASURES), len(rows), squeeze=False)
    drawn = False
    for line, measure in zip(axes, MEASURES, strict=True):
        for axis, row in zip(line, rows, strict=True):
            values = grid_values(experiment, store, row, measure) * (-1 if measure == "accuracy" else 1)
            if not np.isfinite(values).any():
                continue
            drawn, size = True, float(np.nanmax(np.abs(values))) or 1.0
            shown = axis.imshow(values, cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
            axis.set_xticks(range(len(row.rates)), [f"{rate:g}" for rate in row.rates], fontsize=7)
            axis.set_yticks(range(len(experiment.parts)), [part.name for part in experiment.parts], fontsize=7)
            axis.set_title(f"{'minus ' * (measure == 'accuracy')}{measure}: {row.name} - {row.base}", fontsize=7)
            figure.colorbar(shown, ax=axis)
    if drawn:
        figure.savefig(path, dpi=90)
    return drawn


def changes(experiment: Experiment, store: Store, path: pathlib.Path) -> bool:
    """Accuracy minus the baseline's, method by data, blue where the method is better.

    Args:
        experiment: with the report "difference".
        store: of what was run.
        path: of the image.

    Returns:
        Whether there was anything to draw.
    """
    rows = [row for row in experiment.rows if row.base]
    values = accuracy_changes(experiment, store)
    if not np.isfinite(values).any():
        return False
    size = float(np.nanmax(np.abs(values))) or 1.0
    figure = new_figure(1.6 + 1.4 * len(experiment.parts), 0.8 + 0.4 * len(rows))
    axis = figure.subplots()
    shown = axis.imshow(values, cmap="RdBu", vmin=-size, vmax=size, aspect="auto")
    axis.set_xticks(range(len(experiment.parts)), [part.name for part in experiment.parts], fontsize=7)
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
    figure.colorbar(shown, ax=axis, label="accuracy - baseline's")
    figure.savefig(path, dpi=90)
    return True


DRAWN = {"curves": curves, "steps": curves, "grid": heat_maps, "difference": changes}
