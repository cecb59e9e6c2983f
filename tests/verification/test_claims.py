"""No statement of the papers is dropped, and the errata say what the claims say."""

import importlib.util
import pathlib
import re

import pytest

from keras_examples.papers import catalogue
from verification import errata
from verification.claim import Verdict
from verification.claims import CLAIMS, PAPERS

ROOT = pathlib.Path(__file__).parents[2]

# Every equation, theorem, table and figure of the four papers that can be checked, and our own results.
IDS = {
    "GTDDP": (
        "A1 C7 E1 E2 E3 E4 E5 E6 E7 E8a E8b E8c E9 E10 E11 E12 E13 E14 E15 E16 E17 E18 E19 E20 E21 E22 E23 E24 E25 "
        "E26a E26b E26c E27a E27b E27c E27d E27e E28 E29 E30 E31a E31b E31c E32 E33 E34 E35 E36 E37 E38 E39 E40a E40b "
        "E40c E40d E40e E40f E41 E42 E43 E44 E45 E46 E47 E48 E49 E50 E51 E52 E53 E54 E55 E56 E57 E58 FIG1 FIG4 FIG6a "
        "FIG6b FIG6c FIG7b FIG8 JAC P1 P2 P4 P5 P6 R1 S1 S2 S3 S5 T3 TAB1 TAB2"
    ),
    "DDP1": (
        "A1 A2 E1 E2 E3 E4 E5 E6a E6b E6c E6d E6e E7 E8 E9 E10 E11 E12 E13 E14 E15 E16 E17 E18 E19a E19b E19c E20 E21 "
        "E22 E23 E24 E25 E26 E27 E28 E29a E29b E29c E29d E29e E30 E31 E32 E33a E33b E33c E33d E33e E34 E35 E36 E37 "
        "E38 E39 FIG3 FIG4 FIG5 FIG6 FIG7 FIG8 L3 L7 P4 P5 P6 S2.2 S4.2a S4.2b S5.1 S5.3a T1 T2 TAB1 TAB2 TAB3 TAB4"
    ),
    "DGN": (
        "A1 A2 A3 APPE1 D1 D3 D4 D8 E1 E2 E3 E4 E5 E6 E7 E8 E9 E10 E11 E12 E13 E14 E15 E16 E17 E18 E19 E20 E21 E22 "
        "E23 E24 E25 E26 E27 E28 E29 E30 E31 E32 E33 E34 E35 E36 FIG3b FIG5 FIG6 FIG7 FIG8 FIG10 FIG11 FN1 IR L9 "
        "L10 P2 P5 T6 T6i T6ii T6iii T7 TAB1 TAB2 TAB3 TAB4 TAB5 TAB6 TAB7"
    ),
    "DDPN": ("A1 A2 A3 E1 E2 E3 E4 E5 E6 E7 E8 E9 E10 E11 E12 E13 FIG3 FIG4 FIG5 FN1 L3 P2 P4 S3 T1 TAB1 TAB2 TAB3"),
    "BASE": "EMSA-L2 KWNG-DUAL KWNG-G KWNG-GAUSS KWNG-GN KWNG-STEP",
    "OURS": ("1 2 2a 2b 2c 2d 2e 2f 2g 2h 3 4 5 6 7 8 9 10 11 12 13 14 14a 15 16 17 18 19 20 21 22 23 24 25 26"),
}


@pytest.mark.parametrize("tag", IDS)
def test_every_statement_has_its_claim(tag):
    assert [name.removeprefix(f"{tag}-") for name in PAPERS[tag].claims] == IDS[tag].split()


def test_papers_bear_the_titles_of_the_citation():
    cited = (ROOT / "CITATION.cff").read_text()
    notation = " ".join((ROOT / "bellman_tf" / "NOTATION.md").read_text().split())
    for tag in ("GTDDP", "DDP1", "DGN", "DDPN"):
        title = PAPERS[tag].title.partition(" (")[0]
        assert re.search(rf'  title: "?{re.escape(title)}"?\n', cited) and f'"{title}"' in notation, title


def test_misprints_explain_themselves():
    for claim in CLAIMS.values():
        if claim.verdict == Verdict.MISPRINT:
            assert len(claim.derivation) > 80, f"{claim.id} has no derivation"
            assert claim.origin.split()[0].strip(",;") in {"paper", "likely", "undecidable", "notation"}, claim.id


def test_empirical_claims_name_commands_that_there_are():
    for claim in CLAIMS.values():
        if claim.verdict == Verdict.EMPIRICAL:
            modules = re.findall(r"python -m ([\w.]+)", claim.tested_by)
            assert modules and all(importlib.util.find_spec(module) for module in modules), claim.id
            names = re.findall(r"keras_examples.papers ([\w-]+)", claim.tested_by)
            assert set(names) <= set(catalogue.ENTRIES), claim.id


def test_empirical_claims_say_what_was_found():
    words = re.compile(r"\b(holds?|contradicted|not seen|see [A-Z0-9-]+)\b", re.IGNORECASE)
    silent = [c.id for c in CLAIMS.values() if c.verdict == Verdict.EMPIRICAL and not words.search(c.remark)]
    assert not silent


def test_the_errata_are_those_of_the_claims():
    assert errata.PATH.read_text() == errata.errata(), "run `python -m verification.errata`"
