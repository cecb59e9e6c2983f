"""Small models of every kind that people write, each with a batch and a loss; Keras's own result is the truth."""

from tests.zoo.case import Case, sgd_step
from tests.zoo.functional import FUNCTIONAL
from tests.zoo.losses import LOSSES
from tests.zoo.rows import ROWS
from tests.zoo.stateful import STATEFUL
from tests.zoo.subclassed import SUBCLASSED

ZOO = {**FUNCTIONAL, **SUBCLASSED, **ROWS, **STATEFUL, **LOSSES}
