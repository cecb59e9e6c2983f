"""The page of the papers: its tables are the store's, and every table and figure has a verdict."""

import pathlib
import re

import pytest

from keras_examples.papers import __main__ as command
from keras_examples.papers import catalogue, page

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "papers.md"
TEXT = PAGE.read_text()


def verdicts(text):
    """Name of a table or figure -> the verdict of its row."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    found = [(row[0].strip("`"), row[3]) for row in rows if len(row) == 4 and row[0].strip("`") in catalogue.ENTRIES]
    assert len(found) == len(dict(found)), "a name has two rows"
    return dict(found)


def defined(text):
    """The words in italics of the paragraph that defines them."""
    [paragraph] = re.findall(r"^Verdicts: .*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    return set(re.findall(r"\*([a-z ]+)\*", paragraph.replace("\n", " ")))


def test_every_name_of_the_list_has_a_verdict_among_those_defined():
    words = defined(TEXT)
    assert len(words) >= 4
    found = verdicts(TEXT)
    assert set(found) == set(catalogue.ENTRIES)
    for name, verdict in found.items():
        used = set(re.findall(r"\*([^*]+)\*", verdict))
        assert used and used <= words, (name, used - words)


def test_a_missing_name_and_an_unknown_verdict_are_noticed():
    line = "| `ddp-fig-6` | Fig. 6 | here | *perhaps* |"
    assert verdicts(line) == {"ddp-fig-6": "*perhaps*"}
    assert "perhaps" not in defined(TEXT)
    with pytest.raises(AssertionError, match="two rows"):
        verdicts(f"{line}\n{line}")


def test_the_tables_are_those_of_the_store():
    assert page.places(TEXT)
    fresh = command.tables_of(TEXT, PAGE.parents[1] / command.STORE)
    assert fresh == TEXT, "run `python -m keras_examples.papers --page docs/papers.md`"


def test_places_are_filled_and_the_rest_is_left():
    first = "a\n<!-- papers name --parts 'DIGITS, tanh' -->\nold\n<!-- end -->\nb | old\n"
    text = f"{first}<!-- papers other -->\n<!-- end -->\n"
    assert page.places(text) == [["name", "--parts", "DIGITS, tanh"], ["other"]]
    made = page.refreshed(text, " ".join)
    assert "name --parts DIGITS, tanh\n" in made and "b | old" in made and "\nold\n" not in made
    assert page.refreshed(made, " ".join) == made


def test_a_page_is_written_with_its_figures(tmp_path, capsys):
    path = tmp_path / "some.md"
    tables = [f"<!-- papers ddp-fig-8 --parts {data} --seeds 2 -->\n<!-- end -->\n" for data in ("IRIS", "WINE")]
    shown = "![curves](some/ddp-fig-8.png) ![second](some/ddp-fig-8-2.png) ![map](some/ddp-fig-8-difference.png)\n"
    third = "<!-- papers ddp-fig-8 --parts IRIS --seeds 2 --kind difference -->\n<!-- end -->\n"
    path.write_text("".join([*tables, third, shown]))
    command.main(["--page", str(path), "--store", str(PAGE.parents[1] / command.STORE)])
    assert "| IRIS | DDP-EKFAC" in path.read_text()
    assert (tmp_path / "some" / "ddp-fig-8.png").stat().st_size > 1000
    assert (tmp_path / "some" / "ddp-fig-8-difference.png").stat().st_size > 1000
    first, second = ((tmp_path / "some" / f"ddp-fig-8{end}.png").read_bytes() for end in ("", "-2"))
    assert first != second
    assert "ddp-fig-8-2.png" in capsys.readouterr().out


def test_a_place_that_no_store_can_fill_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`name` must be that of a grid"):
        command.tables_of("<!-- papers gtddp-fig-4 -->\n<!-- end -->", tmp_path)
