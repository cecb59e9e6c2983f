"""Co-states, gradients by complex steps, and Bellman's equation on finite problems."""

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import bellman, game
from verification.claim import at_most, same
from verification.problems.control import (
    Finite,
    arguments,
    as_stage,
    as_value,
)
from verification.problems.networks import Chain


def costates(chain: Chain, sample=0, controls=None):
    """p_0 ... p_T and H_u at every stage by our `expand` with V_x = p and no curvature."""
    chain = chain if controls is None else chain._replace(controls=controls)
    states = chain.states(sample)
    ps, slopes = [chain.terminal_derivatives(states[-1], sample)[0]], []
    for t in reversed(range(len(chain.layers))):
        value = as_value(ps[0], np.zeros((len(ps[0]),) * 2))
        Q = bellman.expand(value, **arguments(chain.stage(t, states[t], second_order=False)))
        ps.insert(0, Q.Q_x.numpy())
        slopes.insert(0, Q.Q_u.numpy())
    return ps, slopes


def gradient(function, z):
    """Of an analytic function, by the complex step."""
    step = 1e-40j * np.eye(len(z))
    return np.array([function(z + e).imag for e in step]) / 1e-40


def cost_of_control(chain: Chain, t, sample=0):
    """J as a function of u_t."""
    return lambda u: chain.cost([*chain.controls[:t], u, *chain.controls[t + 1 :]], sample)


def words(chain: Chain):
    """Cuts a Keras model into stages and compares its layers, weights and loss with the chain of controls."""
    sizes, decay = [layer.rows for layer in chain.layers], 0.125
    layers = [
        keras.layers.Dense(n, activation="tanh", kernel_regularizer=keras.regularizers.L2(decay), dtype="float64")
        for n in sizes
    ]
    model = keras.Sequential([keras.Input([chain.layers[0].cols], dtype="float64"), *layers])
    for made, layer, u in zip(layers, chain.layers, chain.controls, strict=True):
        W, b = layer.split(u)
        made.set_weights([W.T, b])
    cut = game.TracedGame(model)
    yield same([len(stage) for stage in cut.stages], [1] * len(layers), label="one player per stage")
    for stage, layer in zip(cut.stages, chain.layers, strict=True):
        yield same(stage[0].parameters, layer.size, label="controls of a stage")
    outputs = model(chain.inputs)
    ends = np.array([chain.states(i)[-1] for i in range(len(chain.inputs))])
    yield same(outputs, ends, label="activations")
    ours = np.mean([chain.terminal_cost(x, i) for i, x in enumerate(ends)])
    ours += sum(decay * np.sum(layer.split(u)[0] ** 2) for layer, u in zip(chain.layers, chain.controls, strict=True))
    loss = tf.reduce_mean(tf.reduce_sum((outputs - chain.targets) ** 2, axis=1)) / 2 + tf.add_n(model.losses)
    yield same(loss, ours, label="J")


def algorithm_2(chain: Chain):
    """The algorithm letter by letter, and our backward pass without curvature, against the complex step."""
    eta, states = 0.1, chain.states()
    p, updated = chain.terminal_derivatives(states[-1])[0], list(chain.controls)
    stages = []
    for t in reversed(range(len(chain.layers))):
        s = chain.stage(t, states[t], second_order=False)
        updated[t] = chain.controls[t] - eta * (s["f_u"].T @ p + s["l_u"])
        p = s["f_x"].T @ p + s["l_x"]
        first_order = {name: s[name] for name in ("f_x", "f_u", "l_x", "l_u")}
        stages.insert(0, as_stage(first_order, np.eye(chain.layers[t].size) / eta))
    end = chain.terminal_derivatives(states[-1])[0]
    policy, values = bellman.backward_dense(as_value(end, np.zeros((len(end),) * 2)), stages)
    slopes = [gradient(cost_of_control(chain, t), u) for t, u in enumerate(chain.controls)]
    scale = np.linalg.norm(np.concatenate(slopes))
    for u, new, slope, (k, _, _) in zip(chain.controls, updated, slopes, policy, strict=True):
        yield same(new, u - eta * slope, scale=scale, label="u")
        yield same(k, -eta * slope, scale=eta * scale, label="k")
    yield same(values[0].V_x, p, scale=scale, label="p_0")


def bellman_recursion(problem: Finite):
    """V_0 from the recursion over tables, and the cost of its policy, against all sequences of controls."""
    V, policy = [problem.end], []
    for after, running in zip(reversed(problem.after), reversed(problem.running), strict=True):
        Q = running + V[0][after]
        V.insert(0, Q.min(axis=1))
        policy.insert(0, Q.argmin(axis=1))
    for state in range(len(problem.end)):
        best, x, controls = problem.optimum(state), state, []
        for t, rule in enumerate(policy):
            controls.append(rule[x])
            x = problem.after[t, x, controls[-1]]
        size = np.abs(problem.running).sum() + np.abs(problem.end).max()
        yield same(V[0][state], best, scale=size, label="V_0 = J*")
        yield same(problem.cost(state, controls), best, scale=size, label="cost of the policy")
        yield at_most(V[0][state], best, scale=size, label="V_0 <= J")


BELLMAN = (
    "V_t(x) = min_u l_t(x, u) + V_{t+1}(f_t(x, u)), V_T = phi, gives V_0 = J*, and its minimisers an optimal policy"
)


FINITE = "the minima exist; checked with finitely many states and controls, by enumeration"
