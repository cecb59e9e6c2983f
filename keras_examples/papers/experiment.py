"""An experiment of a paper: what is trained on what, at which rates, what the paper prints, and which cells come next.

Cells are planned in two stages: every method at every learning rate on the first seeds, then at the rate with the
lowest train loss, and at its baseline's, on all seeds. Without a first stage (`tune` = 0) the whole grid is run.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bellman_tf import _checks
from keras_examples.papers.calls import Call, call
from keras_examples.papers.cells import CONSTANT, Cell, Outcome, Store

QUICK_STEPS, QUICK_ROWS = 20, 2


@dataclasses.dataclass(frozen=True)
class Part:
    """A network on its data.

    Attributes:
        name: what tables call it.
        data: name of the data.
        network: its function.
        batch: B.
        steps: of a run; no paper but GT-DDP Fig. 7b and DGNOpt Table 3 states them.
        share: of the training part.
        schedule: of the learning rate.
        watch: whether the test accuracy is measured between.
        small: the network of a quick run.
        level: test accuracy to reach, in per cent, where steps are counted.
    """

    name: str
    data: str
    network: Call
    batch: int
    steps: int
    share: float = 1.0
    schedule: str = CONSTANT
    watch: bool = False
    small: Call | None = None
    level: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        name: the paper's.
        method: makes the optimizer.
        rates: learning rates to try.
        base: name of the row that it is compared with at the same rate; None for a baseline.
        reward: whether the alignment is rewarded with held-out data.
        only: names of the parts that it is run on; all by default.
    """

    name: str
    method: Call
    rates: tuple[float, ...]
    base: str | None = None
    reward: bool = False
    only: tuple[str, ...] = ()


