"""Kronecker factors of the cooperative curvature: Prop. 5, Eqs. 14, 15, 28-31. P_uv ~ +A_uv (x) B_uv throughout."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import linalg
from verification.claim import Counterexample, at_most, relative_error, same
from verification.derivations.recursions import spread
from verification.papers import DGN
from verification.problems.pairs import Pair, pairs, random_pair
from verification.references import kronecker

DERIVATION = (
    "The Gauss-Newton blocks are P_uu = A_uu (x) B_uu, P_uv = A_uv (x) B_uv, P_vv = A_vv (x) B_vv, so the Schur"
    " complement is S = A_uu (x) B_uu - a (x) b with a = A_uv A_vv^{-1} A_vu, b = B_uv B_vv^{-1} B_vu. The printed"
    " product is F = (A_uu - a) (x) (B_uu - b) = S - a (x) B~ - A~ (x) b, smaller in the Loewner order. It comes from"
    " inverting the Kronecker product of the joint moments, which also has rows for the cross weights w_uv, w_vu that"
    " no layer has."
)


def constants(blocks):
    """Nested lists of arrays as tensors."""
    return [[tf.constant(block) for block in row] for row in blocks]


def schur_parts(problem: Pair):
    """A~, B~, a, b, and the condition of the whole."""
    A, B = problem.blocks()
    a = A[0][1] @ np.linalg.solve(A[1][1], A[1][0])
    b = B[0][1] @ np.linalg.solve(B[1][1], B[1][0])
    condition = np.linalg.cond(np.block(A)) * np.linalg.cond(np.block(B))
    return A[0][0] - a, B[0][0] - b, a, b, condition


def exact_complement(problem: Pair):
    """Our Schur complement of our joint matrix."""
    A, B = problem.blocks()
    H = linalg.block_khatri_rao(constants(A), constants(B)).numpy()
    m = A[0][0].shape[0] * B[0][0].shape[0]
    return linalg.schur_complement(*map(tf.constant, (H[:m, :m], H[:m, m:], H[m:, m:]))).numpy()


def factored_complement() -> Counterexample:
    """A = I, B = [[1, 1/2], [1/2, 1]]."""
    A, B = np.eye(2), np.array([[1, 0.5], [0.5, 1]])
    H = A * B  # scalar players: blocks A_nm B_nm
    return Counterexample(
        "two scalar players, A = I, B = [[1, 1/2], [1/2, 1]], so P_uv = 0: the Schur complement of P_vv",
        printed=(A[0, 0] - A[0, 1] ** 2 / A[1, 1]) * (B[0, 0] - B[0, 1] ** 2 / B[1, 1]),
        corrected=A[0, 0] * B[0, 0] - (A[0, 1] ** 2 / A[1, 1]) * (B[0, 1] ** 2 / B[1, 1]),
        truth=1 / np.linalg.inv(H)[0, 0],
    )


FACTORED = {
    "printed": "P~_uu ~ A~_uu (x) B~_uu, A~_uu = A_uu - A_uv A_vv^{-1} A_vu, B~_uu = B_uu - B_uv B_vv^{-1} B_vu",
    "corrected": "P~_uu = A_uu (x) B_uu - (A_uv A_vv^{-1} A_vu) (x) (B_uv B_vv^{-1} B_vu)",
    "derivation": DERIVATION,
    "origin": "paper",
    "counterexample": factored_complement,
}


@DGN.misprint(
    "P5",
    "Proposition 5",
    "the cooperative precondition P~_uu is factored by the Schur complements of the two moments",
    assumes="damped diagonal blocks",
    remark="An underestimate: exact only if a (x) B~ = A~ (x) b = 0. 'error at 0.9' is |F - S| / |S| with 4 + 4"
    " inputs, 3 + 3 outputs and 0.9 of the signal shared; catalogue 0.83.",
    over=st.tuples(pairs(), st.integers(0, 2**32 - 1)),
    ranges={"error at 0.9": (0.8, 0.94)},
    **FACTORED,
)
def factored_precondition(drawn):
    """F is below S in the Loewner order; how far, for much shared signal."""
    problem, seed = drawn
    A, B, _, _, condition = schur_parts(problem)
    S = exact_complement(problem)
    lowest = np.linalg.eigvalsh(S - kronecker.kron(A, B)).min()
    scale = np.linalg.norm(S) + np.linalg.norm(kronecker.kron(*[blocks[0][0] for blocks in problem.blocks()]))
    yield at_most(0.0, lowest, scale=scale, condition=condition, label="F <= S")
    yield from spread(seed, error_at_much_signal, "error at 0.9", count=3)


def error_at_much_signal(rng):
    """|F - S| / |S| with 0.9 of the signal shared."""
    shared = random_pair(rng, 64, shared=0.9, damping=1e-6, sizes=(4, 3))
    A, B, _, _, _ = schur_parts(shared)
    return relative_error(kronecker.kron(A, B), exact_complement(shared))


@DGN.misprint(
    "E14",
    "Eq. 14",
    "P~_uu ~ A~_uu (x) B~_uu as a formula",
    assumes="damped diagonal blocks",
    remark="S - F = a (x) B~ + A~ (x) b, both terms positive semidefinite.",
    over=pairs(),
    **FACTORED,
)
def factored_form(problem: Pair):
    """Our Schur complement of our joint matrix against the corrected form, and the difference to the printed one."""
    A, B, a, b, condition = schur_parts(problem)
    S, kron = exact_complement(problem), kronecker.kron
    scale = np.linalg.norm(kron(*[blocks[0][0] for blocks in problem.blocks()]))
    yield same(S, kron(A + a, B + b) - kron(a, b), condition=condition, scale=scale, label="S")
    yield same(S - kron(A, B), kron(a, B) + kron(A, b), condition=condition, scale=scale, label="S - F")


def identical_scalars(sign: float) -> Counterexample:
    """Two identical scalar players, curvature 1, damping 0.01 in factored form; the step for unit gradients."""
    A = np.array([[1.1, 1.0], [1.0, 1.1]])  # 1 + sqrt(0.01) on the diagonal; B is the same
    reduced = A[0, 0] - A[0, 1] ** 2 / A[1, 1]
    I_t = 1 / (A[1, 1] * A[1, 1])
    S = A[0, 0] ** 2 - (A[0, 1] ** 2 / A[1, 1]) ** 2
    return Counterexample(
        "two identical scalar players, A = B = [[1.1, 1], [1, 1.1]] (curvature 1, damping 0.01 in the factors),"
        " gradients 1: the open gain. Without cooperation it is 0.83",
        printed=(1 + sign * A[0, 1] * I_t * A[0, 1]) / (reduced * reduced),
        corrected=(1 - A[0, 1] * I_t * A[0, 1]) / S,
        truth=np.linalg.solve(A * A, [1.0, 1.0])[0],
    )


def exact_gain(problem: Pair):
    """Our two-player solve against the Schur form S^{-1} (P_u - B_uv vec^{-1}(I) A_uv') and the dense joint solve."""
    A, B = problem.blocks()
    H = kronecker.block_khatri_rao(A, B)
    condition = np.linalg.cond(H) + sum(np.linalg.cond(M[n][n]) for M in (A, B) for n in (0, 1))
    ours = linalg.kronecker_cooperative_solve(constants(A), constants(B), list(map(tf.constant, problem.gradients)))
    truth = kronecker.kronecker_cooperative_solve(A, B, problem.gradients)
    size = np.sqrt(sum(np.sum(x**2) for x in truth))
    for n, (x, expected) in enumerate(zip(ours, truth, strict=True)):
        yield same(x, expected, condition=condition, scale=size, label=f"joint solve, player {n + 1}")
    P_u, P_v = problem.gradients
    I_t = np.linalg.solve(B[1][1], P_v) @ np.linalg.inv(A[1][1])
    form = np.linalg.solve(exact_complement(problem), kronecker.vec(P_u - B[0][1] @ I_t @ A[0][1].T))
    scale = max(size, np.linalg.norm(np.linalg.inv(H)) * np.linalg.norm(P_u))
    yield same(kronecker.vec(ours[0].numpy()), form, condition=condition, scale=scale, label="Schur form, minus")


@DGN.misprint(
    "E15",
    "Eq. 15",
    "KFAC of the cooperative open gain, with a minus before the companion's term",
    assumes="damped diagonal blocks",
    remark="Catalogue: the exact step of the counterexample is 0.4975; that is with 0.01 added to the Kronecker"
    " products. With the factors damped, as in all other numbers there, it is 0.4525. The appendix has a plus (E30)."
    " The minus is right for P_uv = +A_uv (x) B_uv; the matrix in front is not.",
    printed="k~ = vec(B~_uu^{-1} (P_u - B_uv vec^{-1}(I) A_uv') A~_uu^{-T})",
    corrected="k~ = S^{-1} vec(P_u - B_uv vec^{-1}(I) A_uv'), S = A_uu (x) B_uu - a (x) b",
    derivation="k~ = P~_uu^{-1} (P_u - P_uv I) by (11), P_uv I = (A_uv (x) B_uv) I = vec(B_uv vec^{-1}(I) A_uv'). "
    + DERIVATION,
    origin="paper",
    over=pairs(),
    counterexample=lambda: identical_scalars(-1.0),
)
def cooperative_gain(problem: Pair):
    """Ours is the corrected form and the joint minimiser."""
    yield from exact_gain(problem)


@DGN.misprint(
    "E30",
    "Eq. 30",
    "KFAC of the cooperative open gain, with a plus before the companion's term",
    assumes="damped diagonal blocks",
    remark="Contradicts (15). The plus is that of the inverse of A (x) B, two negative off-diagonal blocks multiplied"
    " (E29); it pushes both players the same way twice.",
    printed="k~ = vec(B~_uu^{-1} (P_u + B_uv vec^{-1}(I) A_uv') A~_uu^{-T})",
    corrected="k~ = S^{-1} vec(P_u - B_uv vec^{-1}(I) A_uv')",
    derivation="As for (15). The plus solves the system of the full Kronecker product, in which cross weights w_uv,"
    " w_vu are variables, and then throws their part of the solution away.",
    origin="paper",
    over=pairs(),
    counterexample=lambda: identical_scalars(1.0),
)
def cooperative_gain_plus(problem: Pair):
    """Ours is the corrected form and the joint minimiser."""
    yield from exact_gain(problem)


def principal_part(problem: Pair):
    """Our block form against (A (x) B)^{-1} on the blocks of (29), and against the second line of (30)."""
    A, B = problem.blocks()
    conditions = [np.linalg.cond(np.block(M)) for M in (A, B)]
    scale = np.prod([np.linalg.norm(np.linalg.inv(np.block(M)), 2) for M in (A, B)])
    scale *= np.sqrt(sum(np.sum(P**2) for P in problem.gradients))
    ours = linalg.kronecker_block_form(constants(A), constants(B), list(map(tf.constant, problem.gradients)))
    truth = kronecker.kronecker_block_form(A, B, problem.gradients)
    for n, (x, expected) in enumerate(zip(ours, truth, strict=True)):
        yield same(x, expected, condition=sum(conditions), scale=scale, label=f"(29), block {n + 1}")
    A_t, B_t, _, _, _ = schur_parts(problem)
    P_u, P_v = problem.gradients
    companion = B[0][1] @ np.linalg.solve(B[1][1], P_v) @ np.linalg.inv(A[1][1]).T @ A[0][1].T
    second = np.linalg.solve(B_t, P_u + companion) @ np.linalg.inv(A_t).T
    squared = sum(c**2 for c in conditions)  # A~ is a difference, and is inverted
    yield same(ours[0], second, condition=squared, scale=scale, label="second line of (30)")


@DGN.exact(
    "E29",
    "Eq. 29",
    "(E[x x'] (x) E[W_x W_x'])^{-1} vec(blkdiag(P_u, P_v)) = vec(B^{-1} blkdiag(P_u, P_v) A^{-1})",
    assumes="regular moments",
    remark="As algebra. The blocks (u, v) and (v, u) of the result are not zero and are discarded: it behaves as if"
    " absent cross weights could be optimised, and overestimates the step.",
    over=pairs(max_log_damping=3),
)
def block_form(problem: Pair):
    """Our block form is the principal part."""
    yield from principal_part(problem)


@DGN.misprint(
    "E31",
    "the line tagged (30), cited as (31)",
    "the same gain with the inverse of A~ (x) B~ in front",
    assumes="regular moments; as algebra, see E30 for the sign",
    printed="(A~_uv (x) B~_uv)^{-1} vec(P_v + B_uv vec^{-1}(I) A_vv')",
    corrected="(A~_uu (x) B~_uu)^{-1} vec(P_u + B_uv vec^{-1}(I) A_uv')",
    derivation="vec(B~^{-1} X A~^{-T}) = (A~ (x) B~)^{-1} vec(X) with the X, A~_uu and B~_uu of the line above.",
    origin="likely OCR",
    over=pairs(max_log_damping=3),
    counterexample=lambda: Counterexample(
        "two scalar players, A = B = [[2, 1], [1, 2]], P_u = 1, P_v = 0, so I = 0: the printed line is zero whatever"
        " A~_uv may be",
        printed=(0 + 1 * 0 * 2) / 1.5**2,
        corrected=(1 + 1 * 0 * 1) / 1.5**2,
        truth=(np.linalg.inv([[2.0, 1.0], [1.0, 2.0]])[0, 0]) ** 2,
    ),
)
def last_line(problem: Pair):
    """The corrected last line, with the dense inverse, against our block form."""
    A, B = problem.blocks()
    A_t, B_t, _, _, _ = schur_parts(problem)
    condition = sum(np.linalg.cond(np.block(M)) ** 2 for M in (A, B))
    scale = np.prod([np.linalg.norm(np.linalg.inv(np.block(M)), 2) for M in (A, B)])
    scale *= np.sqrt(sum(np.sum(P**2) for P in problem.gradients))
    ours = linalg.kronecker_block_form(constants(A), constants(B), list(map(tf.constant, problem.gradients)))[0].numpy()
    P_u, P_v = problem.gradients
    I_t = np.linalg.solve(B[1][1], P_v) @ np.linalg.inv(A[1][1])
    right = kronecker.vec(P_u + B[0][1] @ I_t @ A[0][1].T)
    form = np.linalg.solve(kronecker.kron(A_t, B_t), right)
    yield same(kronecker.vec(ours), form, condition=condition, scale=scale, label="(A~ (x) B~)^{-1}")


@DGN.misprint(
    "E28",
    "Eq. 28",
    "inverses of the joint moments by Schur complements",
    assumes="regular blocks; with pseudo-inverses see E22",
    printed="A~_uu = A_uu - A_uv A_vv^{-1} A_uv^{-1}, and the same for A~_vv, B~_uu, B~_vv",
    corrected="A~_uu = A_uu - A_uv A_vv^{-1} A_uv', and the same for A~_vv, B~_uu, B~_vv",
    derivation="The moments are symmetric, A_vu = A_uv', and block elimination of v leaves A_uu - A_uv A_vv^{-1} A_vu.",
    origin="likely OCR",
    over=pairs(),
    counterexample=lambda: Counterexample(
        "scalars A_uu = A_vv = 2, A_uv = 1/2: A~_uu",
        printed=2 - 0.5 / 2 / 0.5,
        corrected=2 - 0.5 / 2 * 0.5,
        truth=1 / np.linalg.inv([[2, 0.5], [0.5, 2]])[0, 0],
    ),
)
def inverses_of_moments(problem: Pair):
    """Our block inverse of both moments against the inverse of the assembled matrix."""
    for label, M in zip("AB", problem.blocks(), strict=True):
        joint = np.block(M)
        inverse, condition, m = np.linalg.inv(joint), np.linalg.cond(joint), len(M[0][0])
        ours = linalg.block_inverse(*map(tf.constant, (M[0][0], M[0][1], M[1][1])))
        parts = (inverse[:m, :m], inverse[:m, m:], inverse[m:, m:])
        for name, block, truth in zip(("uu", "uv", "vv"), ours, parts, strict=True):
            yield same(block, truth, condition=condition, scale=np.linalg.norm(inverse), label=f"{label}, {name}")
        reduced = linalg.schur_complement(*map(tf.constant, (M[0][0], M[0][1], M[1][1])))
        scale = np.linalg.norm(M[0][0])
        truth = M[0][0] - M[0][1] @ np.linalg.solve(M[1][1], M[0][1].T)
        yield same(reduced, truth, condition=condition, scale=scale, label=f"{label}~")
