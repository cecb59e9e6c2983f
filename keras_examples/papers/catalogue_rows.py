"""Methods that several tables share, and the learning rates of DDPNOpt Table 4 = DGNOpt Table 8."""

import dataclasses
from collections.abc import Mapping, Sequence

from keras_examples.papers.calls import Call, call
from keras_examples.papers.experiment import Printed, Row, published

SGD_RATES = (0.07, 0.2, 0.5)
ADAPTIVE_RATES = (0.0007, 0.003, 0.01)
EKFAC_RATES = (0.01, 0.05, 0.3)
SHARES = (0.3, 1.0)

SGD = Row("SGD", call("keras.optimizers.SGD"), SGD_RATES)
RMSPROP = Row("RMSprop", call("keras.optimizers.RMSprop"), ADAPTIVE_RATES)
ADAM = Row("Adam", call("keras.optimizers.Adam"), ADAPTIVE_RATES)
KFAC = Row("KFAC", published("KFAC", ""), EKFAC_RATES)
EKFAC = Row("EKFAC", published("EKFAC", ""), EKFAC_RATES)
# What the papers ran: eigenbases and scalings of one batch, damping 0.1 on the scalings.
EKFAC_CITED = Row("EKFAC, as cited", call("btf.EKFAC.as_cited"), (0.03, 0.1, 0.3))
KWNG = Row("KWNG", call("btf.baselines.KWNG"), (0.03, 0.1, 0.3))
EMSA = Row("E-MSA", call("btf.baselines.EMSA", rho=1.0, iterations=5), SHARES)
BASELINES = (SGD, RMSPROP, ADAM, EKFAC)
CURVATURES: Mapping[str, str] = {"SGD": "identity", "RMSprop": "rmsprop", "Adam": "adam", "EKFAC": "ekfac"}


def beside(base: Row, name: str, optimizer: str, paper: str, **options: object) -> Row:
    """A paper's method with the curvature of a baseline, at that one's rates.

    Args:
        base: the baseline.
        name: of the method.
        optimizer: its class.
        paper: whose form it takes.
        **options: of `as_published`.

    Returns:
        The row.
    """
    options = {"curvature": CURVATURES[base.name]} | options
    return Row(name, published(optimizer, paper, **options), base.rates, base=base.name)


def timed(*rows: Row) -> tuple[Row, ...]:
    """The rows at their lowest rate alone: the time of a step does not depend on it."""
    return tuple(dataclasses.replace(row, rates=row.rates[:1]) for row in rows)


def rescaled() -> Call:
    """EKFAC with the curvature that a partner leaves (GT-DDP Cor. 7)."""
    return call("btf.curvature.EKFAC", cooperative="rescale", convolution="patches")


def printed(part: str, rows: Sequence[Row], **measures: Sequence[float | None]) -> Printed:
    """What a paper prints for one part.

    Args:
        part: its name.
        rows: in the order of the numbers.
        **measures: name of a measure to one number per row, None where the paper has none.

    Returns:
        (part, row) -> numbers by measure.
    """
    names = [row.name for row in rows]
    return {
        (part, name): {measure: values[k] for measure, values in measures.items() if values[k] is not None}
        for k, name in enumerate(names)
    }
