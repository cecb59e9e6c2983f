"""Open-loop equilibria, Pontryagin's principle, gradients: Defs. 1, 8, Prop. 2, Thm. 7, Lemma 10, Eqs. 5, 18, 34-36."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import Counterexample, same
from verification.derivations.recursions import value_of
from verification.papers import DGN
from verification.problems.networks import Chain, chains
from verification.problems.objectives import STEP, Objective, objectives


def hamiltonians(problem: Objective, count=1.0):
    """Adjoint recursion by our expansion with V_xx = 0, on the joint state of one sample.

    Returns:
        Per stage the joint expansion (Q_x = p_t, Q_u = H_theta), the co-state behind it, and the scale of its sums.
    """
    states, jacobians = problem.network.forward(problem.inputs)
    p, stages = count * problem.terminal_derivatives(states[-1])[0][0], []
    for t in reversed(range(len(jacobians))):
        f_x, f_us = jacobians[t][0][0], [f_u[0] for f_u in jacobians[t][1]]
        own = [problem.decay * u for u in problem.parameters[t]]
        H = bellman.expand_players(value_of(p, np.zeros((len(p),) * 2)), f_x, f_us, cost_u=own)
        scale = max(np.linalg.norm(J) for J in [f_x, *f_us]) * np.linalg.norm(p) + max(map(np.linalg.norm, own))
        stages.insert(0, (H, p, scale))
        p = H.Q_x.numpy()
    return stages


def stationarity(problem: Objective, count=1.0):
    """H_theta of every stage and player against the gradient of the objective by the complex step."""
    gradients = problem.gradient(count=count)
    for (H, _, scale), stage in zip(hamiltonians(problem, count), gradients, strict=True):
        for H_theta, gradient in zip(H.Q_u, stage, strict=True):
            yield same(H_theta, gradient, scale=scale, label="H_theta = dL/dtheta")


def adjoint(problem: Objective, count=1.0):
    """The co-state before every stage against the gradient of the terminal cost in the joint state."""
    states = problem.network.forward(problem.inputs)[0]
    for t, (H, _, scale) in enumerate(hamiltonians(problem, count)):
        truth = problem.state_gradient(t, states[t], count)[0]
        yield same(H.Q_x, truth, scale=scale, label="p_t = dphi/dx_t")


def maximised_hamiltonian(count: int) -> Counterexample:
    """One stage f = theta^2, phi = (x - 5)^2 / 2 counted `count` times, l = 4 count |theta|."""
    L = np.polynomial.Polynomial([25 / 2, 4, -5, 0, 1 / 2])  # (theta^2 - 5)^2 / 2 + 4 theta, theta >= 0
    roots = L.deriv().roots()
    roots = np.append(roots[np.isreal(roots) & (roots.real > 0)].real, 0.0)
    best = roots[np.argmin(L(roots))]
    grid = np.linspace(0, 3, 3001)
    H = count * (4 * grid + (best**2 - 5) * grid**2)  # p = phi_x at the optimum, fixed
    stationary = -4 / (2 * (best**2 - 5))
    return Counterexample(
        f"f(theta) = theta^2, phi = (x - 5)^2 / 2 counted {count} times, l = {4 * count} |theta|, |theta| <= 3. L has"
        " its minimum at |theta| = 2, with p = -1 per count; there H = 4 |theta| - theta^2 has its maximum",
        printed=grid[np.argmin(H)],
        corrected=stationary,
        truth=best,
    )


ARGMIN = {
    "printed": "theta* = argmin_theta H(x, p, theta)",
    "corrected": "H_theta = 0 at theta*; theta* is the minimiser of H if H is convex in theta",
    "derivation": (
        "p_t = dL/dx_t along the trajectory, so by the chain rule dL/dtheta_t = l_theta + f_theta' p_{t+1} = H_theta."
        " A minimum of L therefore makes H_theta zero. It need not minimise H: the second derivative of L in theta_t"
        " is H_theta,theta + f_theta' (V_xx) f_theta, and the curvature of the costs behind can make up for a concave"
        " H (the continuous-time principle, where the second term is of higher order in the step, does not carry"
        " over)."
    ),
    "origin": "paper",
}


@DGN.misprint(
    "D1",
    "Definition 1",
    "open-loop Nash equilibrium: theta*_{t,n} minimises the Hamiltonian H_{t,n} of its player",
    assumes="phi_n = phi and l_{t,n} = l(theta_{t,n}) in the check",
    remark="As a definition of an equilibrium of the game (3) it is too strong; no equilibrium may exist.",
    over=objectives(),
    counterexample=lambda: maximised_hamiltonian(1),
    **ARGMIN,
)
def open_loop_nash(problem: Objective):
    """Stationarity of the Hamiltonian is stationarity of L_n."""
    yield from stationarity(problem)


@DGN.definition(
    "E5",
    "Eq. 5",
    "H_{t,n} = l_{t,n} + F_t' p_{t+1,n} with (p_{t,n}, p_{T,n}) = (H_x, phi_x)",
    remark="The minimum over theta in Eq. 5: see D1. With phi_n = phi and l = l(theta) all p_{t,n} coincide.",
    over=objectives(),
)
def hamiltonian(problem: Objective):
    """p_t is the gradient of the terminal cost in the joint state before t."""
    yield from adjoint(problem)


@DGN.exact(
    "P2",
    "Proposition 2",
    "H_theta is the plain gradient of each layer, so M = I is SGD, diag(sqrt(H o H)) RMSprop, H H' Gauss-Newton",
    assumes="joint states: p_t stacks the back-propagated gradients of all parallel paths",
    remark="As printed, with one gradient and no average, the second choice gives sign(H) and the third H / |H|^2; the"
    " methods named need expectations over the batch, running averages and damping.",
    over=objectives(),
)
def gradients_of_layers(problem: Objective):
    """The gradient identity, and what the printed preconditioners literally do."""
    yield from stationarity(problem)
    for H, _, _ in hamiltonians(problem):
        for H_theta in map(np.asarray, H.Q_u):
            zero = np.zeros((len(H_theta), 1))
            Q = bellman.Expansion(
                zero[0], tf.constant(H_theta), zero[:1], tf.constant(zero), tf.constant(np.diag(zero[:, 0]))
            )
            plain = bellman.gains(Q, tf.eye(len(H_theta), dtype=tf.float64)).open_loop
            yield same(plain, -H_theta, label="M = I")
            if np.all(H_theta != 0):
                scaled = bellman.gains(Q, tf.constant(np.diag(np.sqrt(H_theta * H_theta)))).open_loop
                yield same(scaled, -np.sign(H_theta), label="M = diag(sqrt(H o H))")
            size = H_theta @ H_theta
            rank_one = np.linalg.pinv(np.outer(H_theta, H_theta), rcond=1e-10, hermitian=True) @ H_theta
            yield same(rank_one, H_theta / (size or 1.0), label="M = H H'")


@DGN.misprint(
    "T7",
    "Theorem 7 (PP), Eq. 18c",
    "Pontryagin's principle in discrete time: the optimal theta_t minimises the Hamiltonian",
    remark="Eqs. 18a and 18b are exact (E18).",
    over=objectives(shortcuts=(False,)),
    counterexample=lambda: maximised_hamiltonian(1),
    **ARGMIN,
)
def pontryagin(problem: Objective):
    """Stationarity on chains."""
    yield from stationarity(problem)


@DGN.exact(
    "E18",
    "Eqs. 18a, 18b",
    "along the trajectory z_{t+1} = dH/dp and p_t = dH/dz, p_T = dphi/dz",
    remark="(18c), the minimum of H: T7.",
    over=objectives(shortcuts=(False,)),
)
def states_and_costates(problem: Objective):
    """dH/dp by the complex step is the next state; the adjoint equation is back-propagation."""
    states = problem.network.forward(problem.inputs)[0]
    for t, (_, p, _) in enumerate(hamiltonians(problem)):
        following = problem.network.stage(t, states[t], problem.parameters[t])[0][0]
        moved = [p.astype(complex) + 1j * STEP * e for e in np.eye(len(p))]
        yield same([(following @ m).imag / STEP for m in moved], states[t + 1][0], label="dH/dp = z_{t+1}")
    yield from adjoint(problem)


@DGN.misprint(
    "D8",
    "Definition 8",
    "cooperative open loop: all players minimise H~_t = sum_n l_{t,n} + F_t' p~_{t+1}, p~_T = sum_n dphi_n/dx",
    remark="With phi_n = phi the co-state is N times that of one player: the players count phi N times.",
    over=objectives(),
    counterexample=lambda: maximised_hamiltonian(2),
    **ARGMIN,
)
def cooperative_open_loop(problem: Objective):
    """Stationarity for the terminal cost counted N times; the co-state is N times the single one."""
    N = max(len(stage) for stage in problem.parameters)
    yield from stationarity(problem, count=N)
    for (group, _, scale), (single, _, _) in zip(hamiltonians(problem, N), hamiltonians(problem), strict=True):
        yield same(group.Q_x, N * single.Q_x, scale=scale, label="p~ = N p")


def first_order(problem: Objective):
    """Backward pass with Q_theta,x := 0, Q_theta,theta := I: Q_theta and its truth, gains, V_x and its truth, scale."""
    states, jacobians = problem.network.forward(problem.inputs)
    gradients, (g, W) = problem.gradient(), problem.terminal_derivatives(states[-1])
    values = [value_of(g[0], W[0])] * max(len(us) for us in problem.parameters)
    for t, (_, _, scale) in reversed(list(enumerate(hamiltonians(problem)))):
        f_x, f_us = jacobians[t][0][0], [f_u[0] for f_u in jacobians[t][1]]
        p = problem.state_gradient(t, states[t])[0]
        for n, f_u in enumerate(f_us):
            Q = bellman.expand(values[n], f_x, f_u, cost_u=problem.decay * problem.parameters[t][n])
            Q = Q._replace(Q_ux=0 * Q.Q_ux)
            gains = bellman.gains(Q, tf.eye(f_u.shape[1], dtype=tf.float64))
            values[n] = bellman.value_update(Q, gains)
            yield Q.Q_u, gradients[t][n], gains, values[n].V_x, p, scale
        for n in range(len(f_us), len(values)):  # who does not act here
            values[n] = bellman.Value(
                tf.constant(f_x.T @ values[n].V_x.numpy()), tf.eye(f_x.shape[1], dtype=tf.float64)
            )


@DGN.exact(
    "L10",
    "Lemma 10",
    "with Q_theta,x := 0 and Q_theta,theta := I at all stages, the FNE value has V_x = p",
    over=objectives(),
)
def value_is_costate(problem: Objective):
    """V_x of every player against the co-state."""
    for _, _, _, V_x, p, scale in first_order(problem):
        yield same(V_x, p, scale=scale, label="V_x = p")


@DGN.exact(
    "E34",
    "Eq. 34",
    "Q_theta = H_theta and V_x = p under the conditions of Lemma 10",
    over=objectives(),
)
def objective_gradients(problem: Objective):
    """Q_theta of every player against H_theta."""
    for Q_theta, H_theta, _, _, _, scale in first_order(problem):
        yield same(Q_theta, H_theta, scale=scale, label="Q_theta = H_theta")


def augmented(chain: Chain, t, u, rho, squared=True):
    """H^rho of stage t at the feasible (z, p) of the chain's own controls, as a function of u."""
    states, p, layer = chain.states(), co_states(chain), chain.layers[t]
    W = layer.split(u)[0]
    feasible = states[t + 1] - layer(states[t], u)
    adjoint_gap = p[t] - W.T @ p[t + 1]  # identity activation: f_z = W
    penalties = [np.sum(gap * gap) for gap in (feasible, adjoint_gap)]
    total = sum(penalties) if squared else sum(map(np.sqrt, penalties))
    return chain.running_cost(t, states[t], u) + layer(states[t], u) @ p[t + 1] + rho / 2 * total


