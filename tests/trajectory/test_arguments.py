"""Wrong problems, arrays and options are refused, each with its rule and what arrived."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.trajectory import LineSearch, Problem, Regularization
from tests.trajectory.cases import solve, square


def line(**options):
    return Problem(lambda x, u, t: x + u, lambda x, u, t: square(u), square, 3, **options)


def test_wrong_problems_are_refused():
    functions = (lambda x, u, t: x, lambda x, u, t: x[:, 0], lambda x: x[:, 0])
    with pytest.raises(ValueError, match=r"`dynamics` must be callable. Received: dynamics=3"):
        Problem(3, *functions[1:], 3)
    for horizon in (0, 2.5, None):
        with pytest.raises(ValueError, match=r"`horizon` must be an integer >= 1. Received: horizon="):
            Problem(*functions, horizon)
    with pytest.raises(ValueError, match=r"`lower` must be at most `upper` everywhere. Received: lower="):
        line(lower=[1.0, 0.0], upper=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"`upper` must be free of NaN and broadcast to \[T, m\] with T = 3"):
        line(upper=np.nan)
    with pytest.raises(ValueError, match=r"`lower.shape` must fit that of `upper`"):
        line(lower=np.zeros(2), upper=np.ones(3))
    with pytest.raises(ValueError, match=r"`derivatives` must be a `Derivatives` or None"):
        line(derivatives=functions[0])
    x0, u = tf.zeros([1]), tf.zeros([3, 1])
    with pytest.raises(ValueError, match=r"`lower.shape` must broadcast to \[T, m\] = \[3, 1\]"):
        solve(line(lower=np.zeros(2)), x0, u)
    rule = r"must return the shape \[3\]. Received: running_cost=\[\]. Functions see rows"
    with pytest.raises(ValueError, match=f"`running_cost` {rule}"):
        solve(Problem(functions[0], lambda x, u, t: tf.reduce_sum(u), functions[2], 3), x0, u)
    with pytest.raises(ValueError, match=r"`dynamics` must return the shape \[1, 1\]"):
        solve(Problem(lambda x, u, t: tf.concat([x, u], 1), *functions[1:], 3), x0, u)
    with pytest.raises(ValueError, match=r"`terminal_cost` must return the dtype of its state, float32"):
        solve(Problem(*functions[:2], lambda x: tf.cast(x[:, 0], tf.float64), 3), x0, u)


def test_wrong_arguments_are_refused():
    x0, u = tf.zeros([1]), tf.zeros([3, 1])
    problem = line(lower=-1.0, upper=1.0)
    for arguments, text in (
        ((problem, x0, tf.zeros([4, 1])), r"`u_init.shape` must be \[T, m\] or \[B, T, m\] as `x0` is"),
        ((problem, x0[None], u), r"`u_init.shape` must be \[T, m\] or \[B, T, m\] as `x0` is"),
        ((problem, x0[None], tf.zeros([2, 3, 1])), r"`u_init.shape` must be"),
        ((problem, x0[None, None], u), r"`x0.shape` must be \[n\] or \[B, n\]"),
        ((problem, tf.zeros([0]), u), r"`x0.shape` must be"),
        ((problem, tf.zeros([1], tf.int32), u), r"`x0.dtype` must be one of"),
        ((problem, x0, tf.cast(u, tf.float64)), r"`u_init.dtype` must be that of `x0`, float32. Received"),
        ((problem, x0, u + 1.5), r"`u_init` must be within the limits of the problem. Received: u_init='outside by up"),
        ((problem.dynamics, x0, u), r"`problem` must be a `Problem`"),
    ):
        with pytest.raises(ValueError, match=text):
            solve(*arguments)
    for options, text in (
        ({"second_order": 1}, r"`second_order` must be True or False"),
        ({"jit_compile": None}, r"`jit_compile` must be True or False"),
        ({"max_iterations": -1}, r"`max_iterations` must be an integer >= 0"),
        ({"gradient_tolerance": -1.0}, r"`gradient_tolerance` must be a finite number >= 0.0"),
        ({"max_iterations": np.int32(5)}, r"Received: max_iterations=np.int32\(5\). Pass Python's number, `.item\(\)`"),
        ({"gradient_tolerance": np.float32(1e-5)}, r"Pass Python's number, `.item\(\)` of this one"),
        ({"cost_tolerance": float("nan")}, r"`cost_tolerance` must be a finite number >= 0.0"),
        ({"line_search": 0.5}, r"`line_search` must be a `LineSearch` or None"),
        ({"regularization": LineSearch()}, r"`regularization` must be a `Regularization` or None"),
    ):
        with pytest.raises(ValueError, match=text):
            solve(problem, x0, u, **options)
    for make, text in (
        (lambda: Regularization(on="values"), r"`on` must be one of 'control', 'state', 'both'"),
        (lambda: Regularization(largest=1e-9), r"`largest` must be a finite number >= 1e-06"),
        (lambda: Regularization(factor=1.0), r"`factor` must be a finite number > 1.0"),
        (lambda: LineSearch(factor=1.0), r"`factor` must be a finite number > 0.0 and < 1.0"),
        (lambda: LineSearch(trials=0), r"`trials` must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