Printed = Mapping[tuple[str, str], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: on the command line.
        place: paper and number.
        shows: what the paper says that it shows.
        parts: networks and data.
        rows: methods.
        seeds: of a full run, as many as the paper has.
        report: one of `reports.REPORTS`.
        tune: seeds on which every rate is tried; 0 runs all rates on all seeds.
        printed: (part, row) -> what the paper prints, by measure.
        perturbed: also run the rate above the best of the baseline.
        also: another command of the examples that asks the same with a control, if there is one.
    """

    name: str
    place: str
    shows: str
    parts: tuple[Part, ...]
    rows: tuple[Row, ...]
    seeds: int
    report: str
    tune: int = 2
    printed: Printed = dataclasses.field(default_factory=dict)
    perturbed: bool = False
    also: str = ""

    def rows_of(self, part: Part) -> list[Row]:
        """The methods of a part."""
        return [row for row in self.rows if not row.only or part.name in row.only]

    def base_of(self, row: Row) -> Row | None:
        """The row that another is compared with."""
        return next((each for each in self.rows if each.name == row.base), None)

    def cell(self, part: Part, row: Row, rate: float, seed: int) -> Cell:
        """One run."""
        return Cell(
            part.data, part.network, part.batch, part.steps, row.method, rate, seed, part.share, part.schedule,
            part.watch, row.reward,
        )  # fmt: skip

    def outcomes(self, store: Store, part: Part, row: Row, rate: float) -> list[Outcome]:
        """What the runs at one rate gave, seed by seed, as far as there are any without a gap."""
        found = []
        for seed in range(self.seeds):
            cell = self.cell(part, row, rate, seed)
            if cell not in store:
                break
            found.append(store[cell])
        return found

    def best_rate(self, store: Store, part: Part, row: Row) -> float | None:
        """The rate with the lowest mean train loss on the tuning seeds; None while a rate has none of them."""
        means = {}
        for rate in row.rates:
            found = self.outcomes(store, part, row, rate)[: self.tune or self.seeds]
            if not found:
                return None
            means[rate] = sum(outcome.loss for outcome in found) / len(found)
        return min(means, key=lambda rate: means[rate] if math.isfinite(means[rate]) else math.inf)

    def rates_to_report(self, store: Store, part: Part, row: Row) -> list[float]:
        """The row's best rate, its baseline's and the perturbed one; none while they are not known."""
        base = self.base_of(row)
        best = [self.best_rate(store, part, each) for each in (row, base) if each is not None]
        if self.perturbed:
            best.append(self.perturbed_rate(store, part, base or row))
        return list(dict.fromkeys(rate for rate in best if rate is not None))

    def perturbed_rate(self, store: Store, part: Part, row: Row) -> float | None:
        """The next larger rate above the best one; beyond its end the grid goes on by its last ratio."""
        best, rates = self.best_rate(store, part, row), sorted(row.rates)
        if best is None or len(rates) < 2:
            return best
        return float(f"{best * best / rates[-2]:.2g}") if best == rates[-1] else rates[rates.index(best) + 1]

    def next_cells(self, store: Store) -> list[Cell]:
        """The cells of the next stage that are missing; none when the experiment is complete.

        Args:
            store: of what was run.

        Returns:
            The cells, those of one compiled step together.
        """
        missing = []
        for part in self.parts:
            tuned = [
                self.cell(part, row, rate, seed)
                for row in self.rows_of(part)
                for rate in row.rates
                for seed in range(min(self.tune or self.seeds, self.seeds))
            ]
            missing += [cell for cell in tuned if cell not in store]
        if missing:
            return missing
        finals = [
            self.cell(part, row, rate, seed)
            for part in self.parts
            for row in self.rows_of(part)
            for rate in self.rates_to_report(store, part, row)
            for seed in range(self.seeds)
        ]
        return [cell for cell in finals if cell not in store]

    def quick(self) -> "Experiment":
        """The same in less than a minute: the first part, on data that need no directory, few methods and steps."""
        part = self.parts[0]
        data = part.data if part.data in ("wine", "iris") else "digits"
        small = dataclasses.replace(
            part, name=data.upper(), data=data, network=part.small or part.network, batch=min(part.batch, 16),
            steps=QUICK_STEPS, share=1.0, level=20.0 if part.level else 0.0,
        )  # fmt: skip
        own = self.rows_of(part)
        kept = own[:QUICK_ROWS]
        if not any(row.base for row in kept):
            kept += [row for row in own if row.base in {each.name for each in kept}][:1]
        rows = tuple(dataclasses.replace(row, rates=row.rates[:1], only=()) for row in kept)
        return dataclasses.replace(self, parts=(small,), rows=rows, seeds=2, tune=0)

    def with_steps(self, steps: int | None) -> "Experiment":
        """The same with runs of another length."""
        if steps is None:
            return self
        parts = tuple(dataclasses.replace(part, steps=steps) for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def at_rates(self, rates: Sequence[float] | None) -> "Experiment":
        """The same at some of its learning rates; methods that have none of them are left out.

        Args:
            rates: all by default.

        Returns:
            The experiment.

        Raises:
            ValueError: if no method has one of them.
        """
        if not rates:
            return self
        rows = [dataclasses.replace(row, rates=tuple(rate for rate in row.rates if rate in rates)) for row in self.rows]
        kept = tuple(row for row in rows if row.rates)
        if not kept:
            known = sorted({rate for row in self.rows for rate in row.rates})
            raise _checks.error("--rates", f"be among {known} for {self.name}", list(rates))
        return dataclasses.replace(self, rows=kept)

    def with_seeds(self, seeds: int) -> "Experiment":
        """The same with so many runs of everything."""
        return dataclasses.replace(self, seeds=seeds, tune=min(self.tune, seeds))

    def restricted(self, parts: Sequence[str] | None, rows: Sequence[str] | None) -> "Experiment":
        """The same with some of its parts and methods.

        Args:
            parts: names; all by default.
            rows: names; all by default.

        Returns:
            The experiment.

        Raises:
            ValueError: for a name that it does not have.
        """
        changes = {}
        for field, names in (("parts", parts), ("rows", rows)):
            own = {each.name: each for each in getattr(self, field)}
            unknown = [name for name in names or () if name not in own]
            if unknown:
                raise _checks.error(f"--{field}", f"be among {list(own)} for {self.name}", unknown)
            if names:
                changes[field] = tuple(own[name] for name in names)
        return dataclasses.replace(self, **changes)


def published(name: str, paper: str, **options: object) -> Call:
    """`btf.NAME.as_published` of a paper."""
    return call(f"btf.{name}.as_published", **({"paper": paper} if paper else {}), **options)
