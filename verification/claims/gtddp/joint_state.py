"""The joint state (x, x_r) written out: its Jacobians, expansions, policy and value (Eqs. 25-31)."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import same
from verification.claims.gtddp.residual import LINEAR, backward, same_joint
from verification.papers import GTDDP
from verification.problems.blocks import JointStage, joint_stages, seeds
from verification.problems.networks import Chain, Layer, chains
from verification.references import complex_step, dense


@GTDDP.exact(
    "E25",
    "Eq. 25",
    "Q_x = l_x + f_x' V'_x, Q_u likewise; Q_xx = l_xx + f_x' V'_xx f_x + V'_x . f_xx, Q_ux and Q_uu likewise",
    over=st.tuples(chains(max_depth=1), seeds),
)
def chain_rule(problem: tuple[Chain, int]):
    """Our expansion with all tensors against complex-step derivatives of l(x, u) + V'(f(x, u))."""
    chain, seed = problem
    (layer,), (u,), x = chain.layers, chain.controls, chain.inputs[0]
    y, rng, n = layer(x, u), np.random.default_rng(seed), len(x)
    v, R = rng.normal(size=len(y)), rng.normal(size=(len(y), len(y)))
    W, (l, L) = R + R.T, chain.running[0]

    def Q(z):
        d = layer(z[:n], z[n:]) - y
        return l @ z + z @ L @ z / 2 + v @ d + d @ W @ d / 2

    def gradient(z):
        d = layer.derivatives(z[:n], z[n:])
        return l + L @ z + np.hstack([d.f_x, d.f_u]).T @ (v + W @ (layer(z[:n], z[n:]) - y))

    s = {name: tf.constant(array) for name, array in chain.stage(0, x).items()}
    names = {k: k.replace("f_", "dynamics_").replace("l_", "cost_") for k in s if k not in {"f_x", "f_u"}}
    value = bellman.Value(tf.constant(v), tf.constant(W))
    ours = bellman.expand(value, s["f_x"], s["f_u"], **{names[k]: s[k] for k in names})
    z = np.concatenate([x, u])
    first, H = complex_step.jacobian(Q, z), complex_step.jacobian(gradient, z)
    size = np.linalg.norm(W) + np.linalg.norm(v) + np.linalg.norm(L) * np.linalg.norm(z)
    yield same(np.concatenate([ours.Q_x, ours.Q_u]), first, scale=size, label="Q_x, Q_u")
    joint = np.block([[ours.Q_xx.numpy(), ours.Q_ux.numpy().T], [ours.Q_ux.numpy(), ours.Q_uu.numpy()]])
    yield same(joint, H, scale=size * (1 + z @ z), label="Q_xx, Q_ux, Q_uu")


def _merge(layer, n, r):
    return lambda z: layer(z[:n], z[n + r :]) + z[n : n + r]


def _carry(layer, n, r):
    return lambda z: np.concatenate([layer(z[:n], z[n + r :]), z[n : n + r]])


def _split(layer, n, r):
    return lambda z: np.concatenate([layer(z[:n], z[n:]), z[:n]])


