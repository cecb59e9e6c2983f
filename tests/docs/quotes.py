"""What pages quote of committed results: pieces of their text, made from the results.

Each function names a page's pieces in the page's order. `tests/docs/test_quotes.py` wants every piece in the page and
no other figure beside the settings listed here.
"""

from collections.abc import Iterator

from tests.docs.results import Contest, benchmark, contest, span, step_control, study

TASKS = {  # of the contest, as `docs/which-optimizer.md` calls them; figures here are settings of the runs
    "DIGITS, tanh MLP": "DIGITS, tanh MLP, B = 8",
    "characters, transformer": "characters, transformer, B = 32, 200 steps",
    "MNIST, deep autoencoder": "MNIST, deep autoencoder, B = 250, 120 steps",
    "CIFAR-10, residual net": "CIFAR-10, residual net, B = 128, 200 steps",
    "CIFAR-10, residual net with BN": "CIFAR-10, residual net with BatchNormalization, B = 128, 200 steps",
    "CIFAR-10, ViT": "CIFAR-10, ViT, B = 128, 200 steps",
}
DIGITS, CHARACTERS, AUTOENCODER, RESIDUAL, NORMALISED, VIT = TASKS
INSIDE = {"GTDDP, SGD inside": "SGD, momentum", "GTDDP, AdamW inside": "AdamW", "GTDDP, Muon inside": "Muon"}
SGD, ADAMW, MUON = INSIDE
OF_MODEL = "GTDDP, model's K-FAC under step control"
NETWORKS = {  # of `benchmarks.step_time`, as `docs/performance.md` calls them
    "cnn": "residual CNN | 128",
    "cifar": "residual net, CIFAR | 128",
    "vit": "ViT, 3 blocks | 64",
    "text": "character transformer | 64",
    "autoencoder": "deep autoencoder | 250",
    "mlp": "MLP of width 32 | 8",
    "frozen": "frozen MobileNetV2, head | 16",
    "resnet18": "ResNet-18 with BatchNormalization | 32",
}
SMALL = ("digits, B = 8", "digits, B = 64")  # tasks of `studies.step_control` without `--tasks`
COLUMNS = ("keras adam", "linear identity", "linear adam", "linear kfac", "open kfac")


def readme() -> Iterator[str]:
    """Pieces of the section "Why, and why not"."""
    digits, bn, wide = study("digits", "digits mlp"), study("mnist", "mnist BN B=64"), study("mnist", "mnist BN B=128")
    ten, best = digits.at_ten, digits.best
    yield (
        f"SGD {ten['GTDDP, identity']}; K-FAC {ten['GTDDP, kfac']}; but RMSprop {ten['GTDDP, rmsprop']}; "
        f"Adam {ten['GTDDP, adam']} |"
    )
    yield (
        f"SGD {best['GTDDP, identity']}; K-FAC {best['GTDDP, kfac']}; EKFAC {best['GTDDP, ekfac']}; "
        f"RMSprop {best['GTDDP, rmsprop']}; Adam {best['GTDDP, adam']} |"
    )
    yield f"median final loss {_step_control()} |"
    found = contest()
    fewest = [min(_shares(found, task, 0)) for task in found.tasks]
    yield f"{span(fewest)} of AdamW's, by the game with the fewest, on {len(fewest)} tasks |"
    yield f"{_times(found)} of AdamW's; we wanted 0.8 or less, which it is on {_met(found, 'time')} |"
    lowest = {task: found.goal(task, "lowest") for task in found.tasks}
    clear = [task for task, goal in lowest.items() if goal.endswith("**yes**") and not within_the_bracket(goal)]
    assert clear == [AUTOENCODER]
    yield f"lower than every baseline's on {_met(found, 'lowest')}, beyond the spread of the seeds on the autoencoder |"
    reached = f"we wanted 1.5 times or more, which it is on {_met(found, 'width')}, by step control"
    yield f"{span(_widths(found))} times the widest baseline's; {reached} |"
    assert float(wide.best["GTDDP, identity"].game) < float(wide.best["GTDDP, identity"].alone)
    assert float(wide.best["GTDDP, rmsprop"].game) > float(wide.best["GTDDP, rmsprop"].alone)
    yield f"SGD {bn.best['GTDDP, identity']}; RMSprop {bn.best['GTDDP, rmsprop']}; at B = 128 ahead of SGD only |"
    steps = benchmark("step_time")["results"]
    ratios = {row: span((rows[row]["fit_against"] for rows in steps.values()), ".1f") for row in COLUMNS[1:4]}
    yield (
        f"SGD {ratios['linear identity']}, Adam {ratios['linear adam']}, K-FAC {ratios['linear kfac']} on {len(steps)} "
        f"networks; around AdamW on the DIGITS MLP {cost(found, DIGITS, ADAMW):.1f} |"
    )
    identity, kfac, ekfac = (sorted(_on_a_gpu(row)) for row in ("identity", "kfac", "ekfac"))
    yield (
        f"identity {span(identity, '.1f')} times SGD's time, K-FAC {span(kfac, '.1f')}, "
        f"EKFAC {ekfac[0]:.2g} to {ekfac[-1]:.2g} on {len(ekfac)} networks"
    )


