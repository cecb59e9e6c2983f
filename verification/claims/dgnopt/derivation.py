"""Complete derivation of the updates: Eqs. 19-24."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from verification.claim import Counterexample, same
from verification.derivations.recursions import cooperate, group_expansion, stacked, value_of
from verification.papers import DGN
from verification.problems.dynamic_games import LinearGame, linear_games
from verification.problems.matrices import Partitioned, partitioned_spd
from verification.problems.quadratics import Quadratic, quadratics
from verification.references import dense, schur


def bordered(Q, value, corner=2.0):
    """The matrix of (19) in [1, dx, dtheta] with this multiple of Q in the corner."""
    Q_x, Q_u, Q_xx, Q_ux, Q_uu = map(np.asarray, Q)
    linear = np.concatenate([Q_x, Q_u])[:, None]
    return np.block([[np.full((1, 1), corner * value), linear.T], [linear, np.block([[Q_xx, Q_ux.T], [Q_ux, Q_uu]])]])


@DGN.misprint(
    "E19",
    "Eq. 19",
    "Q_{t,n} ~ half the quadratic form in [1, dx, dtheta], with the derivatives by the chain rule",
    assumes="linear dynamics",
    remark="Harmless: the constant drops out of the gains. The main text prints the same.",
    printed="Q ~ 1/2 [1 dx dtheta]' [[Q, Q_x', Q_theta'], [Q_x, ...]] [1 dx dtheta]",
    corrected="the corner of the matrix is 2 Q",
    derivation="At dx = 0, dtheta = 0 the form is half the corner, and it must be Q. The linear terms appear twice in"
    " the symmetric form, so the half is right for them, as it is for the quadratic ones.",
    origin="paper",
    over=linear_games(max_depth=1),
    counterexample=lambda: Counterexample("dx = dtheta = 0 and Q = 1: the value of the form", 0.5, 1.0, 1.0),
)
def expansion(game: LinearGame):
    """Half the form with our derivatives against l + V o F evaluated at moved points."""
    (stage,) = game.stages
    n = stage.f_x.shape[1]
    for p, f_u in enumerate(stage.f_us):
        Q = bellman.expand(value_of(game.v, game.W), stage.f_x, f_u, cost_u=stage.l_us[p], cost_uu=stage.l_uus[p])
        for point in np.eye(1 + n + f_u.shape[1])[1:] + 0.3:
            dx, du = point[1 : 1 + n], point[1 + n :]
            end = stage.f_x @ dx + f_u @ du
            own = stage.l_us[p] @ du + du @ stage.l_uus[p] @ du / 2
            truth = 1.0 + own + game.v @ end + end @ game.W @ end / 2  # Q = 1 at the nominal point
            z = np.concatenate([[1.0], dx, du])
            M = bordered(Q, 1.0)
            yield same(z @ M @ z / 2, truth, scale=np.linalg.norm(M) * (z @ z), label="quadratic form")


@DGN.exact(
    "E20",
    "Eq. 20",
    "V ~ Q - 1/2 Q_theta' Q_theta,theta^{-1} Q_theta at dx = 0",
    remark="Differentiating x -> Q - 1/2 Q_theta' Q_theta,theta^{-1} Q_theta with Q_theta,theta frozen gives (10).",
    over=quadratics(),
)
def value_at_the_point(problem: Quadratic):
    """The formula as a function of x: its value at 0, and its two derivatives against our update."""
    n, (g, H) = problem.n, (problem.gradient, problem.hessian)
    Q = problem.expansion()
    gains = bellman.gains(Q)
    k, V = gains.open_loop.numpy(), bellman.value_update(Q, gains)
    decrease = Q.Q_u.numpy() @ k + k @ Q.Q_uu.numpy() @ k / 2

    def formula(x):
        slope = g[n:] + H[n:, :n] @ x
        return g[:n] @ x + x @ H[:n, :n] @ x / 2 - slope @ np.linalg.solve(H[n:, n:], slope) / 2

    at_zero, condition = formula(np.zeros(n)), problem.condition
    yield same(decrease, at_zero, condition=condition, label="Q - 1/2 Q_u' Q_uu^{-1} Q_u")
    E, half = np.eye(n), 0.5
    first = [(formula(half * e) - formula(-half * e)) for e in E]  # central differences are exact for a quadratic
    cross = np.array([[formula(e + d) - formula(e) - formula(d) + at_zero for d in E] for e in E])
    scale = np.linalg.norm(g) * (1 + np.linalg.norm(k)) + np.linalg.norm(H)
    yield same(V.V_x, first, condition=condition, scale=scale, label="V_x")
    yield same(V.V_xx, cross, condition=condition, scale=scale, label="V_xx")


@DGN.exact(
    "E21",
    "Eq. 21",
    "the joint update is the (pseudo-)inverse of the players' block matrix on (P_u, P_v) + (P_ux, P_vx) dx",
    assumes="P_theta in the range of P_theta,theta when that is singular, as it is for a Gauss-Newton matrix",
    over=partitioned_spd(max_condition=1e8, dtype=st.just(np.float64)),
)
def joint_solution(problem: Partitioned):
    """Ours against the assembled system; with a singular Gauss-Newton matrix the pseudo-inverse is a minimiser."""
    ours = linalg.cooperative_solve([[tf.constant(b) for b in row] for row in problem.blocks], problem.rhs)
    truth, condition = schur.cooperative_solve(problem.blocks, problem.rhs), np.linalg.cond(problem.joint)
    yield same(np.concatenate(ours), np.concatenate(truth), condition=condition, label="joint update")
    J = problem.joint[: max(1, len(problem.joint) // 2)] / np.linalg.norm(problem.joint)
    slope = J.T @ np.ones(len(J))
    step = np.linalg.pinv(J.T @ J, rcond=1e-12, hermitian=True) @ slope
    spectrum = np.linalg.svd(J, compute_uv=False)
    if spectrum[-1] > 1e-4:  # far from the cut of the pseudo-inverse
        condition = (spectrum[0] / spectrum[-1]) ** 2
        yield same(J.T @ (J @ step), slope, condition=condition, label="stationary with the pseudo-inverse")


def printed_blocks(P_uu, P_uv, P_vu, P_vv):
    """(22) letter by letter, every inverse a pseudo-inverse."""
    pinv = np.linalg.pinv
    first, second = pinv(P_uu - P_uv @ pinv(P_vv) @ P_vu), pinv(P_vv - P_vu @ pinv(P_uu) @ P_uv)
    return np.block([[first, -first @ P_uv @ pinv(P_vv)], [-second @ P_vu @ pinv(P_uu), second]])


@DGN.misprint(
    "E22",
    "Eq. 22",
    "the blocks of the pseudo-inverse by Schur complements, diagonal blocks (P_uu - P_uv P_vv^+ P_vu)^+",
    assumes="nonsingular blocks and Schur complements: damp first",
    printed="[[P_uu, P_uv], [P_vu, P_vv]]^+ has the (u, u) block (P_uu - P_uv P_vv^+ P_vu)^+ and the off-diagonal"
    " -P~_uu^+ P_uv P_vv^+",
    corrected="the same with inverses; for a singular matrix L L' of full column rank L: L (L'L)^{-2} L'",
    derivation=(
        "Block elimination multiplies by P_vv^{-1} and by the inverse of the Schur complement. With pseudo-inverses"
        " the product of the triangular factors is no longer the pseudo-inverse. Identical undamped players show it:"
        " P_uu = P_uv = P_vv = 1 has the Schur complement 0, whose pseudo-inverse is 0, so the printed step is zero."
    ),
    origin="paper",
    over=partitioned_spd(players=st.just(2), max_condition=1e8, dtype=st.just(np.float64)),
    counterexample=lambda: Counterexample(
        "two identical scalar players, undamped, [[1, 1], [1, 1]]: the pseudo-inverse, printed and true, all entries",
        printed=printed_blocks(*np.ones((4, 1, 1))),
        corrected=np.outer([1.0, 1.0], [1.0, 1.0]) / 2**2,
        truth=np.linalg.pinv(np.ones((2, 2))),
    ),
)
def block_inverse(problem: Partitioned):
    """Our three blocks against the inverse; the printed (v, u) block, from the other complement, too."""
    (A, B), (_, D) = problem.blocks
    condition, truth = np.linalg.cond(problem.joint), schur.block_inverse(A, B, D)
    ours = linalg.block_inverse(*map(tf.constant, (A, B, D)))
    size = np.linalg.norm(np.linalg.inv(problem.joint))
    for label, block, expected in zip(("(u, u)", "(u, v)", "(v, v)"), ours, truth, strict=True):
        yield same(block, expected, condition=condition, scale=size, label=label)
    other = linalg.schur_complement(*map(tf.constant, (D, B.T, A)))
    printed = -np.linalg.solve(other.numpy(), B.T @ np.linalg.inv(A))
    yield same(printed, truth[1].T, condition=condition**2, scale=size, label="(v, u) by the other complement")


@DGN.exact(
    "E23",
    "Eq. 23",
    "W ~ P - 1/2 P_theta' P_theta,theta^{-1} P_theta at dx = 0",
    over=linear_games(max_depth=1, max_log_condition=6),
)
def group_value(game: LinearGame):
    """The model at our joint step against the formula."""
    (stage,) = game.stages
    P = group_expansion(value_of(game.v, game.W), stage)
    k, _ = stacked(bellman.cooperative_gains(P))
    slope = np.concatenate(P.Q_u)
    joint = stage.joint()["l_uu"] + np.hstack(stage.f_us).T @ game.W @ np.hstack(stage.f_us)
    model = slope @ k + k @ joint @ k / 2
    yield same(model, -slope @ np.linalg.solve(joint, slope) / 2, condition=game.condition(), label="W - P")


@DGN.exact(
    "E24",
    "Eq. 24",
    "W_x = P_x - 1/2 (P_xu k~ + P_xv I~ + K~' P_u + L~' P_v), W_xx = P_xx - P_xu K~ - P_xv L~",
    assumes="the gains of (11)",
    remark="The two halves are equal: P_xu k~ + P_xv I~ = P_x,theta P_theta,theta^{-1} P_theta = (K~' P_u + L~' P_v)."
    " With gains from another matrix they are not, and (24) is one choice of several.",
    over=linear_games(),
)
def group_value_derivatives(game: LinearGame):
    """Ours against the joint policy inserted in the joint model; the two halves against each other."""
    policies, values = cooperate(game)
    for t, stage in enumerate(game.stages):
        P = group_expansion(values[t + 1], stage)
        pair = (values[t + 1].V_x.numpy(), values[t + 1].V_xx.numpy())
        gradient, hessian = dense.expand(*pair, **stage.joint())
        n = stage.f_x.shape[1]
        truth = dense.follow(gradient, hessian, *dense.minimise(gradient, hessian, n))
        condition = np.linalg.cond(hessian[n:, n:])
        yield same(values[t].V_x, truth[0], condition=condition, scale=np.linalg.norm(gradient), label="W_x")
        yield same(values[t].V_xx, truth[1], condition=condition, scale=np.linalg.norm(hessian), label="W_xx")
        k, K = stacked(policies[t])
        first, second = np.concatenate(P.Q_ux).T @ k, K.T @ np.concatenate(P.Q_u)
        yield same(first, second, condition=condition, scale=np.linalg.norm(gradient), label="the two halves")