def joint_jacobian_check(position):
    """The check of one line of Eq. 26."""
    augmented = {"a": _merge, "b": _carry, "c": _split}[position]

    def joint_jacobian(problem: tuple[int, int, int, str]):
        """Printed Jacobian against the complex step through the map; expansion through it against our block's."""
        seed, n, r, activation = problem
        rng = np.random.default_rng(seed)
        r, layer = (n, Layer(2, n, activation)) if position == "c" else (r, Layer(r, n, activation))
        x, u, x_r = rng.normal(size=n), rng.normal(size=layer.size), rng.normal(size=r)
        d = layer.derivatives(x, u)
        printed = {
            "a": (np.hstack([d.f_x, np.eye(layer.rows)]), d.f_u),
            "b": (np.block([[d.f_x, np.zeros((layer.rows, r))], [np.zeros((r, n)), np.eye(r)]]), None),
            "c": (np.vstack([d.f_x, np.eye(n)]), None),
        }[position]
        f_x = printed[0]
        f_u = d.f_u if position == "a" else np.vstack([d.f_u, np.zeros((r, layer.size))])
        z = np.concatenate([x, u] if position == "c" else [x, x_r, u])
        truth = complex_step.jacobian(augmented(layer, n, r), z)
        yield same(np.hstack([f_x, f_u]), truth, label="Jacobians", scale=1.0)
        # Ours never forms them: its result is the expansion through them.
        v, W = rng.normal(size=len(f_x)), np.cov(rng.normal(size=(len(f_x), 9))).reshape(len(f_x), len(f_x))
        gradient, hessian = dense.expand(v, W, f_x, f_u, l_uu=np.eye(layer.size))
        jacobians, cost = (tf.constant(d.f_x), tf.constant(d.f_u)), tf.eye(layer.size, dtype=tf.float64)
        if position == "a":
            joint = bellman.enter_block(bellman.Value(tf.constant(v), tf.constant(W)))
        else:
            joint = JointStage(v, W, d.f_x, d.f_u, np.zeros(layer.size), np.eye(layer.size)).joint_value()
        gains, before = bellman.backward_block(joint, *jacobians, cost_uu=cost)
        condition = np.linalg.cond(hessian[f_x.shape[1] :, f_x.shape[1] :])
        if position != "c":
            yield from same_joint(gains, before, gradient, hessian, condition)
            return
        k, K = dense.minimise(gradient, hessian, n)
        V_xx = dense.follow(gradient, hessian, k, K)[1]
        ours = bellman.leave_block(before).V_xx
        yield same(ours, V_xx, condition=condition, scale=np.linalg.norm(hessian), label="V_xx")

    return joint_jacobian


for position, where, statement in (
    ("a", "t_f", "[f_x I] in (x, x_r) and f_u"),
    ("b", "t_s < t < t_f", "blkdiag(f_x, I) and [f_u; 0]"),
    ("c", "t_s", "[f_x; I] and [f_u; 0]"),
):
    GTDDP.exact(
        f"E26{position}",
        f"Eq. 26{position}",
        f"Jacobians of the joint dynamics at {where}: {statement}",
        over=st.tuples(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from(["tanh", "relu", "sigmoid"])),
    )(joint_jacobian_check(position))


def joint_expansions(stage):
    """Our `expand` through the joint Jacobians, our `expand` of the chain, and the joint one in NumPy."""
    n = len(stage.f_x)
    costs = {"cost_u": tf.constant(stage.l_u), "cost_uu": tf.constant(stage.l_uu)}
    joint = bellman.Value(tf.constant(stage.v), tf.constant(stage.W))
    chain = bellman.Value(tf.constant(stage.v[:n]), tf.constant(stage.W[:n, :n]))
    Q_joint = bellman.expand(joint, tf.constant(stage.F_x), tf.constant(stage.F_u), **costs)
    Q = bellman.expand(chain, tf.constant(stage.f_x), tf.constant(stage.f_u), **costs)
    truth = dense.expand(stage.v, stage.W, stage.F_x, stage.F_u, l_u=stage.l_u, l_uu=stage.l_uu)
    return Q_joint, Q, truth


def printed_joint_terms(stage, Q):
    """Right-hand sides of Eq. 27, from the chain's terms."""
    n = len(stage.f_x)
    v_r, V_xr, V_rr = stage.v[n:], stage.W[:n, n:], stage.W[n:, n:]
    return {
        "Q_x": np.concatenate([Q.Q_x, v_r]),
        "Q_u": Q.Q_u,
        "Q_uu": Q.Q_uu,
        "Q_ux": np.hstack([Q.Q_ux, stage.f_u.T @ V_xr]),
        "Q_xx": np.block([[Q.Q_xx.numpy(), stage.f_x.T @ V_xr], [V_xr.T @ stage.f_x, V_rr]]),
    }