def _on_a_gpu(row: str) -> list[float]:
    """Ratios to SGD's time on a GPU of the CNN, the ViT and ResNet-18."""
    now, before = (benchmark("gpu_step")[f"steps, {form}"]["results"] for form in _FORMS)
    return [(before | now)[f"{network}_{row}"]["ratio"] for network in ("cnn", "vit", "resnet18")]


_FORMS = ("present form", "with tf.linalg.cholesky in place of factor_in_columns")  # the second has EKFAC's rows
README_SETTINGS = ("(MNIST, B = 64)", "CIFAR-10, 2000 steps")


def which_optimizer() -> Iterator[str]:
    """Pieces of `docs/which-optimizer.md`."""
    found, digits = contest(), study("digits", "digits mlp")
    ten = digits.at_ten
    yield (
        f"the autoencoder reached AdamW's loss in {found.to_adamw(AUTOENCODER, ADAMW)[0]} of its steps, the residual "
        f"net in {found.to_adamw(RESIDUAL, ADAMW)[0]}, the ViT in {found.to_adamw(VIT, ADAMW)[0]}, the residual net "
        f"with BatchNormalization in {found.to_adamw(NORMALISED, ADAMW)[0]}, the character transformer with Muon in "
        f"{found.to_adamw(CHARACTERS, MUON)[0]}; on DIGITS {found.to_adamw(DIGITS, ADAMW)[0]} |"
    )
    yield (
        f"AdamW's loss is reached in 0.8 of its time on {_met(found, 'time')} tasks: {_times(found)}. At equal time "
        f"the lowest loss is the game's on {_met(found, 'lowest')}, beyond the spread of the seeds on the autoencoder |"
    )
    yield (
        f"DIGITS MLP at ten times the baseline's best rate: SGD {ten['GTDDP, identity'].words} with the game, "
        f"K-FAC {ten['GTDDP, kfac'].words}, EKFAC {ten['GTDDP, ekfac'].words} |"
    )
    yield f"from starts over four decades the median final loss is {_step_control()} |"
    dear = [found.milliseconds(task, OF_MODEL) / found.milliseconds(task, "AdamW") for task in (AUTOENCODER, VIT)]
    yield (
        f"autoencoder {found.loss(AUTOENCODER, OF_MODEL)}, AdamW {found.loss(AUTOENCODER, 'AdamW')}, K-FAC with the "
        f"game {found.loss(AUTOENCODER, 'GTDDP, K-FAC')}; ViT {found.loss(VIT, OF_MODEL)}, AdamW "
        f"{found.loss(VIT, 'AdamW')}, Muon {found.loss(VIT, 'Muon')}. A step takes {dear[0]:.1f} and {dear[1]:.1f} "
        f"times AdamW's |"
    )
    kfac, adam = digits.best["GTDDP, kfac"], digits.best["GTDDP, adam"]
    yield f"train loss {kfac.game}, K-FAC alone {kfac.alone}, Adam {adam.alone} |"
    games = min((found.loss(DIGITS, method) for method in found.games(DIGITS)), key=float)
    yield f"DIGITS: {found.loss(DIGITS, 'EKFAC')} and {found.loss(DIGITS, 'Muon')}; the best game {games} |"
    yield (
        f"at ten times the best rate DIGITS is worse with the game: RMSprop {ten['GTDDP, rmsprop'].words}, "
        f"Adam {ten['GTDDP, adam'].words};"
    )
    resnet = benchmark("step_time")["results"]["resnet18 jit off"]["linear identity"]["fit_ratio"]
    yield f"a step of ResNet-18 takes {resnet:.2f} times SGD's |"
    small, wide = study("mnist", "mnist B=64").best, study("mnist", "mnist B=128").best
    sgd, rms = "GTDDP, identity", "GTDDP, rmsprop"
    yield (
        f"MNIST residual net: SGD {small[sgd].words} (B = 64), {wide[sgd].words} (B = 128); "
        f"RMSprop {small[rms].words}, {wide[rms].words} |"
    )
    coupled, grouped = _batch("4096")
    yield f"at B = 4096 the coupled step takes {coupled:.0f} times SGD's, in groups of 64 {grouped:.1f} times;"
    for task in found.tasks:
        yield _contest_row(found, task)
    yield (
        f"SGD ({_change(found, RESIDUAL, SGD)}) and AdamW ({_change(found, RESIDUAL, ADAMW)}) "
        f"on the residual net, of AdamW on the autoencoder ({_change(found, AUTOENCODER, ADAMW)}), of "
        f"Muon ({_change(found, CHARACTERS, MUON)}) and AdamW "
        f"({_change(found, CHARACTERS, ADAMW)}) on the characters, of SGD ({_change(found, VIT, SGD)}), AdamW "
        f"({_change(found, VIT, ADAMW)}) and Muon ({_change(found, VIT, MUON)}) on the ViT, and of SGD "
        f"({_change(found, NORMALISED, SGD)}), AdamW ({_change(found, NORMALISED, ADAMW)}) and Muon "
        f"({_change(found, NORMALISED, MUON)}) on the residual net with BatchNormalization"
    )
    apart = (DIGITS, NORMALISED)
    others = [cost(found, t, m) for t in found.tasks if t not in apart for m in INSIDE if m in found.tasks[t]]
    yield (
        f"A step around another optimizer takes {span(others)} times as long as that optimizer's, on DIGITS "
        f"{span(cost(found, DIGITS, method) for method in INSIDE)} times, with BatchNormalization "
        f"{span(cost(found, NORMALISED, method) for method in INSIDE)} times"
    )


