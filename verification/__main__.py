"""`python -m verification`: checks every claim of the four papers and says which stand.

Ends with 1 when a result contradicts its verdict.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import difflib
import json
import pathlib
import sys
import time

import keras

from verification.claims import CLAIMS, PAPERS, find
from verification.report import page
from verification.run import PROFILES, run_all
from verification.table import as_json, environment, summary, table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--paper", choices=PAPERS, action="append", help="only the claims of this paper; repeatable")
    parser.add_argument("--claim", metavar="ID", action="append", help="only this claim; repeatable")
    parser.add_argument("--profile", choices=PROFILES, default="default", help="how many problems per claim")
    parser.add_argument("--seed", type=int, default=0, help="of Hypothesis")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every measurement")
    parser.add_argument("--report", type=pathlib.Path, metavar="DIR", help="write DIR/index.html")
    return parser


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    if options.jobs < 1:
        parser.error(f"`--jobs` must be at least 1. Received: {options.jobs}.")
    for name in options.claim or []:
        if name not in CLAIMS:
            near = difflib.get_close_matches(name.upper(), CLAIMS, n=5, cutoff=0.5)
            hint = f" Did you mean {', '.join(near)}?" if near else " Run without --claim to see all."
            parser.error(f"`--claim` must be the ID of a claim. Received: {name}.{hint}")
    if options.claim:
        return list(dict.fromkeys(options.claim))
    return [name for tag in options.paper or PAPERS for name in PAPERS[tag].claims]


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Args:
        arguments: in place of those of the process.

    Returns:
        The exit code: 1 when a claim is contradicted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    names = _chosen(parser, options)
    progress, results, start = keras.utils.Progbar(len(names), unit_name="claim"), {}, time.perf_counter()
    for result in run_all(names, find, options.profile, options.seed, min(options.jobs, len(names))):
        results[result.id] = result
        progress.update(len(results))
    seconds, settings = time.perf_counter() - start, environment(options.profile, options.seed)
    for paper in PAPERS.values():
        if any(name in results for name in paper.claims):
            print(f"\n{table(paper, results)}")
    line = summary(CLAIMS, results, seconds)
    print(f"\n{line}\n" + "; ".join(f"{name} {value}" for name, value in settings.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(CLAIMS, results, settings), indent=1, allow_nan=False) + "\n")
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "index.html").write_text(page(PAPERS, results, settings, line))
        print(f"report: {options.report / 'index.html'}")
    return int(any(result.contradiction for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
