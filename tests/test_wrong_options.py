"""Every option of every public constructor answers a wrong type or value in the house form, or takes it."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf

HOUSE = re.compile(r"`[^`]+` must .+Received: ", re.DOTALL)


class Unequal:
    """Neither to be hashed nor to be compared."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("compared")


# Made anew for every use: Keras changes dictionaries that it reads.
WRONG = (
    *(lambda value=value: value for value in ("x", "", -1, 0, 2.5, float("nan"), float("inf"), True, 1 + 2j)),
    *(lambda value=value: value for value in (np.float32(-1), np.array([1.0, 2.0]), tf.constant([1.0, 2.0]))),
    list,
    lambda: (1,),
    lambda: {1},
    dict,
    lambda: {"a": 1},
    lambda: {"class_name": "Nope", "config": {}},
    lambda: {"class_name": "Adam", "config": {"nope": 1}},
    object,
    Unequal,
)
FUNCTIONS = {
    "dynamics": lambda x, u, t: x,
    "running_cost": lambda x, u, t: x[:, 0],
    "terminal_cost": lambda x: x[:, 0],
    "horizon": 3,
}
DATA = {"x": np.zeros((4, 2)), "y": np.zeros(4)}
OPTIMIZERS = (btf.GTDDP, btf.DDP, btf.DDPNOpt, btf.DGNOpt, btf.KFAC, btf.EKFAC, btf.baselines.EMSA, btf.baselines.KWNG)
MAKERS = {
    **{cls.__name__: (cls, {}) for cls in (*OPTIMIZERS, btf.LevenbergMarquardt)},
    **{f"{cls.__name__}.as_published": (cls.as_published, {}) for cls in (btf.GTDDP, btf.DGNOpt, btf.DDP)},
    "EKFAC.as_cited": (btf.EKFAC.as_cited, {}),
    **{
        f"{module.__name__.split('.')[1]}.{name}": (getattr(module, name), {})
        for module in (btf.curvature, btf.bandit)
        for name in module.__all__
        if inspect.isclass(getattr(module, name)) and not name.endswith("State")
    },
    "Problem": (btf.trajectory.Problem, FUNCTIONS),
    **{name: (getattr(btf.trajectory, name), {}) for name in ("Regularization", "LineSearch", "AugmentedLagrangian")},
    "GameMonitor": (btf.callbacks.GameMonitor, {}),
    "AlignmentReward": (btf.callbacks.AlignmentReward, DATA),
    "as_game": (btf.as_game, {}),
}


def names_of(make):
    """The options by name; those that pass through `**options` are `GTDDP`'s."""
    parameters = inspect.signature(make).parameters.values()
    named = [p.name for p in parameters if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
    passed = ("information", "terminal_hessian", "value_damping", "alignment", "curvature", "gram")
    return [*named, *(passed if getattr(make, "__name__", "") == "as_published" else ())]


@pytest.mark.parametrize("name", MAKERS)
def test_a_wrong_option_is_answered_in_the_house_form(name):
    make, others = MAKERS[name]
    refused, odd = 0, []
    for option in names_of(make):
        for wrong in WRONG:
            value = wrong()
            try:
                make(**{**others, option: value})
            except (TypeError, ValueError) as error:
                refused += 1
                unknown = isinstance(error, TypeError) and "unexpected keyword" in str(error)
                if not unknown and not (isinstance(error, ValueError) and HOUSE.match(str(error))):
                    odd.append(f"{option}={value!r}: {type(error).__name__}: {str(error)[:80]}")
    assert not odd
    assert refused or not names_of(make)


@pytest.mark.parametrize("field", ["dynamics", "running_cost", "terminal_cost"])
def test_derivatives_that_are_no_functions_are_refused(field):
    with pytest.raises(ValueError, match=rf"`derivatives.{field}` must be callable or None. Received: "):
        btf.trajectory.Problem(**FUNCTIONS, derivatives=btf.trajectory.Derivatives(**{field: 3}))


@pytest.mark.parametrize("field", ["dynamics", "running_cost", "terminal_cost"])
def test_a_function_that_returns_nothing_is_named(field):
    problem = btf.trajectory.Problem(**{**FUNCTIONS, field: lambda *_: None})
    with pytest.raises(ValueError, match=rf"`{field}` must return a tensor \[.*Received: {field}=None"):
        btf.trajectory.solve(problem, tf.zeros([1]), tf.zeros([3, 1]), jit_compile=False)


@pytest.mark.parametrize("options", [{}, {"information": "open"}, {"rollout": "nonlinear"}])
def test_a_batch_without_inputs_is_refused(options):
    model = btf.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(btf.GTDDP(**options), "mse")
    with pytest.raises(ValueError, match=r"`x` must hold a tensor, one row per sample. Received: x=None"):
        model.train_on_batch(None, DATA["y"])


def test_a_number_of_numpy_is_no_learning_rate_as_in_keras_and_says_what_is():
    with pytest.raises(ValueError, match="LearningRateSchedule"):
        keras.optimizers.SGD(np.float32(0.1))
    with pytest.raises(
        ValueError, match=r"`learning_rate` must be a number, .*Of a number of NumPy or TensorFlow take"
    ):
        btf.GTDDP(np.float32(0.1))
