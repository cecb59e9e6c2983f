"""Where the layer of a shortcut stands: Sec. 3.2, on the uniqueness of the solution."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from scipy.linalg import block_diag

from bellman_tf import bellman
from verification.claim import measured, same
from verification.papers import GTDDP
from verification.problems.blocks import constants, seeds
from verification.problems.games import Network, random_spd


class Placements(NamedTuple):
    """A shortcut x_r -> h_r x_r + h_v v beside layers, the sum behind the last one: any layer may host the player.

    Attributes:
        layers: (f_x, f_u, l_u, l_uu) of the main path.
        shortcut: (h_r, h_v, l_v, l_vv).
        v, W: value behind the sum.
    """

    layers: list
    shortcut: tuple
    v: np.ndarray
    W: np.ndarray

    def stages(self, host):
        """Jacobians and costs per stage on the state (x, x_r), or (x, h) behind the stage `host`."""
        (h_r, h_v, l_v, l_vv), last, stages = self.shortcut, len(self.layers) - 1, []
        r = h_r.shape[1]
        for t, (f_x, f_u, l_u, l_uu) in enumerate(self.layers):
            carry = h_r if t == host else np.eye(r if t < host else len(h_r))
            F_x, F_u = block_diag(f_x, carry), [np.vstack([f_u, np.zeros((len(carry), f_u.shape[1]))])]
            costs, metrics = [l_u], [l_uu]
            if t == host:
                F_u.append(np.vstack([np.zeros((len(f_x), h_v.shape[1])), h_v]))
                costs, metrics = [l_u, l_v], [l_uu, l_vv]
            if t == last:
                add = np.hstack([np.eye(len(f_x))] * 2)
                F_x, F_u = add @ F_x, [add @ F for F in F_u]
            stages.append((F_x, F_u, costs, metrics))
        return stages

    def policies(self, host):
        """Our gains per stage."""
        value, gains = bellman.Value(*constants((self.v, self.W))), []
        for F_x, F_us, costs, metrics in reversed(self.stages(host)):
            args = {"cost_u": constants(costs), "cost_uu": constants(metrics)}
            expansion = bellman.expand_players(value, tf.constant(F_x), constants(F_us), **args)
            gains.insert(0, bellman.cooperative_gains(expansion))
            value = bellman.cooperative_update(expansion, gains[0])
        return [[(gain.open_loop.numpy(), gain.feedback.numpy()) for gain in stage] for stage in gains]


@st.composite
def placements(draw):
    """Blocks of two or three layers from a small tanh network; sizes, values and metrics of size one."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    depth, n = draw(st.integers(2, 3), label="depth"), draw(st.integers(1, 3), label="n")
    sizes = [n, *rng.integers(1, 4, depth)]
    x, hidden, layers, parameters = rng.standard_normal((1, n)), [], [], []
    state = x
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        u = rng.standard_normal(b * (a + 1)) / np.sqrt(a + 1)
        y, f_x, f_u = Network.layer(state, u, (b, a))
        layers.append((f_x[0], f_u[0], rng.standard_normal(len(u)), random_spd(rng, len(u), 10.0)))
        hidden.append((b, a))
        parameters.append(u)
        state = y
    v = rng.standard_normal(sizes[-1] * (n + 1)) / np.sqrt(n + 1)
    _, h_r, h_v = Network.layer(x, v, (sizes[-1], n))
    shortcut = (h_r[0], h_v[0], rng.standard_normal(len(v)), random_spd(rng, len(v), 10.0))
    end = Placements(layers, shortcut, rng.standard_normal(sizes[-1]), random_spd(rng, sizes[-1], 10.0))
    return end, x, hidden, parameters, v


def linear_roll_out(problem, host, policies):
    """Controls that our gains execute on the linearised dynamics, those of the main path first."""
    state, main, companion = np.zeros(problem.layers[0][0].shape[1] + problem.shortcut[0].shape[1]), [], None
    for t, ((F_x, F_us, _, _), gains) in enumerate(zip(problem.stages(host), policies, strict=True)):
        controls = [k + K @ state for k, K in gains]
        main.append(controls[0])
        companion = controls[1] if t == host else companion
        state = F_x @ state + sum(F_u @ u for F_u, u in zip(F_us, controls, strict=True))
    return np.concatenate([*main, companion])


def nonlinear_roll_out(problem, host, gains, x, shapes, parameters, v):
    """The same on the tanh network itself."""
    step = []
    old, new, r, new_r = x, x, x, x
    rows = len(problem.shortcut[0])
    for t, (shape, u) in enumerate(zip(shapes, parameters, strict=True)):
        d = np.concatenate([(new - old)[0], (new_r - r)[0]])
        controls = [k + K @ d for k, K in gains[t]]
        step.append(controls[0])
        old, new = Network.layer(old, u, shape)[0], Network.layer(new, u + controls[0], shape)[0]
        if t == host:
            companion, shape_r = controls[1], (rows, x.shape[1])
            r, new_r = Network.layer(r, v, shape_r)[0], Network.layer(new_r, v + companion, shape_r)[0]
    return np.concatenate([*step, companion])


@GTDDP.exact(
    "R1",
    "Sec. 3.2",
    "placing h(x_r, v) at different locations along the shortcut gives different weight updates",
    assumes="the nonlinear forward pass, or approximate curvature; with exact curvature on the linearised dynamics "
    "every placement executes the same update",
    remark="The gains do differ; the linear roll-out cannot tell, because each is the minimiser of one joint model. "
    "Catalogue: nonlinear updates differ by 0.11; here, at smaller steps, by about 0.03.",
    over=placements(),
    examples=16,
    ranges={
        "difference of the companion's open gain between placements": (1e-3, 3.0),
        "difference of the nonlinear update between placements": (1e-4, 1.0),
    },
)
def placement(problem):
    """Updates of all placements against the minimiser over all controls; how far the rest is apart."""
    block, *network = problem
    hosts = range(len(block.layers))
    policies = [block.policies(host) for host in hosts]
    linear = [linear_roll_out(block, host, policies[host]) for host in hosts]
    # the joint model, which knows no placement: the last state is affine in all controls
    reach, sensitivity = [], np.eye(len(block.v))
    for f_x, f_u, _, _ in reversed(block.layers):
        reach.insert(0, sensitivity @ f_u)
        sensitivity = sensitivity @ f_x
    _, h_v, l_v, l_vv = block.shortcut
    F_u = np.hstack([*reach, h_v])
    l_uu = block_diag(*[layer[3] for layer in block.layers], l_vv)
    H = l_uu + F_u.T @ block.W @ F_u
    truth = -np.linalg.solve(H, np.concatenate([*[layer[2] for layer in block.layers], l_v]) + F_u.T @ block.v)
    for update in linear:
        yield same(update, truth, condition=np.linalg.cond(H), label="linear roll-out")
    first, last = (policies[host][host][1][0] for host in (0, len(block.layers) - 1))
    gap = np.linalg.norm(first - last) / np.linalg.norm(last)
    yield measured(gap, "difference of the companion's open gain between placements")
    first, last = (nonlinear_roll_out(block, host, policies[host], *network) for host in (0, len(block.layers) - 1))
    gap = np.linalg.norm(first - last) / np.linalg.norm(last)
    yield measured(gap, "difference of the nonlinear update between placements")