WHICH_SETTINGS = (  # what runs were, and goals
    "damping=1e-3", "update_every=10", "(every=4)",
    "DIGITS MLP, B = 8:", "rate 0.1", "at both batch sizes, SGD's at B = 64", "`group_size=64` or 128", "(goal 0.8)",
    "(goal 1.5)", "tanh MLP 64-20-20-20-20-10, B = 8, 1500 steps", "damping 0.1",
    "2000 steps over all of CIFAR-10",
)  # fmt: skip


def performance() -> Iterator[str]:
    """Pieces of `docs/performance.md`."""
    steps = benchmark("step_time")["results"]
    for network, title in NETWORKS.items():
        rows = steps[f"{network} jit off"]
        sgd = rows["keras sgd"]["fit_ms"]
        cells = [f"{rows[column]['fit_ratio']:.2f}" for column in COLUMNS]
        yield f"| {title} | {sgd:.{0 if sgd > 1 else 1}f} ms | {' | '.join(cells)} |"
    jit = benchmark("step_time_jit")["results"]
    cnn, vit, resnet = (
        [jit[f"{network} jit on"][row]["fit_ratio"] for row in ("linear identity", "linear kfac")]
        for network in ("cnn", "vit", "resnet18")
    )
    yield (
        f"the residual CNN takes {cnn[0]:.2f} with identity and {cnn[1]:.2f} with K-FAC, the ViT {vit[0]:.2f} and "
        f"{vit[1]:.2f}, ResNet-18 {resnet[0]:.2f} and {resnet[1]:.2f};"
    )
    identity, adam, kfac = ([f"{ratio:.2f}" for ratio in _on_a_gpu(row)] for row in ("identity", "adam", "kfac"))
    ekfac = sorted(_on_a_gpu("ekfac"))
    yield (
        f"ratio to SGD: identity {identity[0]} (CNN), {identity[1]} (ViT), {identity[2]} (ResNet-18, with "
        f"BatchNormalization), Adam {adam[0]}, {adam[1]} and {adam[2]}, K-FAC {kfac[0]}, {kfac[1]} and {kfac[2]}. "
        f"EKFAC takes {ekfac[0]:.2g} to {ekfac[-1]:.2g} times SGD's time there"
    )
    traces, first = benchmark("trace_time")["seconds"].values(), benchmark("first_step")["seconds"]["mobilenet"]
    identity, adam, kfac = (span((t[row] / t["keras sgd"] for t in traces), ".1f") for row in COLUMNS[1:4])
    yield f"takes {identity} times SGD's time with the identity metric, {adam} with Adam and {kfac} with K-FAC;"
    sgd, identity, kfac = (first[row] for row in ("keras sgd", "linear identity", "linear kfac"))
    yield f"{identity / sgd:.1f} (identity) to {kfac / sgd:.1f} times (K-FAC), from SGD's {sgd:.1f} s."
    cnn = benchmark("batch_scaling")["results"]["residual CNN"]["512"]
    yield f"It is {cnn['weights']['ms'] / cnn['GTDDP']['ms']:.0%} of a step of the residual CNN at B = 512.".replace(
        "%", " %"
    )
    (small, _), (middle, _), (large, groups) = (_batch(size) for size in ("64", "512", "4096"))
    yield (
        f"takes {small:.1f} times SGD's at 64, {middle:.0f} times at 512 and {large:.0f} times at 4096, where groups "
        f"of 64 take {groups:.1f} times."
    )
    mlp = "MLP, B = 512"
    yield (
        f"at {_best_rate(f'{mlp}; groups of 32'):.4f} in groups of 32 (SGD: {_best_rate(f'{mlp}; SGD'):.4f}), "
        f"{_best_rate(f'{mlp}; groups of 128'):.4f} in groups of 128 and "
        f"{_best_rate(f'{mlp}; whole batch of 512'):.4f} with the whole batch coupled."
    )
    lengths = benchmark("batch_scaling")["results"]["sequence length"].values()
    ratios = span((rows["GTDDP"]["ms"] / rows["SGD"]["ms"] for rows in lengths), ".1f")
    yield f"{ratios} times SGD's time on a transformer"
    peaks = ("keras sgd", "linear identity", "linear adam", "linear kfac")
    small, large = ([f"{steps[f'{n} jit off'][row]['peak_mb']:.0f}" for row in peaks] for n in ("cnn", "resnet18"))
    yield f"Peaks on the CNN: SGD {small[0]} MB, identity {small[1]}, Adam {small[2]}, K-FAC {small[3]}; "
    yield f"on ResNet-18 {', '.join(large)}."
    control = benchmark("step_time_control")["results"]
    always, fourth, alone = (
        [f"{control[f'{network} jit off'][row]['fit_ratio']:.2f}" for network in ("cnn", "cifar")]
        for row in ("step control", "step control every 4", "linear identity")
    )
    yield f"{always[0]} times SGD's step on the residual CNN and {always[1]} on the CIFAR net,"
    yield f"the game alone takes {' and '.join(alone)};"
    yield f"which measures every fourth step, {' and '.join(fourth)}."
    cheap, exact = ({r["metric"]: r for r in benchmark("normalisation")["rows"] if r["way"] == way} for way in _WAYS)
    worse = [f"{cheap[metric]['loss'] / exact[metric]['loss']:.1f}" for metric in ("identity", "adam")]
    yield f"one more backward pass, {span((exact[m]['time'] / cheap[m]['time'] for m in cheap), '.1f')} times a step."
    yield f"reaches {worse[0]} times the loss with identity and {worse[1]} times with Adam."
    tap, normalised = (_off(f"{case} BatchNormalization", "sketch") for case in ("without", "with"))
    rank_one = _off("wide, rmsprop", "rank one") + _off("wide, adam", "rank one")
    some = _off("transformer, identity", "1 of 4") + _off("transformer, adam", "1 of 4")
    mixed = _off("transformer, kfac", "1 of 4")
    yield (
        f"sample weights off by {max(tap):.2f} without normalisation, up to {max(normalised):.2f} with "
        f"BatchNormalization), rank-one metrics of wide dense layers (off by {max(rank_one):.2f}), a quarter of "
        f"the features of a large layer with positions ({max(some):.3f}), under K-FAC a quarter as many sums of "
        f"whitened features with random signs ({max(mixed):.3f}),"
    )
    yield _exact_against_centre_tap()