def joint_term_check(name):
    """The check of one line of Eq. 27."""

    def joint_term(stage: JointStage):
        """The printed block form against our expansion through the joint Jacobians and against NumPy's."""
        Q_joint, Q, (gradient, hessian) = joint_expansions(stage)
        s = stage.F_x.shape[1]
        truth = {
            "Q_x": gradient[:s], "Q_u": gradient[s:],
            "Q_xx": hessian[:s, :s], "Q_ux": hessian[s:, :s], "Q_uu": hessian[s:, s:],
        }[name]  # fmt: skip
        printed = printed_joint_terms(stage, Q)[name]
        size = stage.size + np.linalg.norm(gradient)
        yield same(printed, truth, scale=size, label="as printed")
        yield same(getattr(Q_joint, name), truth, scale=size, label="ours")

    return joint_term


for letter, name, statement in (
    ("a", "Q_u", "Q_u of the joint state is that of the chain"),
    ("b", "Q_x", "Q_x of the joint state is [Q_x; V'_{x_r}]"),
    ("c", "Q_uu", "Q_uu of the joint state is that of the chain"),
    ("d", "Q_ux", "Q_ux of the joint state is [Q_ux, f_u' V'_{x x_r}]"),
    ("e", "Q_xx", "Q_xx of the joint state is [[Q_xx, f_x' V'_{x x_r}], [V'_{x_r x} f_x, V'_{x_r x_r}]]"),
):
    GTDDP.exact(
        f"E27{letter}",
        f"Eq. 27{letter}",
        statement,
        assumes=LINEAR,
        remark="In the stored text the two lower entries of (27a, b) stand one above the other." * (letter == "b"),
        over=joint_stages(),
    )(joint_term_check(name))


@GTDDP.exact(
    "E28",
    "Eq. 28",
    "du = -Q_uu^{-1} (Q_u + Q_ux^ dx^) = k + K dx - Q_uu^{-1} f_u' V'_{x x_r} dx_r",
    assumes=LINEAR,
    over=joint_stages(),
)
def joint_policy(stage: JointStage):
    """Our gains on the pair against our gains on the joint state as one state, and against NumPy's."""
    Q_joint, _, (gradient, hessian) = joint_expansions(stage)
    n, (k, K) = stage.f_x.shape[1], dense.minimise(gradient, hessian, stage.F_x.shape[1])
    as_one, as_pair = bellman.gains(Q_joint), backward(stage)[0]
    for label, found in (("as one state", as_one.feedback), ("K", as_pair.feedback), ("G", as_pair.skip)):
        truth = {"as one state": K, "K": K[:, :n], "G": K[:, n:]}[label]
        yield same(found, truth, condition=stage.condition, scale=np.linalg.norm(K), label=label)
    yield same(as_pair.open_loop, k, condition=stage.condition, label="k")


def joint_minimum(stage):
    """Our joint value before a stage, NumPy's gains and value, and what the comparison is relative to."""
    gradient, hessian = dense.expand(stage.v, stage.W, stage.F_x, stage.F_u, l_u=stage.l_u, l_uu=stage.l_uu)
    k, K = dense.minimise(gradient, hessian, stage.F_x.shape[1])
    v, W = dense.follow(gradient, hessian, k, K)
    n = stage.f_x.shape[1]
    Q_uu, G = hessian[stage.F_x.shape[1] :, stage.F_x.shape[1] :], K[:, n:]
    rest = {"condition": stage.condition, "scale": np.linalg.norm(hessian) + np.linalg.norm(gradient)}
    return backward(stage)[1], (gradient, hessian, k, K[:, :n], G, Q_uu), (v, W), rest


