"""The runner can tell a true claim from a false one, and the command says so."""

import json
import pathlib
import re

import numpy as np
import pytest
from hypothesis import strategies as st

from verification import __main__ as command
from verification import claims, mutants, mutate
from verification.claim import Claim, Counterexample, Measurement, Paper, Verdict, at_most, measured, same
from verification.report import histogram, page
from verification.run import problems, run
from verification.table import as_json, environment, summary, table

numbers = st.floats(1.0, 100.0)


def claim(check, verdict=Verdict.EXACT, **details):
    return Claim("TEST-1", "Eq. 1", "one is one", verdict, check=check, over=numbers, **details)


def misprint(printed, corrected, check=lambda x: [same(x, x)]):
    example = Counterexample("x = 2", np.array([printed]), np.array([corrected]), np.array([4.0]))
    text = {"printed": "x + 1", "corrected": "2 x", "derivation": "count", "origin": "paper"}
    return claim(check, Verdict.MISPRINT, counterexample=lambda: example, **text)


def test_a_true_claim_stands():
    result = run(claim(lambda x: [same(x * np.ones(3), np.full(3, x))]), "fast")
    assert not result.contradiction and result.worst.error == 0 and result.examples == 6


@pytest.mark.parametrize(("own", "numbers"), [(None, (6, 40, 200)), (20, (6, 20, 100)), (2, (2, 2, 10))])
def test_a_profile_draws_a_multiple_of_what_the_claim_asks_for(own, numbers):
    slow = claim(lambda x: [same(x, x)], examples=own)
    assert tuple(problems(slow, profile) for profile in ("fast", "default", "thorough")) == numbers
    assert run(slow, "thorough").examples == numbers[2]


def test_the_summary_names_the_error_that_is_nearest_its_tolerance():
    near = run(claim(lambda x: [Measurement(0.25, 1.0), Measurement(1.0, 2.0), measured(9.0, "size")]), "fast")
    far = run(claim(lambda x: [Measurement(1.0, 4.0)]), "fast")
    empty = run(claim(lambda x: [measured(x, "size")]), "fast")
    assert (near.margin, far.margin, empty.margin) == (0.5, 0.25, 0.0)
    near.id, far.id = "NEAR", "FAR"
    claims_ = dict.fromkeys(("FAR", "NEAR"), claim(print))
    assert "largest error / tolerance 0.5 (NEAR)" in summary(claims_, {"FAR": far, "NEAR": near}, 1.0)


@pytest.mark.parametrize(
    "measurement",
    [
        lambda x: same(x * (1 + 1e-9), x),
        lambda x: same(np.ones(2), np.ones(3)),
        lambda x: same(np.nan, x),
        lambda x: at_most(x, x - 1e-6),
        lambda x: at_most(np.nan, x),
        lambda x: Measurement(np.nan, 1.0),
    ],
)
def test_a_false_one_falls(measurement):
    assert "tolerance" in run(claim(lambda x: [measurement(x)]), "fast").contradiction


def test_a_result_is_standard_json_whatever_the_numbers_are():
    """NumPy's scalars, and an infinite error, which JSON has no number for."""
    one = claim(lambda x: [Measurement(np.float32(0.25), np.float32(0.5), "x"), measured(np.float32(2.0), "size")])
    entries = as_json({"TEST-1": one}, {"TEST-1": run(one, "fast")}, {})["claims"]
    read = json.loads(json.dumps(entries, allow_nan=False))["TEST-1"]
    assert read["worst"] == {"error": 0.25, "tolerance": 0.5, "label": "x"} and read["sizes"]["size"]["median"] == 2.0
    wrong = claim(lambda x: [same(np.nan, x)])
    entries = as_json({"TEST-1": wrong}, {"TEST-1": run(wrong, "fast")}, {})["claims"]
    assert json.loads(json.dumps(entries, allow_nan=False))["TEST-1"]["worst"]["error"] == "inf"


def test_claims_of_one_paper_need_no_other_papers():
    """What they share stands in `verification/derivations`."""
    imports = re.compile(r"^from verification\.claims\.(\w+)", re.MULTILINE)
    folders = sorted(
        path for path in pathlib.Path(claims.__file__).parent.iterdir() if path.is_dir() and path.name[0] != "_"
    )
    assert len(folders) == 6
    foreign = [
        (path.name, paper)
        for folder in folders
        for path in folder.glob("*.py")
        for paper in imports.findall(path.read_text())
        if paper != folder.name
    ]
    assert not foreign
    shared = list((pathlib.Path(claims.__file__).parents[1] / "derivations").glob("*.py"))
    assert len(shared) > 5 and not any("verification.claims" in path.read_text() for path in shared)


