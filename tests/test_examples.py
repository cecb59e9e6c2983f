"""The examples run in their --quick mode and write what they promise."""

import json

import numpy as np
import pytest

from keras_examples.studies import (
    _data,
    _methods,
    _networks,
    _report,
    _study,
    alignment,
    baselines,
    cooperative_block,
    digits,
    feedback_maps,
    fictitious_players,
    mnist,
    published_form,
    step_control,
    swing_up,
)
from tests.docs.pages import ROOT
from tests.tfds_directory import prepare

FILES = ("results.json", "table.md")


@pytest.fixture(scope="module")
def tiny_mnist(tmp_path_factory):
    """A TFDS directory with the features of MNIST and of CIFAR-10, and few images."""
    directory = tmp_path_factory.mktemp("tfds")
    prepare(directory, "mnist", "3.0.1", (28, 28, 1))
    prepare(directory, "cifar10", "3.0.2", (32, 32, 3), extra={"id": ("text", None)})
    return directory


def _run(**changes):
    fields = {
        "task": "t", "metric": "identity", "form": _methods.BASE, "method": "SGD", "rate": 1.0, "number": 0, "seed": 0,
        "curve": (1.0,), "loss": 1.0, "accuracy": 0.5, "rejected": 0, "milliseconds": 1.0,
    }  # fmt: skip
    return _study.Run(**{**fields, **changes})


def _saved_record(out):
    assert all((out / name).stat().st_size for name in FILES)
    return json.loads((out / "results.json").read_text())


def _saved(out):
    assert list(out.glob("*.png"))
    return _saved_record(out)


def test_digits_quick_compares_gtddp_with_its_baselines(tmp_path, capsys):
    digits.main(["--quick", "--out", str(tmp_path)])
    saved = _saved(tmp_path)
    methods = {run["method"] for run in saved["runs"]}
    assert methods == {"SGD", "GTDDP, identity", "KFAC", "GTDDP, kfac"}
    assert {run["task"] for run in saved["runs"]} == {"digits mlp", "digits cnn"}
    assert saved["versions"]["keras"] and saved["options"]["seeds"] == 1
    best = min(run["loss"] for run in saved["runs"] if run["method"] == "GTDDP, kfac" and run["loss"] is not None)
    assert best < 1.0  # 100 steps from 2.3
    assert "GTDDP, kfac against KFAC" in capsys.readouterr().out


def test_mnist_quick_reads_tfds(tiny_mnist, tmp_path, capsys):
    arguments = [
        "--quick",
        "--steps",
        "10",
        "--batch-sizes",
        "8",
        "--data-dir",
        str(tiny_mnist),
        "--out",
        str(tmp_path),
    ]
    mnist.main(arguments)
    saved = _saved(tmp_path)
    assert {run["task"] for run in saved["runs"]} == {"mnist B=8"}
    assert len({run["method"] for run in saved["runs"]}) == 4
    assert "GTDDP block, identity against SGD" in capsys.readouterr().out


