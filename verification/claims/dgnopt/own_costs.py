"""Players of several tasks: footnote 1."""

import numpy as np
import tensorflow as tf

from bellman_tf.bellman import own_costs, rollout, sample_space
from verification.claim import same
from verification.derivations.rollout import reach, terminal_of
from verification.papers import DGN
from verification.problems.own_costs import OwnGame, own_games
from verification.references import own_costs as reference


def weights_of(problem: OwnGame, *, curved=True):
    """Our weights of every player at every stage, [T, N, n]; without curvature those of the mean losses."""
    values = [terminal_of(end) for end in problem.ends]
    a, L = own_costs.side_by_side(values, problem.widths)
    cost = [cost for _, cost in problem.seats]
    terminal = sample_space.SampleValue(*(tf.gather(x[:, 0], cost) for x in (a, L)))
    if not curved:
        return np.tile(terminal.a.numpy(), (len(problem.felt), 1, 1))
    G, l = grams_of(problem)
    return rollout.roll_out(terminal, tf.constant(G), tf.constant(l), joint=False, feedback=True, own=True).numpy()


def grams_of(problem: OwnGame):
    """G [T, N, n, n] and l [T, N, n] of every player, over the columns of all costs; zero where it does not act."""
    whole = problem.whole
    found = [whole.grams(place) for place in range(max(map(len, problem.felt)))]
    acts = [[len(stage) > place and stage[place] == cost for place, cost in problem.seats] for stage in problem.felt]
    G, l = (np.array([[found[place][k][t] for place, _ in problem.seats] for t in range(len(acts))]) for k in (0, 1))
    acts = np.array(acts)
    return G * acts[:, :, None, None], l * acts[:, :, None]


def moves_of(problem: OwnGame, weights):
    """Our change of every player's parameters, per stage and player, None where it does not act."""
    whole, found = problem.whole, []
    for t, felt in enumerate(problem.felt):
        found.append([])
        for n, (place, cost) in enumerate(problem.seats):
            if place >= len(felt) or felt[place] != cost:
                found[-1].append(None)
                continue
            p = whole.stages[t].players[place]
            found[-1].append(-np.linalg.solve(p.metric, p.l_u + whole.parameter_columns(t, p) @ weights[t, n]))
    return found


def condition_of(problem: OwnGame):
    """Of the metrics and of I + S Gamma of every cost, added; a stage feeds the rounding errors of others back."""
    whole = problem.whole
    metrics = max(np.linalg.cond(p.metric) for stage in whole.stages for p in stage.players)
    roots = [np.max(np.abs(terminal_of(end).L.numpy())) for end in problem.ends]
    stiff = 1 + max(roots) ** 2 * np.linalg.norm(sum(whole.grams()[0]), 2)
    return (metrics + stiff) * len(whole.stages)


@DGN.definition(
    "FN1",
    "footnote 1 with Eqs. 3, 6",
    "players of different tasks (an auxiliary loss) have costs phi_n of their own: V_{T,n} = phi_n, one recursion each,"
    " under dynamics that all share",
    assumes="linear dynamics, the update as printed (E9)",
    remark="In the space of samples: the columns of all costs side by side, a and S of a player zero outside its own"
    " columns, one Gram matrix per player over all of them; the deviation brings what a player of one task does to the"
    " loss of another. Without curvature (OLNE) a player steps along the gradient of its own loss.",
    over=own_games(max_log_condition=4, max_log_stiffness=2),
)
def own_terminal_costs(problem: OwnGame):
    """Ours against the dense recursion of every player, executed; without curvature against the gradient of phi_n."""
    whole, weights = problem.whole, weights_of(problem)
    controls, jacobians = problem.controls()
    truth = reference.execute(problem.costs(), controls, jacobians, whole.batch_size)
    size, ours = reach(whole), moves_of(problem, weights)
    condition = condition_of(problem) * (1 + np.linalg.norm(grams_of(problem)[1]) + np.linalg.norm(weights))
    for t in range(len(truth)):
        for du, exact in zip(ours[t], truth[t], strict=True):
            if exact is not None:
                yield same(du, exact, condition=condition, scale=size, label="du_n")
    plain = moves_of(problem, weights_of(problem, curved=False))
    slopes = [end.all_columns() for end in problem.ends]
    for t in range(len(plain)):
        for n, (place, cost) in enumerate(problem.seats):
            if plain[t][n] is not None:
                p = whole.stages[t].players[place]
                own = p.l_u + np.mean(np.einsum("bnm,bn->bm", p.f_u, slopes[cost][t + 1][:, :, 0]), axis=0)
                exact = -np.linalg.solve(p.metric, own)
                yield same(plain[t][n], exact, condition=condition, scale=size, label="without curvature")
