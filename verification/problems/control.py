"""Control problems other than networks: finite ones to enumerate, linear-quadratic ones, and values behind a layer."""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from scipy.linalg import block_diag

from bellman_tf.bellman import StageDerivatives, Value
from verification.problems.games import random_spd
from verification.problems.networks import Chain, Layer, chains, random_chain
from verification.references import jets
from verification.references.batch import costs

NAMES = {
    "f_x": "jacobian_state",
    "f_u": "jacobian_control",
    **{f"l_{s}": f"cost_{s}" for s in ("x", "u", "xx", "ux", "uu")},
    **{f"f_{s}": f"dynamics_{s}" for s in ("xx", "ux", "uu")},
}
seeds = st.integers(0, 2**32 - 1)


def as_stage(derivatives, metric=None):
    """The derivatives of a stage, keys as in `verification.references.dense.expand`, as the core library takes them."""
    stage = StageDerivatives(**{NAMES[key]: tf.constant(array) for key, array in derivatives.items()})
    return stage if metric is None else stage._replace(metric=tf.constant(metric))


def as_value(v, W):
    """A value's derivatives as the core library takes them."""
    return Value(tf.constant(v), tf.constant(W))


def arguments(derivatives):
    """The same as keyword arguments of `bellman.expand`."""
    return {NAMES[key]: tf.constant(array) for key, array in derivatives.items()}


class Finite(NamedTuple):
    """Finitely many states and controls, in tables [T, S, A]; `after` is the next state, `end` [S] the last cost."""

    after: np.ndarray
    running: np.ndarray
    end: np.ndarray

    def cost(self, state, controls):
        """J of a sequence of controls."""
        total = 0.0
        for t, u in enumerate(controls):
            total, state = total + self.running[t, state, u], self.after[t, state, u]
        return total + self.end[state]

    def optimum(self, state):
        """The least cost over all sequences."""
        horizon, _, actions = self.after.shape
        return min(self.cost(state, controls) for controls in itertools.product(range(actions), repeat=horizon))


