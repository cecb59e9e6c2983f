"""What `keras_examples/README.md` and other pages say of the contest's long runs, made from the results."""

from collections.abc import Iterator

from tests.docs.quotes import ADAMW, INSIDE, OF_MODEL, RESIDUAL, SGD, VIT, cost, within_the_bracket
from tests.docs.results import Contest, by_rate, contest, span

FOLDER = "against_the_best_gpu"
MODEL, CONTROLLED = "K-FAC of the model's Fisher", "GTDDP, Adam under step control"


def long_runs(file: str = "table.md") -> Contest:
    """The contest of 2000 steps on a GPU; "table_cpu.md" has it in a CPU's step times."""
    return contest(FOLDER, file)


def change(task: str, method: str) -> str:
    """Losses of a rule alone and with the game, three digits, of brackets that are apart."""
    found = long_runs()
    (_, high), (low, _) = (found.bracket(task, name) for name in (method, INSIDE[method]))
    assert high < low, f"{task}, {method}: brackets overlap"
    return f"{loss(task, INSIDE[method])} to {loss(task, method)}"


def loss(task: str, method: str) -> str:
    """Mean test loss, three digits."""
    return f"{float(long_runs().loss(task, method)):.3f}"


def costs(found: Contest) -> list[str]:
    """Time of a step around SGD and AdamW over theirs, on the ViT and the residual net."""
    return [f"{cost(found, task, method):.1f}" for task in (VIT, RESIDUAL) for method in (SGD, ADAMW)]


def bold(task: str, method: str) -> str:
    """A rule alone and with the game, as the README writes it: the lower one bold."""
    return change(task, method).replace(" to ", ", **") + "**"


def readme() -> Iterator[str]:
    """Pieces of the section "Why, and why not"."""
    yield (
        f"test loss, residual net: SGD {bold(RESIDUAL, SGD)}; AdamW {bold(RESIDUAL, ADAMW)}; ViT: SGD "
        f"{bold(VIT, SGD)}; AdamW {bold(VIT, ADAMW)}; Muon alone {loss(RESIDUAL, 'Muon')} and {loss(VIT, 'Muon')} |"
    )
    yield f"in compiled loops {span(map(float, costs(long_runs())), '.1f')} times the time of the optimizer inside |"


def which_optimizer() -> Iterator[str]:
    """Pieces of `docs/which-optimizer.md`."""
    yield (
        f"the residual net ends at {loss(RESIDUAL, SGD)} with SGD inside (SGD alone {loss(RESIDUAL, INSIDE[SGD])}) and "
        f"at {loss(RESIDUAL, ADAMW)} with AdamW inside (AdamW alone {loss(RESIDUAL, 'AdamW')}, Muon alone "
        f"{loss(RESIDUAL, 'Muon')}), the ViT at {loss(VIT, SGD)} ({loss(VIT, INSIDE[SGD])}) and {loss(VIT, ADAMW)} "
        f"({loss(VIT, 'AdamW')}, Muon {loss(VIT, 'Muon')}). In a CPU's step times AdamW's loss on the residual net is "
        f"reached in {long_runs('table_cpu.md').to_adamw(RESIDUAL, ADAMW)[1]} of its time."
    )


def performance() -> Iterator[str]:
    """Pieces of `docs/performance.md`."""
    found, there = long_runs(), costs(long_runs())
    vit, residual = (f"{found.milliseconds(task, INSIDE[SGD]):.3f}" for task in (VIT, RESIDUAL))
    yield (
        f"the game takes {there[0]} and {there[1]} times the time of SGD and AdamW on a ViT at B = 128 ({vit} ms), "
        f"{there[2]} and {there[3]} times on a residual net ({residual} ms):"
    )


def pieces() -> Iterator[str]:
    """Pieces of the section "At length, on a GPU"."""
    gpu, cpu = long_runs(), long_runs("table_cpu.md")
    hits = {m: f"{gpu.accuracy(RESIDUAL, INSIDE[m])} to {gpu.accuracy(RESIDUAL, m)} %" for m in (SGD, ADAMW)}
    yield (
        f"SGD {change(RESIDUAL, SGD)} (accuracy {hits[SGD]}), AdamW {change(RESIDUAL, ADAMW)} ({hits[ADAMW]}), "
        f"brackets apart; Muon alone has {loss(RESIDUAL, 'Muon')}."
    )
    steps, before = (found.to_adamw(RESIDUAL, ADAMW)[0] for found in (gpu, contest()))
    share, lowest = cpu.to_adamw(RESIDUAL, ADAMW)[1], cpu.goal(RESIDUAL, "lowest")
    assert not within_the_bracket(lowest) and float(share) <= 0.8
    yield (
        f"AdamW's train loss is reached in {steps} of its steps, {before} in runs of 200. In a CPU's times that is "
        f"{share} of its time, which meets the goal, and at equal time {loss(RESIDUAL, ADAMW)} stands against "
        f"{lowest.split(' against ')[1].split(')')[0]}), beyond the bracket."
    )
    yield (
        f"SGD goes from {change(VIT, SGD)} and AdamW from {change(VIT, ADAMW)}, brackets apart; Muon alone is level "
        f"with it, {loss(VIT, 'Muon')}. The lowest loss of all is again of the model's K-FAC under step control, "
        f"{loss(VIT, OF_MODEL)}, within Muon's bracket; the metric alone has {loss(VIT, MODEL)}."
    )
    rates = {name: by_rate(FOLDER, VIT, name) for name in (OF_MODEL, CONTROLLED, "AdamW")}
    ends = {name: f"{min(losses):.3f} and {max(losses):.3f}" for name, losses in rates.items()}
    yield (
        f"K-FAC's ends between {ends[OF_MODEL]} and Adam's diagonal between {ends[CONTROLLED]} (cosine, seed 0), where "
        f"AdamW's four rates end between {ends['AdamW']}. On the residual net Adam's diagonal stays behind, "
        f"{loss(RESIDUAL, CONTROLLED)}, as in short runs."
    )
    there, here = costs(gpu), costs(cpu)
    yield (
        f"around SGD and AdamW {there[0]} and {there[1]} times theirs on the ViT, {there[2]} and {there[3]} on the "
        f"residual net, where a CPU has {span(map(float, here), '.1f').replace(' to ', ' and ')}:"
    )