_WAYS = ("cotangents", "backward pass")
PERFORMANCE_SETTINGS = (
    "TensorFlow 2.21", "Keras 3.15", "an MLP on DIGITS at B = 512", "block of 16 to 256 tokens", "(256 MiB)",
    # `benchmarks.embedding` keeps no file
    "256 hash buckets of a table (the weights are off by 0.2 % of their distance from those of the open loop)",
    "5 x 5 kernels",
)  # fmt: skip


def _step_control() -> str:
    digits, others = ([r for r in step_control() if (r["data"] in SMALL) is small] for small in (True, False))
    medians, worst = (
        [[float(row[f"{which} / best plain"]) for row in rows] for rows in (digits, others)]
        for which in ("median", "worst")
    )
    count = len({row["data"] for row in others})
    return (
        f"{span(medians[0])} times the best rate's on DIGITS and {span(medians[1])} times on {count} larger tasks; "
        f"single starts up to {max(worst[0]):.2f} and {max(worst[1]):.2f} times"
    )


def _shares(found: Contest, task: str, which: int) -> list[float]:
    return [shares[which] for method in found.games(task) if (shares := found.to_adamw(task, method))]


def _times(found: Contest) -> str:
    return span(min(_shares(found, task, 1)) for task in found.tasks)


def _widths(found: Contest) -> Iterator[float]:
    for task in found.tasks:
        yield float(found.goal(task, "width").lstrip("<>=~ ").split(" ")[0])