@st.composite
def finite_problems(draw):
    """Tables with up to three stages, four states and three controls, ties among the costs included."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    T, S, A = draw(st.integers(1, 3), label="T"), draw(st.integers(1, 4), label="S"), draw(st.integers(1, 3), label="A")
    running, end = rng.standard_normal((T, S, A)), rng.standard_normal(S)
    if draw(st.booleans(), label="ties"):
        running, end = np.round(running), np.round(end)
    return Finite(rng.integers(S, size=(T, S, A)), running, end)


class LinearQuadratic(NamedTuple):
    """x' = c + f_x x + f_u u with quadratic costs, from x_0 = 0; v, W are the terminal cost's, at x_T = 0.

    Stages hold the offset c, and the rest under the keys of `verification.references.dense.expand`.
    """

    stages: list[dict]
    offsets: list[np.ndarray]
    v: np.ndarray
    W: np.ndarray

    @property
    def sizes(self):
        """Controls per stage."""
        return [stage["f_u"].shape[1] for stage in self.stages]

    def split(self, U):
        """One control per stage."""
        ends = np.cumsum(self.sizes)
        return [U[end - m : end] for end, m in zip(ends, self.sizes, strict=True)]

    def states(self, controls):
        """x_0 ... x_T."""
        states = [np.zeros(self.stages[0]["f_x"].shape[1])]
        for stage, c, u in zip(self.stages, self.offsets, controls, strict=True):
            states.append(c + stage["f_x"] @ states[-1] + stage["f_u"] @ u)
        return states

    def running_cost(self, t, x, u):
        """l_t(x, u)."""
        s = self.stages[t]
        return s["l_x"] @ x + s["l_u"] @ u + (x @ s["l_xx"] @ x + u @ s["l_uu"] @ u) / 2 + u @ s["l_ux"] @ x

    def cost_from(self, t, x, controls):
        """Cost from stage t on."""
        total = 0.0
        for s in range(t, len(self.stages)):
            total = total + self.running_cost(s, x, controls[s])
            x = self.offsets[s] + self.stages[s]["f_x"] @ x + self.stages[s]["f_u"] @ controls[s]
        return total + self.v @ x + x @ self.W @ x / 2

    def cost(self, U):
        """J of all controls side by side."""
        controls = self.split(U)
        return self.cost_from(0, self.states(controls)[0], controls)

    def expansions(self, controls):
        """Terminal value and stages at the nominal trajectory of the controls."""
        states, stages = self.states(controls), []
        for s, x, u in zip(self.stages, states[:-1], controls, strict=True):
            gradients = {
                "l_x": s["l_x"] + s["l_xx"] @ x + s["l_ux"].T @ u,
                "l_u": s["l_u"] + s["l_ux"] @ x + s["l_uu"] @ u,
            }
            stages.append(s | gradients)
        return (self.v + self.W @ states[-1], self.W), stages


def random_linear_quadratic(rng, depth, *, condition=10.0, size=3, coupled=True):
    """Sizes up to `size` vary from stage to stage; every l is positive definite jointly in (x, u)."""
    sizes, stages = rng.integers(1, size + 1, depth + 1), []
    for n, new in itertools.pairwise(sizes):
        m = int(rng.integers(1, size + 1))
        L = random_spd(rng, n + m, condition)
        if not coupled:
            L[n:, :n] = L[:n, n:] = 0
        stage = {"f_x": rng.standard_normal((new, n)) / np.sqrt(n), "f_u": rng.standard_normal((new, m)) / np.sqrt(m)}
        stage |= {"l_x": rng.standard_normal(n), "l_u": rng.standard_normal(m)}
        stages.append(stage | {"l_xx": L[:n, :n], "l_ux": L[n:, :n], "l_uu": L[n:, n:]})
    offsets = [rng.standard_normal(new) for new in sizes[1:]]
    return LinearQuadratic(stages, offsets, rng.standard_normal(sizes[-1]), random_spd(rng, sizes[-1], condition))


@st.composite
def linear_quadratics(draw, *, max_depth=4, max_log_condition=4, min_depth=1):
    """Random linear-quadratic problems."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    return random_linear_quadratic(rng, draw(st.integers(min_depth, max_depth), label="depth"), condition=condition)


@st.composite
def batches_of_linear_quadratics(draw, *, max_batch=3, **options):
    """The augmented problem of samples that differ in the offsets: one control for all, mean costs."""
    one = draw(linear_quadratics(**options))
    B, rng = draw(st.integers(1, max_batch), label="batch_size"), np.random.default_rng(draw(seeds, label="offsets"))
    stages = []
    for s in one.stages:
        stage = {"f_x": block_diag(*[s["f_x"]] * B), "f_u": np.concatenate([s["f_u"]] * B)}
        stages.append(stage | costs([s] * B))
    offsets = [rng.standard_normal(B * len(c)) for c in one.offsets]
    return LinearQuadratic(stages, offsets, np.concatenate([one.v] * B) / B, block_diag(*[one.W] * B) / B)


