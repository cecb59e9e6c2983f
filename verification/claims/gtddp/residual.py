"""Identity shortcuts: the skip gain, and what a block does to the value (Eqs. 7-12, 32-34)."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import measured, same
from verification.papers import GTDDP
from verification.problems.blocks import Block, JointStage, joint_stages, residual_blocks
from verification.references import dense, residual

LINEAR = "linearised dynamics; no running cost in the state"


def sweep(block):
    """Our recursion over a block: gains and joint values per stage, the joint value behind it last."""
    gains, joints = [], [bellman.enter_block(block.value())]
    for t in reversed(range(len(block.stages))):
        jacobians, costs = block.core(t)
        policy, joint = bellman.backward_block(joints[0], *jacobians, **costs)
        gains.insert(0, policy)
        joints.insert(0, joint)
    return gains, joints


def chain_recursion(block):
    """The same stages without a shortcut, in plain NumPy: (Q gradient, Q Hessian, k, K, v, W) before each stage."""
    v, W, steps = block.v, block.W, []
    for f_x, f_u, l_u, l_uu in reversed(block.stages):
        gradient, hessian = dense.expand(v, W, f_x, f_u, l_u=l_u, l_uu=l_uu)
        k, K = dense.minimise(gradient, hessian, f_x.shape[1])
        v, W = dense.follow(gradient, hessian, k, K)
        steps.insert(0, (gradient, hessian, k, K, v, W))
    return steps


@GTDDP.exact(
    "E7",
    "Eq. 7",
    "V(x_{t_s}) = min over u_{t_s} ... u_{t_f} of sum_t l_t(u_t) + V_{t_f+1}(x_r + f_{t_f}(... f_{t_s}(x_{t_s}, u) "
    "...))",
    assumes=LINEAR,
    over=residual_blocks(),
)
def all_controls_of_the_block(block: Block):
    """Our value before the block against the joint minimisation over all of its controls."""
    ours = bellman.leave_block(sweep(block)[1][0])
    _, _, v, W = dense.whole_horizon(block.v, block.W, block.horizon)
    size = block.size + np.linalg.norm(block.v)
    yield same(ours.V_x, v, condition=block.condition, scale=size, label="V_x")
    yield same(ours.V_xx, W, condition=block.condition, scale=block.size, label="V_xx")


def last_stage(block: Block):
    """Our value at t_f against the minimiser for the map (x, x_r, u) -> x_r + f(x, u)."""
    (f_x, f_u, l_u, l_uu), r = block.stages[-1], len(block.v)
    F_x = np.hstack([f_x, np.eye(r)])
    gradient, hessian = dense.expand(block.v, block.W, F_x, f_u, l_u=l_u, l_uu=l_uu)
    jacobians, costs = block.core(-1)
    gains, joint = bellman.backward_block(bellman.enter_block(block.value()), *jacobians, **costs)
    yield from same_joint(gains, joint, gradient, hessian, block.condition)


def inner_stage(stage: JointStage):
    """Our value against the minimiser for the map (x, x_r, u) -> (f(x, u), x_r), from any joint value."""
    gradient, hessian = dense.expand(stage.v, stage.W, stage.F_x, stage.F_u, l_u=stage.l_u, l_uu=stage.l_uu)
    gains, joint = backward(stage)
    yield from same_joint(gains, joint, gradient, hessian, stage.condition)


def first_stage(stage: JointStage):
    """Our value against the minimiser for the map (x, u) -> (f(x, u), x), from any joint value."""
    F_x = np.vstack([stage.f_x, np.eye(stage.r)])
    gradient, hessian = dense.expand(stage.v, stage.W, F_x, stage.F_u, l_u=stage.l_u, l_uu=stage.l_uu)
    k, K = dense.minimise(gradient, hessian, stage.r)
    v, W = dense.follow(gradient, hessian, k, K)
    gains, joint = backward(stage)
    ours = bellman.leave_block(joint)
    yield same(gains.open_loop, k, condition=stage.condition, label="k")
    yield same(gains.feedback + gains.skip, K, condition=stage.condition, label="K + G", scale=gain_size(gains))
    yield same(ours.V_x, v, condition=stage.condition, scale=np.linalg.norm(gradient), label="V_x")
    yield same(ours.V_xx, W, condition=stage.condition, scale=stage.size, label="V_xx")


def backward(stage):
    """Our step for a `JointStage`."""
    f_x, f_u, l_u, l_uu = map(tf.constant, (stage.f_x, stage.f_u, stage.l_u, stage.l_uu))
    return bellman.backward_block(stage.joint_value(), f_x, f_u, cost_u=l_u, cost_uu=l_uu)


def gain_size(gains):
    """Of K and G together."""
    return np.linalg.norm(gains.feedback) + np.linalg.norm(gains.skip)


def same_joint(gains, joint, gradient, hessian, condition):
    """Our gains and joint value against the minimiser of a quadratic in (x, x_r, u)."""
    n, r = len(joint.V_x), len(joint.V_r)
    k, K = dense.minimise(gradient, hessian, n + r)
    v, W = dense.follow(gradient, hessian, k, K)
    ours = np.hstack([gains.feedback, gains.skip])
    yield same(gains.open_loop, k, condition=condition, label="k")
    yield same(ours, K, condition=condition, label="[K G]")
    v_size, size = np.linalg.norm(gradient), np.linalg.norm(hessian)
    yield same(np.concatenate([joint.V_x, joint.V_r]), v, condition=condition, scale=v_size, label="V_x, V_r")
    W_ours = np.block([[joint.V_xx.numpy(), joint.V_xr.numpy()], [joint.V_xr.numpy().T, joint.V_rr.numpy()]])
    yield same(W_ours, W, condition=condition, scale=size, label="V_xx, V_xr, V_rr")


for key, place, statement, over, check in (
    ("E8a", "Eq. 8a", "at t_f: V(x_r, x) = min_u l(u) + V_{t_f+1}(x_r + f(x, u))", residual_blocks(), last_stage),
    ("E8b", "Eq. 8b", "t_s < t < t_f: V_t(x_r, x) = min_u l(u) + V_{t+1}(x_r, f(x, u))", joint_stages(), inner_stage),
    (
        "E8c",
        "Eq. 8c",
        "at t_s: V(x) = min_u l(u) + V_{t_s+1}(x, f(x, u))",
        joint_stages(split=True),
        first_stage,
    ),
):
    GTDDP.exact(key, place, statement, assumes=LINEAR, over=over)(check)


@GTDDP.exact(
    "E9",
    "Eq. 9",
    "du = k + K dx + G dx_r with G = -Q_uu^{-1} f_u' V'_{x x_r}; k and K as without the shortcut",
    assumes=LINEAR,
    remark="At t_s the two differentials coincide and the gain is K + G.",
    over=residual_blocks(),
)
def skip_gain(block: Block):
    """Ours against G as printed, and against the recursion on the stacked state."""
    gains, joints = sweep(block)
    truth = residual.joint_block(block.v, block.W, block.stages)
    for t, (stage, chain) in enumerate(zip(block.stages, chain_recursion(block), strict=True)):
        f_u, (_, hessian, k, K, _, _), n = stage[1], chain, stage[0].shape[1]
        G = -np.linalg.solve(hessian[n:, n:], f_u.T @ joints[t + 1].V_xr.numpy())
        size = gain_size(gains[t])
        yield same(gains[t].open_loop, k, condition=block.condition, label="k")
        yield same(gains[t].feedback, K, condition=block.condition, scale=size, label="K")
        yield same(gains[t].skip, G, condition=block.condition, scale=size, label="G")
        yield same(np.hstack([gains[t].feedback, gains[t].skip]), truth[t][1], condition=block.condition, label="[K G]")


@GTDDP.exact(
    "E10",
    "Eq. 10",
    "V_{x x_r} = f_x' V'_{x x_r} - K' Q_uu G, V_{x_r x_r} = V'_{x_r x_r} - G' Q_uu G, both starting from V_xx at t_f "
    "+ 1",
    assumes=LINEAR,
    remark="Signs as printed.",
    over=residual_blocks(),
)
def second_order_skip_values(block: Block):
    """Ours against the printed recursion, and against the blocks of the stacked recursion."""
    gains, joints = sweep(block)
    truth = residual.joint_block(block.v, block.W, block.stages)
    V_xr = V_rr = block.W
    yield same(joints[-1].V_xr, block.W, label="start of V_xr")
    yield same(joints[-1].V_rr, block.W, label="start of V_rr")
    for t, chain in reversed(list(enumerate(chain_recursion(block)))):
        n, f_x, f_u = block.stages[t][0].shape[1], block.stages[t][0], block.stages[t][1]
        Q_uu, K = chain[1][n:, n:], chain[3]
        G = -np.linalg.solve(Q_uu, f_u.T @ V_xr)
        V_xr, V_rr = f_x.T @ V_xr - K.T @ Q_uu @ G, V_rr - G.T @ Q_uu @ G
        rest = {"condition": block.condition, "scale": block.size + np.linalg.norm(block.W)}
        yield same(joints[t].V_xr, V_xr, label="V_xr as printed", **rest)
        yield same(joints[t].V_rr, V_rr, label="V_rr as printed", **rest)
        yield same(joints[t].V_xr, truth[t][3][:n, n:], label="V_xr", **rest)
        yield same(joints[t].V_rr, truth[t][3][n:, n:], label="V_rr", **rest)


def first_order_of_the_block(block: Block):
    """Ours, Eq. 11 as printed, and the joint minimisation."""
    ours = bellman.leave_block(sweep(block)[1][0]).V_x
    printed = residual.proposition_2(block.v, block.W, block.stages)[0]
    truth = dense.whole_horizon(block.v, block.W, block.horizon)[2]
    size = block.size + np.linalg.norm(block.v)
    yield same(ours, printed, condition=block.condition, scale=size, label="as printed")
    yield same(ours, truth, condition=block.condition, scale=size, label="joint minimisation")


def second_order_of_the_block(block: Block):
    """Ours, Eq. 12 as printed, and the joint minimisation."""
    ours = bellman.leave_block(sweep(block)[1][0]).V_xx
    printed = residual.proposition_2(block.v, block.W, block.stages)[1]
    truth = dense.whole_horizon(block.v, block.W, block.horizon)[3]
    yield same(ours, printed, condition=block.condition, scale=block.size, label="as printed")
    yield same(ours, truth, condition=block.condition, scale=block.size, label="joint minimisation")


CHAIN_VALUE = "V^ is the chain recursion from V_{t_f+1} along the residual network's own trajectory; sums over t_s..t_f"
V_X = "V_x at t_s = chain's V_x at t_s + V_x at t_f+1 - sum_t G_t' Q_uu k_t"
V_XX = (
    "V_xx at t_s = chain's V_xx at t_s + V_xx at t_f+1 - sum_t G_t' Q_uu G_t + V_{x x_r} + V_{x x_r}', "
    "the last two at t_s"
)
GTDDP.exact("E11", "Eq. 11", V_X, assumes=f"{LINEAR}; {CHAIN_VALUE}", over=residual_blocks())(first_order_of_the_block)
GTDDP.exact("E12", "Eq. 12", V_XX, assumes=f"{LINEAR}; {CHAIN_VALUE}", over=residual_blocks())(
    second_order_of_the_block
)


@GTDDP.exact(
    "P2",
    "Prop. 2",
    f"{V_X}; {V_XX}",
    assumes=f"{LINEAR}; {CHAIN_VALUE}",
    remark="Minus signs are right (Catalogue: error 0.84 relative to the truth with plus signs). The chain's value is "
    "not that of a plain network simulated on its own.",
    over=residual_blocks(),
    ranges={"Eq. 12 with plus signs, relative to the larger of both": (0.05, 2.0)},
)
def proposition_2(block: Block):
    """Both equations, and how wrong the second is with the opposite signs."""
    yield from first_order_of_the_block(block)
    yield from second_order_of_the_block(block)
    if np.any(block.W):
        truth = dense.whole_horizon(block.v, block.W, block.horizon)[3]
        saved = sum(
            gains.skip.numpy().T @ chain[1][-chain[3].shape[0] :, -chain[3].shape[0] :] @ gains.skip.numpy()
            for gains, chain in zip(sweep(block)[0], chain_recursion(block), strict=True)
        )
        larger = max(np.linalg.norm(truth), np.linalg.norm(truth + 2 * saved))
        yield measured(2 * np.linalg.norm(saved) / larger, "Eq. 12 with plus signs, relative to the larger of both")


def split_values(block):
    """What Eqs. 32 and 33 start from, in NumPy: at t_s the chain's expansion and gains, Q_uu, G, and V' of x_r."""
    steps = residual.joint_block(block.v, block.W, block.stages)
    (f_x, f_u, _, _), (_, hessian, k, K, v, W) = block.stages[0], chain_recursion(block)[0]
    r, n = len(block.v), f_x.shape[1]
    if len(steps) > 1:
        v_joint, W_joint = steps[1][2:]
        v_r, V_xr, V_rr = v_joint[-r:], W_joint[:-r, -r:], W_joint[-r:, -r:]
    else:
        v_r, V_xr, V_rr = block.v, block.W, block.W
    Q_uu = hessian[n:, n:]
    return f_x, K, k, Q_uu, -np.linalg.solve(Q_uu, f_u.T @ V_xr), (v, W), (v_r, V_xr, V_rr)


@GTDDP.exact(
    "E32",
    "Eq. 32",
    "proof of Eq. 11: V_x at t_s = (Q_x + Q_xu k) + (V'_{x_r} - G' Q_uu k) = chain's V_x + V_{x_r} at t_s, unrolled",
    assumes=f"{LINEAR}; {CHAIN_VALUE}",
    over=residual_blocks(),
)
def proof_of_the_first_order(block: Block):
    """The lines of the proof against our value before the block."""
    _, _, k, Q_uu, G, (v, _), (v_r, _, _) = split_values(block)
    joint = sweep(block)[1][0]
    ours = bellman.leave_block(joint).V_x
    rest = {"condition": block.condition, "scale": block.size + np.linalg.norm(block.v)}
    yield same(ours, v + (v_r - G.T @ Q_uu @ k), label="second line", **rest)
    yield same(ours, v + joint.V_r.numpy(), label="third line", **rest)
    yield same(ours, residual.proposition_2(block.v, block.W, block.stages)[0], label="last line", **rest)


@GTDDP.exact(
    "E33",
    "Eq. 33",
    "proof of Eq. 12: V_xx at t_s = (Q_xx + Q_xu K) + (f_x' V'_{x x_r} - K' Q_uu G) + transpose + (V'_{x_r x_r} - "
    "G' Q_uu G) = chain's V_xx + V_{x x_r} + V_{x x_r}' + V_{x_r x_r} at t_s, unrolled",
    assumes=f"{LINEAR}; {CHAIN_VALUE}",
    over=residual_blocks(),
)
def proof_of_the_second_order(block: Block):
    """The lines of the proof against our value before the block."""
    f_x, K, _, Q_uu, G, (_, W), (_, V_xr, V_rr) = split_values(block)
    joint = sweep(block)[1][0]
    ours = bellman.leave_block(joint).V_xx
    rest = {"condition": block.condition, "scale": block.size}
    cross = f_x.T @ V_xr - K.T @ Q_uu @ G
    yield same(ours, W + cross + cross.T + V_rr - G.T @ Q_uu @ G, label="second line", **rest)
    cross = joint.V_xr.numpy()
    yield same(ours, W + cross + cross.T + joint.V_rr.numpy(), label="third line", **rest)
    yield same(ours, residual.proposition_2(block.v, block.W, block.stages)[1], label="last line", **rest)


@GTDDP.exact(
    "E34",
    "Eq. 34",
    "V_{x_r} = V'_{x_r} - G' Q_uu k, with V_{x x_r} and V_{x_r x_r} as in Eq. 10 and their starts at t_f + 1",
    assumes=LINEAR,
    over=residual_blocks(),
)
def first_order_skip_value(block: Block):
    """Ours against the printed recursion and against the stacked one."""
    gains, joints = sweep(block)
    truth = residual.joint_block(block.v, block.W, block.stages)
    V_r, r = block.v, len(block.v)
    yield same(joints[-1].V_r, block.v, label="start")
    for t, chain in reversed(list(enumerate(chain_recursion(block)))):
        n = block.stages[t][0].shape[1]
        V_r = V_r - gains[t].skip.numpy().T @ chain[1][n:, n:] @ chain[2]
        rest = {"condition": block.condition, "scale": block.size + np.linalg.norm(block.v)}
        yield same(joints[t].V_r, V_r, label="as printed", **rest)
        yield same(joints[t].V_r, truth[t][2][-r:], label="stacked recursion", **rest)
        yield same(joints[t].V_rr, truth[t][3][-r:, -r:], label="V_rr", **rest)