def _met(found: Contest, column: str) -> str:
    return found.goal(f"{len(found.tasks)} tasks", column).split(";")[0]


def within_the_bracket(goal: str) -> bool:
    """Whether the baseline's loss is no higher than the upper end of ours, so that a lower mean may be chance."""
    highest = float(goal.split("]")[0].split(", ")[-1])
    return float(goal.split(" against ")[1].split(" ")[0]) <= highest


def cost(found: Contest, task: str, method: str) -> float:
    """Time of a step over that of the optimizer inside."""
    return found.milliseconds(task, method) / found.milliseconds(task, INSIDE[method])


def _change(found: Contest, task: str, method: str) -> str:
    return f"{found.loss(task, INSIDE[method])} to {found.loss(task, method)}"


def _contest_row(found: Contest, task: str) -> str:
    """The row of a task in the page's table: goal by goal, who is fastest, lowest, widest."""
    time, rest = found.goal(task, "time").split(" (GTDDP, ")
    method, steps = rest.split(" of its steps")[0].rsplit(", ", 1)
    lowest, loss = found.goal(task, "lowest").split(" against ")
    ours, method_below = lowest.split(" ")[0], lowest.split("(GTDDP, ")[1].rstrip(")")
    other, name = loss.split(":")[0].rstrip(")").split(" (")
    ours, other = (f"**{text}**" if text == min(ours, other, key=float) else text for text in (ours, other))
    width = found.goal(task, "width").lstrip("<>=~ ").split(" ")[0]
    return (
        f"| {TASKS[task]} | {time} ({_with(method)}, {steps} of the steps) | {ours} ({_with(method_below)}) against "
        f"{name}'s {other} | {width} |"
    )


def _with(method: str) -> str:
    return method if method.endswith("inside") else f"{method} with the game"


def _batch(size: str) -> tuple[float, float]:
    """Times of the coupled step and of that in groups of 64, in SGD's."""
    rows = benchmark("batch_scaling")["results"]["batch size"][size]
    return rows["GTDDP"]["ms"] / rows["SGD"]["ms"], rows["GTDDP groups of 64"]["ms"] / rows["SGD"]["ms"]


def _by_rate(name: str, what: str) -> dict[str, float]:
    """Means over the seeds of a row of `benchmarks.gram_loss`, by learning rate."""
    runs: dict[str, list[float]] = {}
    for setting, run in benchmark("gram_loss")["results"][name].items():
        runs.setdefault(setting.split(",")[0], []).append(run[what])
    return {rate: sum(values) / len(values) for rate, values in runs.items()}


def _best_rate(name: str) -> float:
    return min(_by_rate(name, "loss").values())


def _off(case: str, form: str) -> list[float]:
    """Errors of the sample weights of all layers together after training, seed by seed."""
    cases = benchmark("gram_error")["results"]
    trained = [rows for name, rows in cases.items() if name.startswith(f"{case}, seed") and "200 steps" in name]
    assert trained, case
    return [next(row for row in rows if row["layer"] == "all layers")[form]["weights"] for rows in trained]


def _exact_against_centre_tap() -> str:
    names = [name.removesuffix("; exact") for name in benchmark("gram_loss")["results"] if name.endswith("adam; exact")]
    nets = [name for name in names if f"{name}; centre tap" in benchmark("gram_loss")["results"]]
    lower, times = 0, []
    for net in nets:
        exact, tap = (_by_rate(f"{net}; {form}", "loss") for form in ("exact", "centre tap"))
        lower += min(exact.values()) < min(min(tap.values()), _best_rate(f"{net}; random tap"))
        rate = min(exact, key=exact.get), min(tap, key=tap.get)
        times.append(_by_rate(f"{net}; exact", "ms")[rate[0]] / _by_rate(f"{net}; centre tap", "ms")[rate[1]])
    count = {3: "three", 4: "four", 5: "five"}
    return (
        f"the exact form has the lowest loss on {count[lower]} of {count[len(nets)]} small nets, for "
        f"{span(times, '.1f')} times the time;"
    )