def test_tolerances_grow_with_the_condition():
    assert not run(claim(lambda x: [same(x * (1 + 1e-9), x, condition=1e5)]), "fast").contradiction


def test_an_inequality_between_zeros_holds():
    assert not run(claim(lambda x: [at_most(np.zeros(2), np.zeros(2), scale=np.float64(0.0))]), "fast").contradiction


def test_a_check_that_compares_nothing_falls():
    assert "nothing" in run(claim(lambda x: []), "fast").contradiction


def test_a_measured_size_must_be_in_its_range():
    def size(low, high):
        details = {"verdict": Verdict.APPROXIMATION, "ranges": {"size": (low, high)}}
        return run(claim(lambda x: [measured(0.3, "size")], **details), "fast").contradiction

    assert not size(0.2, 0.4)
    assert "median" in size(0.4, 0.5)


def test_a_misprint_must_be_one():
    assert not run(misprint(3.0, 4.0), "fast").contradiction
    assert "printed form is right" in run(misprint(4.0, 4.0), "fast").contradiction
    assert "corrected form fails" in run(misprint(3.0, 4.001), "fast").contradiction
    assert "tolerance" in run(misprint(3.0, 4.0, lambda x: [same(x, 2 * x)]), "fast").contradiction


def test_the_same_seed_draws_the_same_problems():
    seen = [[], [], []]
    for values, seed in zip(seen, (1, 1, 2), strict=True):
        run(claim(lambda x, values=values: [same(values.append(x) or 1.0, 1.0)]), "fast", seed)
    assert seen[0] == seen[1] != seen[2]


def test_a_claim_that_says_too_little_is_refused():
    with pytest.raises(ValueError, match="lacks over"):
        Claim("TEST-1", "Eq. 1", "x", Verdict.EXACT, check=print)
    paper = Paper("TEST", "t", "a")
    paper.empirical("1", "Fig. 1", "x", "open")
    with pytest.raises(ValueError, match="declared twice"):
        paper.empirical("1", "Fig. 1", "x", "open")


def test_table_page_and_json_hold_the_same_figures():
    paper = Paper("TEST", "A <paper>", "somebody", {"TEST-1": misprint(3.0, 4.0)})
    results = {"TEST-1": run(paper.claims["TEST-1"], "fast")}
    settings = environment("fast", 0)
    line = summary(paper.claims, results, 1.0)
    assert "1 claims (1 misprint), 6 problems, 0 contradicted" in line
    assert "Eq. 1: one is one" in table(paper, results)
    text = page({"TEST": paper}, results, settings, line)
    assert "A &lt;paper&gt;" in text and "x = 2" in text and "[3.]" in text and "<svg" in text
    assert json.loads(json.dumps(as_json(paper.claims, results, settings)))["claims"]["TEST-1"]["examples"] == 6
    assert histogram(np.array([0.0, 1e-16, 5.0])).count("<rect") == 3


def test_the_command_ends_with_one_when_a_claim_is_contradicted(monkeypatch, tmp_path, capsys):
    arguments = ["--claim", "GTDDP-E4", "--profile", "fast", "--jobs", "1"]
    files = ["--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "report")]
    assert command.main([*arguments, *files]) == 0
    assert (tmp_path / "report" / "index.html").exists() and (tmp_path / "r.json").exists()
    monkeypatch.setattr(command, "find", lambda name: claim(lambda x: [same(1.0, 2.0)]))
    monkeypatch.setattr(command, "CLAIMS", command.CLAIMS | {"TEST-1": claim(print)})
    assert command.main(arguments) == 1
    capsys.readouterr()


def test_a_wrong_name_suggests_near_ones(capsys):
    with pytest.raises(SystemExit):
        command.main(["--claim", "gtddp-p9"])
    assert "Did you mean GTDDP-P" in capsys.readouterr().err


def test_a_mutant_of_the_value_update_is_found_out():
    """V_x = Q_x + Q_ux k: with a minus the claim falls, and afterwards it stands again."""
    module = next(m for m in mutants.core_modules() if m.__name__.endswith("bellman.dense"))
    [mutant] = [
        m
        for m in mutants.mutants(module)
        if m.function == "value_update" and m.after.startswith("V_x = expansion.Q_x - matvec")
    ]
    assert mutate.found_out(mutant, ["GTDDP-E6"]) == "GTDDP-E6"
    assert not run(command.CLAIMS["GTDDP-E6"], "fast").contradiction
