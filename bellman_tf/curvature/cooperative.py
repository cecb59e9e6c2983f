"""Cross blocks between the Kronecker metrics of players that act together, and the joint metric they make.

The players of one stage move at once, so the Gauss-Newton matrix of the stage has blocks `E[q_n q_m'] ~ A_nm (x) B_nm`
off its diagonal too, with

    A_nm = (1/B) sum_i sum_l x_n,il x_m,il',        B_nm = (1/(B L)) sum_i sum_l c_n,il c_m,il'

for players applied at the same number L of positions. With the damping of each player's own block on the diagonal,

    "exact"       M^{-1} is the inverse of the joint matrix M (claims OURS-6; more than two players iteratively)
    "published"   M^{-1} has blocks (+-) [A^{-1}]_nm (x) [B^{-1}]_nm of the joint A and B: GTDDP Thm. 3, DGN Prop. 5
    "rescale"     no cross moments: each eigenvalue s becomes damping + s damping / (damping + (N - 1) s), the Schur
                  complement of a player among N identical ones (GTDDP Cor. 7, claims OURS-8)

EKFAC keeps its own blocks and takes K-FAC's correlations: with K the joint K-FAC matrix, M = D K D where D is diagonal
in the players' eigenbases and puts EKFAC's second moments in the place of K-FAC's eigenvalues, so that M_nn is EKFAC's.

The recursion's Gram matrix is that of the joint metric, cross terms included. Where that needs gradients per sample of
more than `JOINT_GRAM_BELOW` numbers the Gram matrices of the players alone are added instead, as `describe` says.

A matrix form here is `[inputs, outputs]`, the transpose of `linalg`'s, so that A and B change places in its functions.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.curvature.block import Block, Metric, StateSpec, Step, every, running_mean
from bellman_tf.curvature.capture import MatrixCapture, Tensors
from bellman_tf.curvature.gram import inner_products, stacked
from bellman_tf.curvature.kfac import EigenMetric, EKFACBlock, KFACBlock
from bellman_tf.linalg import (
    GameFactor,
    PairFactor,
    factor_block_form,
    factor_game,
    factor_pair,
    solve_block_form,
    solve_game,
    solve_pair,
    split_damping,
    symmetrize,
)
from bellman_tf.linalg.products import matmul

# Numbers per sample up to which gradients per sample are formed for the Gram matrix of a joint metric. At 33 x 32 a
# step then takes 1.1 times as long as without cross blocks, at 65 x 64 it would take 1.5 times as long.
JOINT_GRAM_BELOW = 2**11

Blocks = list[list[tf.Tensor]]


class Samples:
    """One player's gradients per sample as matrices, `[B, m, inputs, outputs]`."""

    def between(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`left' q right`."""
        return matmul(matmul(left, self.matrix(), transpose_a=True), right)

    def matrix(self) -> tf.Tensor:
        """`q` itself."""
        raise NotImplementedError


class FormedSamples(Samples):
    """Gradients that are formed, of layers with positions or in an eigenbasis."""

    def __init__(self, matrix: tf.Tensor) -> None:
        self._matrix = matrix

    def matrix(self) -> tf.Tensor:
        """`q` itself."""
        return self._matrix


class OuterSamples(Samples):
    """Gradients of a dense layer, `q = x c'`.

    Attributes:
        x: `[B, inputs]`.
        c: `[B, m, outputs]`.
    """

    def __init__(self, capture: MatrixCapture) -> None:
        self.x, self.c = capture.augmented(), stacked(capture.cotangents)

    def between(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`(left' x) (right' c)'`."""
        return matmul(self.x, left)[:, None, :, None] * matmul(self.c, right)[:, :, None, :]

    def matrix(self) -> tf.Tensor:
        """`x c'`."""
        return self.x[:, None, :, None] * self.c[:, :, None, :]


class JointMetric:
    """M^{-1} of several players at one step, learning rate included."""

    def __init__(self, coupling: "Coupling", factor: object, metrics: list[Metric], ratios: Tensors | None) -> None:
        """Stores what the coupling has factored.

        Args:
            coupling: applies `factor`.
            factor: of the joint matrix, in the players' eigenbases for EKFAC.
            metrics: the players' own metrics.
            ratios: for EKFAC, the diagonals of D^{-1} with the learning rate; else `None`.
        """
        self._coupling, self._factor, self._metrics, self._ratios = coupling, factor, metrics, ratios

    def _enter(self, n: int, matrix: tf.Tensor) -> tf.Tensor:
        return matrix if self._ratios is None else self._ratios[n] * self._metrics[n].rotate(matrix)

    def _leave(self, n: int, matrix: tf.Tensor) -> tf.Tensor:
        if self._ratios is None:
            return self._metrics[n].scale * matrix
        return self._metrics[n].rotate_back(self._ratios[n] * matrix)

    def solve(self, parts: list[Tensors]) -> list[Tensors]:
        """`M^{-1}` on one list of tensors per player, in the shapes of its variables; leading axes are allowed."""
        layouts = [block.layout.matrix for block in self._coupling.blocks]
        matrices = [layout.pack(own) for layout, own in zip(layouts, parts, strict=True)]
        solved = self._coupling.solve(self._factor, [self._enter(n, matrix) for n, matrix in enumerate(matrices)])
        return [layouts[n].unpack(self._leave(n, matrix)) for n, matrix in enumerate(solved)]

    def gram(self, captures: list[MatrixCapture], group_size: int | None, own: list) -> tf.Tensor:
        """`sum_nm <q_n,i, [M^{-1}]_nm q_m,j>` inside groups.

        Args:
            captures: of the players, m columns.
            group_size: samples per group b; `None` is the whole batch.
            own: for each player, a function of nothing giving the Gram matrix under its own metric.

        Returns:
            `[G, b m, b m]`, zero where the last group is padded.
        """
        if not self._coupling.joint_gram:
            return tf.add_n([gram() for gram in own])
        if self._ratios is not None:
            samples = [FormedSamples(self._enter(n, c.matrix_per_sample())) for n, c in enumerate(captures)]
            return self._coupling.gram(self._factor, samples, group_size, own, 1.0)
        flat = self._coupling.positions == 1
        samples = [OuterSamples(c) if flat else FormedSamples(c.matrix_per_sample()) for c in captures]
        return self._coupling.gram(self._factor, samples, group_size, own, self._metrics[0].scale)


class Coupling:
    """Cross moments of players that act together, and the factors made of them.

    Attributes:
        players: the players' indices.
        blocks: their blocks.
        positions: at which each of them is applied to a sample.
        joint_gram: whether the Gram matrix is that of the joint metric.
        word: what `describe` calls the metric.
    """

    word = "exact"

    def __init__(self, players: list[int], blocks: list[KFACBlock], positions: int) -> None:
        self.players, self.blocks, self.positions = players, blocks, positions
        self.config = blocks[0].config
        self.eigen = isinstance(blocks[0], EKFACBlock)
        self.inputs = [block.rows.size for block in blocks]
        self.outputs = [block.layout.matrix.width for block in blocks]
        self.pairs = [(n, m) for n in range(len(blocks)) for m in range(n)]
        self.joint_gram = self._formed_numbers() <= JOINT_GRAM_BELOW

    def _formed_numbers(self) -> int:
        """Numbers of the largest gradient per sample that the Gram matrix needs, times the positions it sums."""
        return self.positions * max(a * b for a, b in zip(self.inputs, self.outputs, strict=True))

    # ---- what a kind of coupling adds

    def factor_specs(self) -> list[StateSpec]:
        """The tensors of `factor`."""
        raise NotImplementedError

    def factor(self, A: Blocks, B: Blocks) -> Tensors:
        """Factors the joint matrix from the blocks on and below the diagonal, damped."""
        raise NotImplementedError

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Applies the factored inverse to one matrix `[..., inputs, outputs]` per player."""
        raise NotImplementedError

    def gram(
        self, factor: Tensors, samples: list[Samples], group_size: int | None, own: list, scale: tf.Tensor | float
    ) -> tf.Tensor:
        """Gram matrix of the factored inverse times `scale`; arguments else as `JointMetric.gram`."""
        q = [player.matrix() for player in samples]
        return scale * symmetrize(inner_products(q, self.solve(factor, q), group_size))

    # ---- state

    def state_specs(self) -> list[StateSpec]:
        """Cross moments; for EKFAC the damped eigenvalues that the factor belongs to; the factor."""
        specs = []
        for n, m in self.pairs:
            specs.append(StateSpec(f"input_cross_{n}_{m}", (self.inputs[n], self.inputs[m])))
            specs.append(StateSpec(f"gradient_cross_{n}_{m}", (self.outputs[n], self.outputs[m])))
        if self.eigen:
            for n, (a, b) in enumerate(zip(self.inputs, self.outputs, strict=True)):
                specs += [StateSpec(f"input_values_{n}", (a,)), StateSpec(f"gradient_values_{n}", (b,))]
        return specs + self.factor_specs()

    def update(
        self, state: Tensors, captures: list[MatrixCapture], own: list[Tensors], metrics: list[Metric], step: Step
    ) -> tuple[Tensors, object]:
        """New cross moments, and with the players' own schedule new factors.

        Args:
            state: as `state_specs`.
            captures: the players', as their own blocks have seen them.
            own: new states of the players' blocks.
            metrics: the players' own metrics of this step.
            step: scalars of the step.

        Returns:
            The new state, and the joint metric.
        """
        count, rate = 2 * len(self.pairs), step.mean_rate(self.config.decay, self.config.update_every)
        cross = every(
            self.config.update_every,
            step.iteration,
            lambda: self._moments(state[:count], captures, rate),
            state[:count],
        )
        cached = every(self.config.invert_every, step.iteration, lambda: self._refresh(cross, own), state[count:])
        ratios, factor = None, cached
        if self.eigen:
            values, factor = cached[: 2 * len(own)], cached[2 * len(own) :]
            products = [values[2 * n][:, None] * values[2 * n + 1] for n in range(len(own))]
            ratios = [tf.sqrt(k * metric.inverse) for k, metric in zip(products, metrics, strict=True)]
        return [*cross, *cached], JointMetric(self, factor, metrics, ratios)

    def _moments(self, state: Tensors, captures: list[MatrixCapture], rate: tf.Tensor) -> Tensors:
        new, total = [], tf.cast(captures[0].batch_size, state[0].dtype)
        rows = [tf.reshape(c.augmented(), [-1, size]) for c, size in zip(captures, self.inputs, strict=True)]
        columns = [tf.reshape(c.cotangents[0], [-1, e]) for c, e in zip(captures, self.outputs, strict=True)]
        for n, m in self.pairs:
            new.append(matmul(rows[n], rows[m], transpose_a=True) / total)
            new.append(matmul(columns[n], columns[m], transpose_a=True) / (total * self.positions))
        return [running_mean(old, fresh, rate) for old, fresh in zip(state, new, strict=True)]

    def _refresh(self, cross: Tensors, own: list[Tensors]) -> Tensors:
        A, B = ([[None] * len(own) for _ in own] for _ in range(2))  # blocks above the diagonal stay out
        for (n, m), A_nm, B_nm in zip(self.pairs, cross[::2], cross[1::2], strict=True):
            A[n][m], B[n][m] = A_nm, B_nm
        values = []
        for n, state in enumerate(own):
            damping = split_damping(state[0], state[1], self.config.damping)
            for blocks, moment, extra in zip((A, B), state[:2], damping, strict=True):
                blocks[n][n] = moment + extra * tf.eye(moment.shape[-1], dtype=moment.dtype)
        if self.eigen:
            for side, blocks in enumerate((A, B)):
                U = [state[2 + side] for state in own]
                for n, row in enumerate(blocks):
                    row[: n + 1] = [matmul(matmul(U[n], row[m], transpose_a=True), U[m]) for m in range(n + 1)]
            values = [tf.linalg.diag_part(blocks[n][n]) for n in range(len(own)) for blocks in (A, B)]
        return [*values, *self.factor(A, B)]

    def describe(self, names: list[str]) -> list[str]:
        """For each player, what to add to its block's description.

        Args:
            names: the players' names.

        Returns:
            A phrase per player.
        """
        alone = "" if self.joint_gram else ", Gram matrices of the players alone"
        return [f"{self.word} with {', '.join(names[:n] + names[n + 1 :])}{alone}" for n in range(len(names))]


class PairCoupling(Coupling):
    """Two players, exactly, by canonical correlations. The first is the smaller one: it carries the samples."""

    def _formed_numbers(self) -> int:
        formed = zip(self.inputs, self.outputs, strict=True)
        if self.positions == 1 and not self.eigen:
            formed = [next(formed)]
        return self.positions * max(a * b for a, b in formed)

    def factor_specs(self) -> list[StateSpec]:
        """The fields of `PairFactor`, A and B in each other's place."""
        (a, other_a), (b, other_b) = self.inputs, self.outputs
        return [
            StateSpec("first_gradient", (b, b), "identity"),
            StateSpec("first_input", (a, a), "identity"),
            StateSpec("cross_gradient", (other_b, b)),
            StateSpec("cross_input", (other_a, a)),
            StateSpec("second_gradient", (other_b, other_b), "identity"),
            StateSpec("second_input", (other_a, other_a), "identity"),
            StateSpec("weights", (a, b), "ones"),
        ]

    def factor(self, A: Blocks, B: Blocks) -> Tensors:
        """Canonical correlations."""
        return list(factor_pair(B, A))

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Eliminates the second player."""
        return solve_pair(PairFactor(*factor), matrices)

    def gram(
        self, factor: Tensors, samples: list[Samples], group_size: int | None, own: list, scale: tf.Tensor | float
    ) -> tf.Tensor:
        """The second player's own Gram matrix, and the first one's after the second has answered."""
        pair = PairFactor(*factor)
        first, second = samples
        Y = first.between(pair.first_B, pair.first_A) - second.between(pair.cross_B, pair.cross_A)
        return own[1]() + scale * inner_products([Y], [pair.weights * Y], group_size)


class GameCoupling(Coupling):
    """Three players and more, by conjugate gradients."""

    def factor_specs(self) -> list[StateSpec]:
        """The fields of `GameFactor`, A and B in each other's place."""
        sides = (("gradient", self.outputs), ("input", self.inputs))
        roots = [
            StateSpec(f"{name}_root_{n}", (size, size), "identity")
            for name, sizes in sides
            for n, size in enumerate(sizes)
        ]
        cross = [
            StateSpec(f"{name}_correlation_{n}_{m}", (sizes[n], sizes[m]))
            for name, sizes in sides
            for n, m in self.pairs
        ]
        return roots + cross

    def factor(self, A: Blocks, B: Blocks) -> Tensors:
        """Whitened blocks."""
        return tf.nest.flatten(factor_game(B, A))

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Conjugate gradients."""
        count, pairs = len(self.blocks), len(self.pairs)
        ends = [0, count, 2 * count, 2 * count + pairs, 2 * count + 2 * pairs]
        return solve_game(GameFactor(*[factor[i:j] for i, j in zip(ends[:-1], ends[1:], strict=True)]), matrices)


class PublishedCoupling(Coupling):
    """The papers' form: blocks of the inverses of the joint factors."""

    word = "published"

    def __init__(self, players: list[int], blocks: list[KFACBlock], positions: int) -> None:
        super().__init__(players, blocks, positions)
        self.sign = self.config.cooperative_sign
        if self.sign < 0 and len(players) > 2:
            raise _checks.error(
                "cooperative_sign", "be 1 in a stage of more than two players", self.sign,
                f"Such a stage holds {', '.join(block.layout.name for block in blocks)}.",
            )  # fmt: skip
        self.word += " (+)" if self.sign > 0 else " (-)"

    def _formed_numbers(self) -> int:
        return 0 if self.positions == 1 and not self.eigen else super()._formed_numbers()

    def factor_specs(self) -> list[StateSpec]:
        """Inverses of the joint factors."""
        a, b = sum(self.inputs), sum(self.outputs)
        return [
            StateSpec("gradient_inverse", (b, b), "identity"),
            StateSpec("input_inverse", (a, a), "identity"),
        ]

    def factor(self, A: Blocks, B: Blocks) -> Tensors:
        """The two inverses."""
        return list(factor_block_form(B, A))

    def _cut(self, factor: Tensors) -> tuple[Blocks, Blocks]:
        return tuple(
            [tf.split(rows, sizes, axis=1) for rows in tf.split(inverse, sizes, axis=0)]
            for inverse, sizes in zip(factor, (self.outputs, self.inputs), strict=True)
        )

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Block by block."""
        return solve_block_form(*self._cut(factor), matrices, self.sign)

    def gram(
        self, factor: Tensors, samples: list[Samples], group_size: int | None, own: list, scale: tf.Tensor | float
    ) -> tf.Tensor:
        """For dense layers `sum_nm (x_n [A^{-1}]_nm x_m') * (c_n [B^{-1}]_nm c_m')`."""
        if not isinstance(samples[0], OuterSamples):
            return super().gram(factor, samples, group_size, own, scale)
        B, A = self._cut(factor)
        total = [self._products(player, player, A[n][n], B[n][n], group_size) for n, player in enumerate(samples)]
        for n, m in self.pairs:
            cross = self.sign * self._products(samples[n], samples[m], A[n][m], B[n][m], group_size)
            total += [cross, tf.linalg.matrix_transpose(cross)]
        return scale * tf.add_n(total)

    def _products(self, n: OuterSamples, m: OuterSamples, A: tf.Tensor, B: tf.Tensor, size: int | None) -> tf.Tensor:
        inputs = inner_products([n.x[:, None]], [matmul(m.x, A, transpose_b=True)[:, None]], size)
        columns = n.c.shape[1]
        if columns > 1:
            inputs = tf.repeat(tf.repeat(inputs, columns, axis=1), columns, axis=2)
        return inputs * inner_products([n.c], [matmul(m.c, B, transpose_b=True)], size)


class RescaledCoupling(Coupling):
    """Players taken as identical: no cross moments, only less curvature for each."""

    def _formed_numbers(self) -> int:
        return 0

    def state_specs(self) -> list[StateSpec]:
        """None."""
        return []

    def update(
        self, state: Tensors, captures: list[MatrixCapture], own: list[Tensors], metrics: list[Metric], step: Step
    ) -> tuple[Tensors, object]:
        """The players' own metrics, rescaled; arguments as `Coupling.update`."""
        damping, others = self.config.damping, len(self.players) - 1
        new = []
        for block, (_, _, U_A, U_B, s) in zip(self.blocks, own, strict=True):
            rescaled = damping + s * damping / (damping + others * s)
            new.append(EigenMetric(block.rows, U_A, U_B, step.learning_rate / rescaled))
        return [], new

    def describe(self, names: list[str]) -> list[str]:
        """For each player, what to add to its block's description; arguments as `Coupling.describe`."""
        return [f"rescaled for {len(names)} players"] * len(names)


def make_couplings(
    blocks: list[Block], stages: list[int | None], positions: list[int | None]
) -> tuple[list[Coupling], list[str]]:
    """Couples the players that share a stage and can be coupled.

    Args:
        blocks: of all players.
        stages: of all players, `None` where not known.
        positions: at which each player is applied to a sample, `None` where not static.

    Returns:
        The couplings, and for each player what to add to its block's description.

    Raises:
        ValueError: if `cooperative_sign` is -1 in a stage of more than two players.
    """
    couplings, notes = [], [""] * len(blocks)
    for stage in sorted({stage for stage in stages if stage is not None}):
        acting = [k for k, block in enumerate(blocks) if stages[k] == stage and _cooperates(block)]
        if len(acting) < 2:
            continue
        groups: dict[int, list[int]] = {}
        for k in acting:
            reason = _reason(blocks[k], positions[k])
            if reason:
                notes[k] = f" (uncoupled: {reason})"
            else:
                groups.setdefault(positions[k], []).append(k)
        for count, players in groups.items():
            if len(players) > 1:
                coupling = _couple(players, blocks, count)
                couplings.append(coupling)
                phrases = coupling.describe([blocks[k].layout.name for k in coupling.players])
                for k, phrase in zip(coupling.players, phrases, strict=True):
                    notes[k] = f", {phrase}"
            elif len(groups) > 1:
                others = " and ".join(str(other) for other in groups if other != count)
                notes[players[0]] = f" (uncoupled: {count} positions against {others})"
    return couplings, notes


def _cooperates(block: Block) -> bool:
    return isinstance(block, KFACBlock) and block.config.cooperative is not False


def _reason(block: KFACBlock, positions: int | None) -> str:
    if positions is None:
        return "its number of positions is not static"
    if block.config.cooperative != "rescale" and block.form != "patches":
        return f"convolution={block.form!r} keeps no moment of whole patches"
    return ""


def _couple(players: list[int], blocks: list[Block], positions: int) -> Coupling:
    kind = blocks[players[0]].config.cooperative
    if kind == "exact" and len(players) == 2:
        players = sorted(players, key=lambda k: blocks[k].rows.size * blocks[k].layout.matrix.width)
    exact = PairCoupling if len(players) == 2 else GameCoupling
    make = {"exact": exact, "published": PublishedCoupling, "rescale": RescaledCoupling}[kind]
    return make(players, [blocks[k] for k in players], positions)