def co_states(chain: Chain):
    """p_0 ... p_T of a chain of affine layers."""
    p = [chain.terminal_derivatives(chain.states()[-1])[0]]
    for layer, u in zip(reversed(chain.layers), reversed(chain.controls), strict=True):
        p.insert(0, layer.split(u)[0].T @ p[0])
    return p


def kinked_penalty() -> Counterexample:
    """One stage f = theta at theta = 0 with p = 1 and rho = 4."""
    steps = np.linspace(-1, 1, 4001)
    unsquared, squared = steps + 2 * np.abs(steps), steps + 2 * steps**2
    return Counterexample(
        "one stage z' = z + theta at theta = 0, p = 1, rho = 4, no running cost. Step of the minimiser: |theta| holds"
        " it at the kink although H_theta = 1; with the square it is -p / rho = -1/4",
        printed=steps[np.argmin(unsquared)],
        corrected=steps[np.argmin(squared)],
        truth=-0.25,
    )


@DGN.misprint(
    "E35",
    "Eq. 35",
    "augmented Hamiltonian of EMSA: H + rho/2 |z' - f| + rho/2 |p - H_z|",
    printed="H^rho = H + rho/2 |z_{t+1} - f_t|_2 + rho/2 |p_t - H_z|_2, norms not squared",
    corrected="H^rho = H + rho/2 |z_{t+1} - f_t|_2^2 + rho/2 |p_t - H_z|_2^2",
    derivation=(
        "At a feasible trajectory both gaps vanish. The squares have derivative zero there, so the derivative of H^rho"
        " is H_theta and every minimiser of H^rho that stays put is stationary. A norm has a kink there: for rho/2 >"
        " |f_theta^{-'} H_theta| the present theta minimises H^rho whatever H_theta is, and the method stands still."
        " The method cited (Li et al., 2017) squares the norms."
    ),
    origin="undecidable",
    over=chains(activations=("identity",), running=("none", "control")),
    counterexample=kinked_penalty,
)
def augmentation(chain: Chain):
    """With squares the derivative of H^rho at a feasible trajectory is H_theta."""
    p, states = co_states(chain), chain.states()
    for t, u in enumerate(chain.controls):
        stage = chain.stage(t, states[t], second_order=False)
        Q = bellman.expand(value_of(p[t + 1], np.eye(len(p[t + 1]))), stage["f_x"], stage["f_u"], cost_u=stage["l_u"])
        gradient = [augmented(chain, t, u + 1j * STEP * e, 3.0).imag / STEP for e in np.eye(len(u))]
        scale = np.linalg.norm(stage["f_u"]) * np.linalg.norm(p[t + 1]) + np.linalg.norm(stage["l_u"])
        yield same(Q.Q_u, gradient, scale=scale, label="dH^rho / dtheta")


