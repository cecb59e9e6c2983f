"""Derivatives without a step size to choose: f(z + i h) = f(z) + i h f'(z) + O(h^2), and h = 1e-30 leaves no O(h^2)."""

import numpy as np

STEP = 1e-30


def jacobian(function, z):
    """Jacobian of a real-analytic function that accepts complex arguments.

    Args:
        function: `[n]` to a number or an array.
        z: `[n]`.

    Returns:
        Derivatives, the shape of the function's value plus a last axis `[n]`.
    """
    z = np.asarray(z, np.float64)
    columns = [np.imag(function(z + 1j * STEP * e)) / STEP for e in np.eye(len(z))]
    return np.stack(columns, axis=-1) if columns else np.zeros((*np.shape(function(z)), 0))


def backpropagate(chain, controls=None, t=0, x=None, sample=0):
    """Gradients of the cost from stage t on, J_t(x; u_t ... u_{T-1}), by the chain rule; complex arguments pass.

    Args:
        chain: has `layers`, `controls`, `running`, `states`, `terminal_derivatives`.
        controls: instead of the chain's own.
        t: first stage.
        x: state before it; `None` is the nominal one.
        sample: index of the sample.

    Returns:
        States x_t ... x_T, gradients in them, and gradients in the controls u_t ... u_{T-1}.
    """
    controls = chain.controls if controls is None else controls
    states = [chain.states(sample, controls)[t] if x is None else x]
    for layer, u in zip(chain.layers[t:], controls[t:], strict=True):
        states.append(layer(states[-1], u))
    J_x, J_u = [chain.terminal_derivatives(states[-1], sample)[0]], []
    for s in reversed(range(t, len(chain.layers))):
        x, u, (l, L) = states[s - t], controls[s], chain.running[s]
        d, cost = chain.layers[s].derivatives(x, u), l + L @ np.concatenate([x, u])
        J_u.insert(0, cost[len(x) :] + d.f_u.T @ J_x[0])
        J_x.insert(0, cost[: len(x)] + d.f_x.T @ J_x[0])
    return states, J_x, J_u