def _rows(text, first):
    """Cells of the rows of a printed Markdown table whose first cell is as given."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    return [cells for cells in lines if cells[0] == first]


@pytest.mark.slow
def test_feedback_maps_quick_draws_images_and_spectrum(tmp_path, capsys):
    feedback_maps.main(["--quick", "--steps", "50", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "on DIGITS" in text
    maps = _rows(text, "digits")
    assert [cells[1:3] for cells in maps] == [[layer, str(k)] for layer in "25" for k in (1, 2, 3, 4)]
    spectrum = _rows(text, "5")
    assert [cells[1] for cells in spectrum] == ["0", "15", "30"]
    assert spectrum[-1][3] == "5"  # as many values as clusters before the steepest fall
    assert spectrum[-1][-1] == str(21 * (5 - 1))  # features and bias, times the rank of the softmax's Hessian
    assert _saved(tmp_path)["runs"][0]["part"] == "digits"


def test_step_control_quick_compares_both_forms(tmp_path, capsys):
    step_control.main(["--quick", "--steps", "50", "--out", str(tmp_path)])
    plain, controlled = _rows(capsys.readouterr().out, "digits, B = 64")
    assert (plain[2], controlled[2]) == ("plain", "controlled")
    assert float(controlled[-2]) < float(plain[-2])
    assert {run["rate"] for run in _saved(tmp_path)["runs"]} == {0.001, 0.1, 10.0}


def test_step_control_runs_tasks_of_the_contest(tmp_path, capsys):
    form = "every 4th measured"
    step_control.main(["--quick", "--tasks", "digits", "--steps", "20", "--forms", form, "--out", str(tmp_path)])
    [row] = _rows(capsys.readouterr().out, "DIGITS, tanh MLP")
    assert row[2] == form and row[-3:-1] == ["-", "-"]  # nothing to compare with
    assert all(len(run["curve"]) == 2 for run in _saved(tmp_path)["runs"])  # two pieces of ten steps


def test_step_control_reports_what_earlier_commands_left_and_the_page_has_it(tmp_path, capsys):
    results = ROOT / "keras_examples" / "results" / "step_control"
    tasks = ("characters", "autoencoder", "residual", "residual-bn", "vit")
    names = sorted(path.name for path in results.iterdir() if path.name != "digits")
    large = sorted(names, key=lambda name: tasks.index(name.removesuffix("-controlled").removesuffix("-kfac")))
    page = (ROOT / "keras_examples" / "README.md").read_text()
    for names, runs in ((large, 210), (["digits"], 112)):
        step_control.main(["--report", *(str(results / name) for name in names), "--out", str(tmp_path)])
        table, last = capsys.readouterr().out.strip().split("\n\n")
        assert table in page
        assert last.startswith(f"{runs} runs")
        assert (tmp_path / step_control.FIGURE).exists()


@pytest.mark.slow
def test_baselines_quick_has_every_method_and_the_papers_numbers(tmp_path, capsys):
    baselines.main(["--quick", "--steps", "25", "--out", str(tmp_path)])
    rows = _rows(capsys.readouterr().out, "digits, B = 8")
    methods = ["SGD", "EKFAC as cited", "KWNG", "KWNG, all coordinates", "E-MSA, rho = 1", "E-MSA, rho = 10"]
    assert [cells[1] for cells in rows] == methods
    assert [cells[-1] for cells in rows][2:5] == ["0.1321 / 93.8", "0.1321 / 93.8", "- / 94.9"]
    assert all(run["loss"] < 2.31 and not run["rejected"] for run in _saved_record(tmp_path)["runs"])


@pytest.mark.slow
def test_fictitious_players_quick_agree_with_their_control(tmp_path, capsys):
    fictitious_players.main(["--quick", "--steps", "20", "--out", str(tmp_path)])
    first, second = (cells for cells in _rows(capsys.readouterr().out, "digits") if len(cells) > 3)
    assert (first[2], second[2]) == ("1", "4")
    differences = [float(number) for row in (first, second) for cell in row[-2:] for number in cell.split("/")]
    assert len(differences) == 8 and max(differences) < 1e-5
    assert len(_saved(tmp_path)["runs"]) == 7


@pytest.mark.slow
def test_alignment_quick_writes_the_bandits_probabilities(tmp_path, capsys):
    alignment.main(["--quick", "--steps", "20", "--out", str(tmp_path)])
    rows = _rows(capsys.readouterr().out, "digits")
    assert [cells[1] for cells in rows] == ["fixed, earliest", "adaptive"]
    [adaptive] = [run for run in _saved(tmp_path)["runs"] if run["method"] == "adaptive"]
    assert np.allclose(np.sum(adaptive["probabilities"], axis=1), 1) and len(adaptive["probabilities"]) == 2
    assert sum(adaptive["pulls"]) == 20


@pytest.mark.slow
def test_cooperative_block_quick_has_the_controls(tmp_path, capsys):
    cooperative_block.main(["--quick", "--steps", "20", "--out", str(tmp_path)])
    rows = _rows(capsys.readouterr().out, "digits")
    controls = ["SGD, 1/(2 gamma)", "SGD, 1/(sqrt(2) gamma)", "SGD, 1/gamma"]
    assert [cells[1] for cells in rows] == ["EKFAC (O)", "GT-EKFAC", *controls]
    assert np.allclose([run["rate"] for run in _saved(tmp_path)["runs"][-3:]], [0.15, 0.15 * 2**0.5, 0.3], rtol=1e-6)


def test_published_form_quick_has_the_baseline_beside_it(tmp_path, capsys):
    published_form.main(["--quick", "--steps", "50", "--out", str(tmp_path)])
    baseline, published = _rows(capsys.readouterr().out, "digits")
    assert (baseline[2], published[2]) == ("baseline", "as_published(): z = g/B, c = 1/B")
    losses = [float(cell.split(": ")[1]) for row in (baseline, published) for cell in row[3:5]]
    assert all(0 < loss < 2.3 for loss in losses) and losses[0] != losses[2]
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["clamped"] is None for run in runs] == [True, True, False, False]


def test_cifar10_is_read_in_colour(tiny_mnist):
    data = _data.load("cifar10", str(tiny_mnist), most=30)
    assert data.x_train.shape == (30, 32, 32, 3) and data.x_test.shape == (20, 32, 32, 3)
    assert data.x_train.max() <= 1 and list(data.y_train[:3]) == [0, 1, 2]


def test_mnist_without_data_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        mnist.main(["--data-dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert "`data_dir` must be a TFDS directory that holds mnist. Received: data_dir=" in message
    assert "TFDS_DATA_DIR" in message


@pytest.mark.parametrize("arguments", [["--steps", "75"], ["--seeds", "0"], ["--decades", "x"], ["--metrics", "sgd"]])
def test_a_bad_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        digits.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_digits_are_split_without_overlap():
    data = _data.digits()
    assert data.x_train.shape == (1437, 8, 8, 1) and data.x_test.shape == (360, 8, 8, 1)
    train, test = ({image.tobytes() for image in part} for part in (data.x_train, data.x_test))
    assert not train & test


def test_learning_rates_are_half_decades_around_the_middle():
    rates = [_methods.rate_of(number) for number in _methods.learning_rates(0.1, 2)]
    assert rates == [0.01, 0.03, 0.1, 0.3, 1.0]
    assert [_methods.rate_of(number) for number in (-2, 0, 1, 2)] == [0.3, 1.0, 1.8, 3.0]


def test_a_second_run_of_a_trainer_repeats_the_first():
    task = _study.Task("t", lambda: _networks.tanh_mlp((8, 8, 1)), _data.digits(), 8, 20, 10, {})
    trainer = _study.Trainer(task, _methods.Method("rmsprop", _methods.MATCHED))
    first, _, again = trainer.run(-4, 1), trainer.run(0, 0), trainer.run(-4, 1)
    assert (first.curve, first.loss, first.accuracy) == (again.curve, again.loss, again.accuracy)


def test_the_best_rate_is_that_of_the_lowest_mean_and_a_broken_run_never_wins():
    runs = [_run(number=0, loss=0.1), _run(number=0, seed=1, loss=float("inf")), _run(number=1, loss=0.3)]
    assert _study.best_rate(runs) == 1
    assert "broken" in _report.rate_table(runs)


def test_the_comparison_names_a_loss_above_the_baselines():
    ours = {"form": _methods.MATCHED, "method": "GTDDP, identity"}
    runs = [_run(loss=0.2), _run(loss=0.3, **ours), _run(loss=5.0, number=4), _run(loss=0.4, number=4, **ours)]
    assert _report.verdicts(runs) == (
        "- GTDDP, identity against SGD: best 0.3 against 0.2 (ABOVE); at 10, ten times the baseline's best rate, "
        "0.4 against 5"
    )


@pytest.mark.slow
def test_the_cart_pole_swings_up(tmp_path, capsys):
    swing_up.main(["--quick", "--out", str(tmp_path)])
    assert "Gauss-Newton" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} == {"swing_up.png", "ddp_convergence.png"}


@pytest.mark.parametrize(
    ("make", "shape", "outputs"),
    [
        (lambda: _networks.autoencoder(), (784,), (784,)),
        (lambda: _networks.residual_stages((32, 32, 3), (4, 4, 8), True), (32, 32, 3), (10,)),
        (lambda: _networks.vision_transformer((32, 32, 3), 8, 16, 1), (32, 32, 3), (10,)),
        (lambda: _networks.character_transformer(6, 9, 16, 1), (6,), (6, 9)),
    ],
)
def test_networks_of_the_contest_are_covered(make, shape, outputs):
    model = make()
    assert model.output_shape == (None, *outputs)
    assert model.input_shape == (None, *shape)
    assert model.game.coverage > 0.95


def test_characters_are_followed_by_the_next():
    data, size = _data.characters(16)
    assert data.x_train.max() < size
    np.testing.assert_array_equal(data.x_train.ravel()[1:], data.y_train.ravel()[:-1])
