"""The four papers, those of their baselines, and what we derived ourselves; `verification.claims` fills them."""

from verification.claim import Paper

AUTHORS = "Guan-Horng Liu, Tianrong Chen, Evangelos A. Theodorou"

GTDDP = Paper(
    "GTDDP", "A Differential Game Theoretic Neural Optimizer for Training Residual Networks (GT-DDP)", AUTHORS
)
DDP1 = Paper("DDP1", "Differential Dynamic Programming Neural Optimizer", AUTHORS)
DGN = Paper("DGN", "Dynamic Game Theoretic Neural Optimizer (DGNOpt)", AUTHORS)
DDPN = Paper("DDPN", "DDPNOpt: Differential Dynamic Programming Neural Optimizer", AUTHORS)
BASE = Paper("BASE", "Baselines: E-MSA (2018), KWNG (2020)", "Li, Chen, Tai, E; Arbel, Gretton, Li, Montufar")
OURS = Paper("OURS", "Derived for bellman_tf", "the authors of bellman_tf")
