"""`python -m verification.mutate`: breaks the core on purpose, one sign at a time, and looks whether a claim goes red.

A mutant changes one operator of one line of `bellman_tf/linalg` or `bellman_tf/bellman`: + to -, - to +, * to /, a
minus sign left out, a transposition left out. In a process of its own the code of the mutated function is put in place
of the original's, wherever it has been imported, and only the claims that call the function are run. An error or a
claim that runs too long counts as found out, like a contradiction.

Ends with 1 when fewer than 95 % are found out.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import importlib
import pathlib
import sys
from collections import defaultdict
from multiprocessing import get_context
from multiprocessing.connection import Connection

import keras

from verification.claims import CLAIMS
from verification.mutants import EQUIVALENT, UNNOTICED, Mutant, applied, core_modules, functions, mutants
from verification.run import run

TARGET = 0.95
SECONDS = 90  # for the claims of one mutant, start of the process included


def found_out(mutant: Mutant, names: list[str]) -> str:
    """Runs claims on a mutant until one goes red.

    Args:
        mutant: the mutant.
        names: identifiers of the claims that call it.

    Returns:
        The claim that found it, or an empty string.
    """
    with applied(mutant):
        for name in names:
            try:
                if run(CLAIMS[name], "fast").contradiction:
                    return name
            except Exception as error:  # whatever a broken core raises, it has been found out
                return f"{name} ({type(error).__name__})"
    return ""


def _serve(pipe: Connection) -> None:
    """The worker: answers (module, number of the mutant, claims) with what found it out."""
    known: dict[str, list[Mutant]] = {}
    while True:
        module, number, names = pipe.recv()
        if module not in known:
            known[module] = list(mutants(importlib.import_module(module)))
        pipe.send(found_out(known[module][number], names))


class Worker:
    """A process that tries mutants: a mutant may never end, and compiled loops cannot be interrupted."""

    def __init__(self) -> None:
        self._pipe, other = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(other,), daemon=True)
        self._process.start()

    def ask(self, module: str, number: int, names: list[str]) -> str:
        """What finds a mutant out; too long counts, and costs the worker its life.

        Args:
            module: dotted name.
            number: of the mutant in the module.
            names: claims to run.

        Returns:
            The claim, or an empty string.
        """
        self._pipe.send((module, number, names))
        if self._pipe.poll(SECONDS):
            return self._pipe.recv()
        self.stop()
        self.__init__()
        return "too long"

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def callers() -> dict[str, list[str]]:
    """Which claims call which function, by running them all once; a claim that is red already is an error.

    Returns:
        "module:function" to identifiers, the quickest claims first.

    Raises:
        RuntimeError: if a claim is contradicted without any mutation.
    """
    core = {f.__code__: f"{m.__name__}:{name}" for m in core_modules() for name, f in functions(m).items()}
    calls, seconds = defaultdict(set), {}
    for name, claim in CLAIMS.items():
        called = set()

        def listen(frame, event, argument, called=called):
            if event == "call" and frame.f_code in core:
                called.add(core[frame.f_code])

        sys.setprofile(listen)
        result = run(claim, "fast")
        sys.setprofile(None)
        if result.contradiction:
            raise RuntimeError(f"{name} is contradicted without any mutation: {result.contradiction}")
        seconds[name] = result.seconds
        for function in called:
            calls[function].add(name)
    return {function: sorted(names, key=seconds.get) for function, names in calls.items()}


def main() -> int:
    """Command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", help="only this module, for example bellman.dense")
    parser.add_argument("--out", type=pathlib.Path, help="write the list of all mutants")
    options = parser.parse_args()
    modules = [m for m in core_modules() if not options.module or m.__name__ == f"bellman_tf.{options.module}"]
    if not modules:
        parser.error(
            f"`--module` must be one of {[m.__name__[11:] for m in core_modules()]}. Received: {options.module}."
        )
    called, worker = callers(), Worker()
    everything = [pair for module in modules for pair in enumerate(mutants(module))]
    progress = keras.utils.Progbar(len(everything), unit_name="mutant")
    lines, tally = [], defaultdict(lambda: [0, 0, 0])
    for done, (number, mutant) in enumerate(everything, 1):
        names = called.get(f"{mutant.module}:{mutant.function}", [])
        killer = worker.ask(mutant.module, number, names) if names else ""
        key = (mutant.module, mutant.after)
        reason = "" if killer else EQUIVALENT.get(key, "")
        tally[mutant.module][0 if killer else 1 if reason else 2] += 1
        verdict = killer or (
            f"SAME: {reason}" if reason else f"SURVIVES ({len(names)} claims call it) {UNNOTICED.get(key, '')}"
        )
        lines.append(
            f"{mutant.module}:{mutant.line} {mutant.function}\n    {mutant.before}\n    {mutant.after}\n    {verdict}"
        )
        progress.update(done)
    worker.stop()
    print("\n" + "\n".join(line for line in lines if "SURVIVES" in line or "SAME: " in line))
    print(f"\n{'module':34}{'found out':>10}{'same':>6}{'survive':>9}")
    for module, counts in tally.items():
        print(f"{module:34}{counts[0]:>10}{counts[1]:>6}{counts[2]:>9}")
    killed, equivalent, survive = (sum(counts[i] for counts in tally.values()) for i in range(3))
    share = killed / max(killed + survive, 1)
    print(f"{killed} of {killed + survive} mutants found out, {share:.1%}; {equivalent} more compute the same")
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return int(share < TARGET)


if __name__ == "__main__":
    sys.exit(main())
