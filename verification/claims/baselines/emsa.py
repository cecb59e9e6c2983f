"""The error of one step of successive approximations: Li, Chen, Tai, E 2018, Lemma 2, in discrete time."""

import numpy as np

from verification.claim import same
from verification.papers import BASE
from verification.problems.networks import Chain, chains


def co_states(chain: Chain, controls):
    """p_0 ... p_T along the trajectory of some controls."""
    states = chain.states(0, controls)
    p = [chain.terminal_derivatives(states[-1])[0]]
    for t in reversed(range(len(controls))):
        p.insert(0, chain.layers[t].derivatives(states[t], controls[t]).f_x.T @ p[0])
    return states, p


@BASE.exact(
    "EMSA-L2",
    "Li et al. 2018, Lemma 2",
    "J(phi) - J(theta) = sum_t dH_t + sum_{t>0} d(H_z)_t . dz_t + second order in dz; the gaps enter the bound squared",
    assumes="affine layers and square loss, where the second order is dz_T' dz_T / 2; dz_0 = 0",
    remark="So the adjoint penalty of Eq. 35 has no part at t = 0, where no layer in front can have moved z_0.",
    over=chains(activations=("identity",), terminals=("square",), running=("none",)),
)
def decrease(chain: Chain):
    """The identity term by term, with other controls of every size; and that dz is made of the gaps behind."""
    states, p = co_states(chain, chain.controls)
    rng = np.random.default_rng(0)
    for size in (1e-2, 1.0):
        other = [u + size * rng.standard_normal(len(u)) for u in chain.controls]
        moved = chain.states(0, other)
        terms, reached = [], np.zeros_like(states[0])
        for t, (layer, old, new) in enumerate(zip(chain.layers, chain.controls, other, strict=True)):
            gap = layer(states[t], new) - layer(states[t], old)
            slope = (layer.split(new)[0] - layer.split(old)[0]).T @ p[t + 1]
            terms.append(p[t + 1] @ gap)
            if t > 0:
                terms.append(slope @ (moved[t] - states[t]))
            reached = layer.split(new)[0] @ reached + gap
        deviation = moved[-1] - states[-1]
        terms.append(deviation @ deviation / 2)
        scale = sum(map(abs, terms)) + chain.cost(other) + chain.cost()
        yield same(sum(terms), chain.cost(other) - chain.cost(), scale=scale, label="J(phi) - J(theta)")
        growth = np.prod([1 + np.linalg.norm(layer.split(u)[0]) for layer, u in zip(chain.layers, other, strict=True)])
        unit = growth * (np.linalg.norm(moved[-1]) + np.linalg.norm(states[-1]) + np.linalg.norm(states[0]) + 1)
        yield same(reached, deviation, scale=unit, label="dz from the gaps behind")
