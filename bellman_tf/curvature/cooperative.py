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
more numbers than `coupling.JOINT_GRAM_BELOW` the Gram matrices of the players alone are added instead, as `describe`
says.

A matrix form here is `[inputs, outputs]`, the transpose of `linalg`'s, so that A and B change places in its functions.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.curvature.block import Block, Metric, StateSpec, Step
from bellman_tf.curvature.capture import MatrixCapture, Tensors
from bellman_tf.curvature.coupling import Blocks, Coupling
from bellman_tf.curvature.gram import inner_products
from bellman_tf.curvature.joint import OuterSamples, Samples
from bellman_tf.curvature.kfac import EigenMetric, KFACBlock
from bellman_tf.linalg import (
    GameFactor,
    PairFactor,
    factor_block_form,
    factor_game,
    factor_pair,
    solve_block_form,
    solve_game,
    solve_pair,
)
from bellman_tf.linalg.products import matmul


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