@GTDDP.exact(
    "E29",
    "Eq. 29",
    "V_x of the joint state is [Q_x + Q_ux' k; V'_{x_r} - G' Q_uu k]",
    assumes=LINEAR,
    over=joint_stages(),
)
def joint_gradient(stage: JointStage):
    """Ours, the printed right-hand side, and the inserted policy."""
    joint, (gradient, hessian, k, _, G, Q_uu), (v, _), rest = joint_minimum(stage)
    n, s = stage.f_x.shape[1], stage.F_x.shape[1]
    printed = np.concatenate([gradient[:n] + hessian[:n, s:] @ k, stage.v[len(stage.f_x) :] - G.T @ Q_uu @ k])
    yield same(printed, v, label="as printed", **rest)
    yield same(np.concatenate([joint.V_x, joint.V_r]), v, label="ours", **rest)


@GTDDP.exact(
    "E30",
    "Eq. 30",
    "V_xx of the joint state is [[Q_xx + Q_xu K, f_x' V'_{x x_r} - K' Q_uu G], [transpose, V'_{x_r x_r} - G' Q_uu G]]",
    assumes=LINEAR,
    over=joint_stages(),
)
def joint_hessian(stage: JointStage):
    """Ours, the printed right-hand side, and the inserted policy."""
    joint, (_, hessian, _, K, G, Q_uu), (_, W), rest = joint_minimum(stage)
    n, s, after = stage.f_x.shape[1], stage.F_x.shape[1], len(stage.f_x)
    upper = stage.f_x.T @ stage.W[:after, after:] - K.T @ Q_uu @ G
    lower = stage.W[after:, :after] @ stage.f_x - G.T @ Q_uu @ K
    chain = hessian[:n, :n] + hessian[:n, s:] @ K
    printed = np.block([[chain, upper], [lower, stage.W[after:, after:] - G.T @ Q_uu @ G]])
    yield same(printed, W, label="as printed", **rest)
    ours = np.block([[joint.V_xx.numpy(), joint.V_xr.numpy()], [joint.V_xr.numpy().T, joint.V_rr.numpy()]])
    yield same(ours, W, label="ours", **rest)


def split_term_check(name):
    """The check of one line of Eq. 31."""

    def split_term(stage: JointStage):
        """The printed form at t_s against our expansion and NumPy's through [f_x; I]."""
        F_x = np.vstack([stage.f_x, np.eye(stage.r)])
        gradient, hessian = dense.expand(stage.v, stage.W, F_x, stage.F_u, l_u=stage.l_u, l_uu=stage.l_uu)
        value = bellman.Value(tf.constant(stage.v), tf.constant(stage.W))
        ours = bellman.expand(value, tf.constant(F_x), tf.constant(stage.F_u))
        _, Q, _ = joint_expansions(stage)
        n, after, f_x, f_u = stage.r, len(stage.f_x), stage.f_x, stage.f_u
        V_xr, V_rr = stage.W[:after, after:], stage.W[after:, after:]
        printed = {
            "Q_x": Q.Q_x.numpy() + stage.v[after:],
            "Q_ux": Q.Q_ux.numpy() + f_u.T @ V_xr,
            "Q_xx": Q.Q_xx.numpy() + f_x.T @ V_xr + V_xr.T @ f_x + V_rr,
        }[name]
        truth = {"Q_x": gradient[:n], "Q_ux": hessian[n:, :n], "Q_xx": hessian[:n, :n]}[name]
        size = np.linalg.norm(stage.v) + stage.size
        yield same(printed, truth, scale=size, label="as printed")
        yield same(getattr(ours, name), truth, scale=size, label="ours")
        yield same(ours.Q_u, Q.Q_u.numpy() - stage.l_u, scale=size, label="Q_u stays")

    return split_term


for letter, name, statement in (
    ("a", "Q_x", "Q_x + V'_{x_r}"),
    ("b", "Q_ux", "Q_ux + f_u' V'_{x x_r}"),
    ("c", "Q_xx", "Q_xx + f_x' V'_{x x_r} + V'_{x_r x} f_x + V'_{x_r x_r}"),
):
    GTDDP.exact(
        f"E31{letter}",
        f"Eq. 31{letter}",
        f"at t_s, where the shortcut opens, {name} becomes {statement}",
        assumes=LINEAR,
        over=joint_stages(split=True),
    )(split_term_check(name))