@DGN.definition(
    "E36",
    "Eq. 36",
    "EMSA: theta_t minimises H^rho with (z, p) fixed, norms squared",
    remark="On affine layers H^rho is quadratic in theta, and its Hessian penalises f_theta and p f_theta,z.",
    over=chains(activations=("identity",), running=("control",)),
)
def method_of_successive_approximations(chain: Chain):
    """Our gains with the Hessian of the penalties as metric end where the derivative of H^rho vanishes."""
    rho, p, states = 3.0, co_states(chain), chain.states()
    for t, u in enumerate(chain.controls):
        stage = chain.stage(t, states[t])
        Q = bellman.expand(value_of(p[t + 1], np.eye(len(p[t + 1]))), stage["f_x"], stage["f_u"], cost_u=stage["l_u"])
        mixed = np.einsum("i,ijk->jk", p[t + 1], stage["f_ux"])
        penalty = stage["f_u"].T @ stage["f_u"] + mixed @ mixed.T
        metric = stage["l_uu"] + rho * penalty
        step = bellman.gains(Q, tf.constant(metric)).open_loop.numpy()
        end = [augmented(chain, t, u + step + 1j * STEP * e, rho).imag / STEP for e in np.eye(len(u))]
        scale = np.linalg.norm(metric) * (np.linalg.norm(step) + np.linalg.norm(u)) + np.linalg.norm(Q.Q_u)
        yield same(end, np.zeros(len(u)), condition=np.linalg.cond(metric), scale=scale, label="derivative at the end")
