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
more numbers than `GramLimits.joint_up_to` the Gram matrices of the players alone are added instead, as `describe` says,
unless `gram="exact"`.

A matrix form here is `[inputs, outputs]`, the transpose of `linalg`'s, so that A and B change places in its functions.
"""

from bellman_tf.curvature.block import Block
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.coupling.game import GameCoupling
from bellman_tf.curvature.coupling.pair import PairCoupling
from bellman_tf.curvature.coupling.published import PublishedCoupling
from bellman_tf.curvature.coupling.rescaled import RescaledCoupling
from bellman_tf.curvature.gram.plan import LIMITS
from bellman_tf.curvature.kfac import KFACBlock


def make_couplings(
    blocks: list[Block],
    stages: list[int | None],
    positions: list[int | None],
    joint_up_to: float = LIMITS.joint_up_to,
) -> tuple[list[Coupling], list[str]]:
    """Couples the players that share a stage and can be coupled.

    Args:
        blocks: of all players.
        stages: of all players, `None` where not known.
        positions: at which each player is applied to a sample, `None` where not static.
        joint_up_to: numbers of a gradient per sample up to which Gram matrices are those of the joint metrics.

    Returns:
        The couplings, and for each player what to add to its block's description.

    Raises:
        ValueError: if `cooperative_sign` is -1 in a stage of more than two players.
    """
    couplings, notes = [], [""] * len(blocks)
    cooperating = {k: b for k, b in enumerate(blocks) if isinstance(b, KFACBlock) and b.config.cooperative is not False}
    for stage in sorted({stage for stage in stages if stage is not None}):
        acting = {k: block for k, block in cooperating.items() if stages[k] == stage}
        if len(acting) < 2:
            continue
        groups: dict[int, list[int]] = {}
        for k, block in acting.items():
            count = positions[k]
            if count is None:
                notes[k] = " (uncoupled: its number of positions is not static)"
            elif block.config.cooperative != "rescale" and block.form != "patches":
                notes[k] = f" (uncoupled: convolution={block.form!r} keeps no moment of whole patches)"
            else:
                groups.setdefault(count, []).append(k)
        for count, players in groups.items():
            if len(players) > 1:
                coupling = _couple(players, acting, count, joint_up_to)
                couplings.append(coupling)
                phrases = coupling.describe([blocks[k].layout.name for k in coupling.players])
                for k, phrase in zip(coupling.players, phrases, strict=True):
                    notes[k] = f", {phrase}"
            elif len(groups) > 1:
                others = " and ".join(str(other) for other in groups if other != count)
                notes[players[0]] = f" (uncoupled: {count} positions against {others})"
    return couplings, notes


def _couple(players: list[int], blocks: dict[int, KFACBlock], positions: int, joint_up_to: float) -> Coupling:
    kind = blocks[players[0]].config.cooperative
    if kind == "exact" and len(players) == 2:
        players = sorted(players, key=lambda k: blocks[k].rows.size * blocks[k].layout.matrix_form.width)
    exact = PairCoupling if len(players) == 2 else GameCoupling
    kinds: dict[str | bool, type[Coupling]]
    kinds = {"exact": exact, "published": PublishedCoupling, "rescale": RescaledCoupling}
    make = kinds[kind]
    return make(players, [blocks[k] for k in players], positions, joint_up_to)