class Behind(NamedTuple):
    """A layer of a chain and a value behind it, V'(X' + dX') = v' dX' + dX' W dX' / 2, coupling all samples."""

    chain: Chain
    stage: int
    v: np.ndarray
    W: np.ndarray

    @property
    def layer(self):
        return self.chain.layers[self.stage]

    @property
    def control(self):
        return self.chain.controls[self.stage]

    def states(self):
        """X_t [B, n] and X_{t+1} [B, n']."""
        both = [self.chain.states(sample)[self.stage : self.stage + 2] for sample in range(len(self.chain.inputs))]
        return np.array([x for x, _ in both]), np.array([y for _, y in both])

    def derivatives(self, second_order=True):
        """Of the stage, sample by sample: a list of dicts as `Chain.stage` makes them."""
        return [self.chain.stage(self.stage, x, second_order) for x in self.states()[0]]

    def bellman_objective(self, z):
        """Q(X, u) = mean of the samples' running costs + V'(F(X, u)), z = [X; u] stacked; takes jets."""
        X, u = self.states()
        B, n = X.shape
        xs, control = [z[i * n : (i + 1) * n] for i in range(B)], z[B * n :]
        moved = np.concatenate([self.layer(x, control) for x in xs]) - np.concatenate(list(u))
        running = sum(self.chain.running_cost(self.stage, x, control) for x in xs) / B
        return running + self.v @ moved + moved @ self.W @ moved / 2

    def point(self):
        """Z = [X; u] at which everything is expanded."""
        return np.concatenate([*self.states()[0], self.control])


@st.composite
def behinds(draw, *, max_batch=1, **options):
    """A random layer with a random positive semidefinite value behind it, of rank one or full, coupling all samples."""
    chain = draw(chains(max_batch=max_batch, **options))
    rng = np.random.default_rng(draw(seeds, label="value seed"))
    stage = draw(st.integers(0, len(chain.layers) - 1), label="stage")
    size = len(chain.inputs) * chain.layers[stage].rows
    Z = rng.standard_normal((size, draw(st.sampled_from([1, size]), label="rank")))
    return Behind(chain, stage, rng.standard_normal(size), Z @ Z.T)


def with_known_minimiser(rng, depth, activation, margin=1.0):
    """A chain whose controls are a minimiser of J with Hessian at least `margin`, and that Hessian.

    The running costs get the linear term that cancels the gradient, and a multiple of the identity in u.
    """
    chain = random_chain(rng, depth, 1, activation=activation, running="control", weight=0.1)
    cuts = np.cumsum([layer.size for layer in chain.layers])[:-1]

    def cost(problem):
        return lambda U: problem.cost([U[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)])

    U = np.concatenate(chain.controls)
    _, gradient, hessian = jets.expansion(cost(chain), U)
    shift = max(0.0, margin - np.linalg.eigvalsh(hessian)[0])
    running = []
    for (l, L), layer, u, g in zip(chain.running, chain.layers, chain.controls, np.split(gradient, cuts), strict=True):
        n = layer.cols
        more, extra = np.zeros_like(L), np.zeros_like(l)
        more[n:, n:] = shift * np.eye(layer.size)
        extra[n:] = -g - shift * u
        running.append((l + extra, L + more))
    return chain._replace(running=running)


smooth = st.sampled_from(["tanh", "softplus", "sigmoid"])


@st.composite
def minimised_chains(draw, **options):
    """Chains with smooth activations at a known minimiser."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    return with_known_minimiser(
        rng, draw(st.integers(1, 3), label="depth"), draw(smooth, label="activation"), **options
    )


def classifier(rng, sizes, batch_size, activation):
    """A chain of these sizes without running costs: hidden layers with one activation, softmax cross-entropy."""
    kinds = [activation] * (len(sizes) - 2) + ["identity"]
    layers = [Layer(new, n, kind) for (n, new), kind in zip(itertools.pairwise(sizes), kinds, strict=True)]
    controls = [rng.standard_normal(layer.size) / np.sqrt(layer.cols + 1) for layer in layers]
    running = [(np.zeros(k), np.zeros((k, k))) for k in (layer.cols + layer.size for layer in layers)]
    targets = np.eye(sizes[-1])[rng.integers(sizes[-1], size=batch_size)]
    return Chain(layers, controls, running, rng.standard_normal((batch_size, sizes[0])), targets, "cross_entropy")


@st.composite
def classifiers(draw, sizes, batch_size, activations=("tanh",)):
    """Random weights, inputs and labels; the sizes are fixed."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    return classifier(rng, sizes, batch_size, draw(st.sampled_from(activations), label="activation"))
