"""Linear algebra on tensors: symmetric matrices, damped solves, Schur complements, Kronecker products."""

from bellman_tf.linalg.cooperative import block_khatri_rao, kronecker_block_form, kronecker_cooperative_solve
from bellman_tf.linalg.cooperative_factors import (
    GameFactor,
    PairFactor,
    factor_block_form,
    factor_game,
    factor_pair,
    solve_block_form,
    solve_game,
    solve_pair,
)
from bellman_tf.linalg.kronecker import (
    ekfac_solve,
    kfac_solve,
    khatri_rao,
    kron,
    kron_multiply,
    kron_solve,
    kron_solve_factored,
    split_damping,
    unvec,
    vec,
)
from bellman_tf.linalg.schur import block_inverse, cooperative_solve, schur_complement
from bellman_tf.linalg.solve import Factor, factor_gram, factor_spd, inverse_spd, solve_spd, whiten
from bellman_tf.linalg.symmetric import eigh, is_finite, symmetrize

__all__ = [
    "Factor",
    "GameFactor",
    "PairFactor",
    "block_inverse",
    "block_khatri_rao",
    "cooperative_solve",
    "eigh",
    "ekfac_solve",
    "factor_block_form",
    "factor_game",
    "factor_gram",
    "factor_pair",
    "factor_spd",
    "inverse_spd",
    "is_finite",
    "kfac_solve",
    "khatri_rao",
    "kron",
    "kron_multiply",
    "kron_solve",
    "kron_solve_factored",
    "kronecker_block_form",
    "kronecker_cooperative_solve",
    "schur_complement",
    "solve_block_form",
    "solve_game",
    "solve_pair",
    "solve_spd",
    "split_damping",
    "symmetrize",
    "unvec",
    "vec",
    "whiten",
]
