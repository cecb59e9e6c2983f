"""Figures of the README and of two pages are those of the committed results; none stands there without a source."""

import re

import pytest

from tests.docs import at_length, quotes, results
from tests.docs.pages import DOCS, ROOT

README = (ROOT / "README.md").read_text().split("## Why, and why not")[1].split("\n## ")[0]
PAGES = {
    "README.md": (README, [quotes.readme, at_length.readme], quotes.README_SETTINGS),
    "docs/which-optimizer.md": (
        (DOCS / "which-optimizer.md").read_text(),
        [quotes.which_optimizer, at_length.which_optimizer],
        quotes.WHICH_SETTINGS,
    ),
    "docs/performance.md": (
        (DOCS / "performance.md").read_text(),
        [quotes.performance, at_length.performance],
        quotes.PERFORMANCE_SETTINGS,
    ),
}
NUMBER = re.compile(r"(?<![\w-])\d+(?:\.\d+)?(?!\w)")


def flat(text):
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_quotes_what_was_measured(page):
    text, sources, _ = PAGES[page]
    missing = [piece for pieces in sources for piece in pieces() if flat(piece) not in flat(text)]
    assert not missing, f"the committed results say otherwise than {page}; they say\n" + "\n".join(missing)


@pytest.mark.parametrize("page", PAGES)
def test_no_figure_of_a_page_is_without_a_source(page):
    text, sources, settings = PAGES[page]
    rest = flat(text)
    for piece in [*(piece for pieces in sources for piece in pieces()), *settings]:
        rest = rest.replace(flat(piece), " ... ")
    rest = re.sub(r"`[^`]*`|\]\([^)]*\)", " ... ", rest)
    loose = [rest[max(0, found.start() - 50) : found.end() + 30] for found in NUMBER.finditer(rest)]
    assert not loose, "figures that no piece of `tests/docs/quotes.py` covers:\n" + "\n".join(loose)


EXAMPLES = (ROOT / "keras_examples" / "README.md").read_text()
STUDIES = {
    "digits": ["digits mlp", "digits cnn"],
    "mnist": ["mnist B=64", "mnist B=128", "mnist BN B=64", "mnist BN B=128"],
}


@pytest.mark.parametrize(("folder", "task"), [(name, task) for name, tasks in STUDIES.items() for task in tasks])
def test_the_page_of_the_examples_has_the_losses_of_a_study(folder, task):
    section = EXAMPLES.split(f"**{task},")[1]
    printed = {row["method"]: row["train loss"].split(" ")[0] for row in results.tables(section)[0]}
    best = results.study(folder, task).best
    assert {method: printed[method] for method in best} == {method: pair.game for method, pair in best.items()}
    assert {pair.alone for pair in best.values()} <= set(printed.values())


def test_the_tables_of_digits_are_those_of_the_command():
    printed = (results.RESULTS / "digits" / "table.md").read_text().split("## Every rate")[0]
    shown = EXAMPLES.split("## Digits")[1].split("\n## ")[0]
    assert len(results.tables(shown)) == 2
    assert results.tables(shown) == results.tables(printed)


@pytest.mark.parametrize("file", ["", "table.md", "table_cpu.md"])
def test_the_page_of_the_examples_has_the_goals_of_the_contest(file):
    found = results.contest("against_the_best_gpu", file) if file else results.contest()
    assert list(found.goals.values()) in results.tables(EXAMPLES)


def test_the_page_of_the_examples_quotes_the_long_runs():
    missing = [piece for piece in at_length.pieces() if flat(piece) not in flat(EXAMPLES)]
    assert not missing, "\n".join(missing)
