"""The report: what the paper printed beside a study's own figures, claims in words, figures for light and dark."""

import base64
import dataclasses
import json
import re

import pytest
from test_cli import kdbench

from kdbench.harness.analysis import study_table
from kdbench.harness.analysis.arms import arm_row
from kdbench.harness.analysis.rows import ComparisonRow
from kdbench.harness.plan.plan import Ground, load_preset, make_plan
from kdbench.harness.publish import figures, report
from kdbench.harness.publish import paper as published
from kdbench.harness.records.record import Metrics, Result, StudyFolder

ENVIRONMENT = {"torch": "2", "device_name": "a", "code_digest": "c"}
NORMS = {None: 1.5, "projector-unclipped": 1.7, "random-teacher": 20.0, "imagenet-stem": 2.0}
ACCURACY = {None: 95.0, "projector-unclipped": 94.9, "random-teacher": 12.0, "imagenet-stem": 90.0}


def metrics(arm, seed, per_class=None):
    value = ACCURACY[arm.fault] + 0.1 * seed + (0.3 if arm.method == "feature" else 0.0)
    classes = per_class(arm, seed) if per_class else [value - 1, value + 1]
    close = (95.0 + seed, 0.2, 0.1) if arm.method != "baseline" else (None, None, None)
    return Metrics(value, value, classes, *close)


def write(place, preset="quick", faults=tuple(NORMS), per_class=None, dataset="digits", **changes):
    """Write a study's records, of made-up numbers, and read it."""
    settings = dataclasses.replace(load_preset(preset), **changes)
    plan = make_plan(settings, list(faults), Ground(dataset, "d" * 64, "cpu"))
    folder = StudyFolder(place / plan.study)
    folder.path.mkdir(parents=True)
    study_table.write_study(folder, settings.decision, plan.arms, command="kdbench run")
    classes = [96.0] * len(per_class(next(iter(plan.arms)), 0) if per_class else "ab")
    for key in plan.teachers.values():
        folder.trial(key).write_spec(plan.trials[key])
        folder.trial(key).write_result(Result(key, "finished", metrics=Metrics(96.0, 96.0, classes)))
    for arm, by_seed in plan.arms.items():
        for seed, key in by_seed.items():
            trial = folder.trial(key)
            trial.write_spec(plan.trials[key])
            trial.write_result(Result(key, "finished", None, 1, metrics(arm, seed, per_class), environment=ENVIRONMENT))
            groups = ["student", "projectors", "all"] if arm.method == "feature" else ["student", "all"]
            top = NORMS[arm.fault] + 0.1 * seed
            lines = [f"{step},{','.join(str(top / step) for _ in groups)}" for step in (1, 2)]
            (trial.path / "norms.csv").write_text("\n".join([f"step,{','.join(groups)}", *lines]) + "\n")
            norms = {name: {"mean": top, "max": top + 1} for name in groups}
            epochs = [{"val_accuracy": 90.0 + epoch, "grad_norms": norms} for epoch in (1, 2)]
            (trial.path / "curve.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return study_table.read_study(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pictures(study):
    return figures.draw(study, found(study)["gains"], 4.65)


def found(study):
    return report.read(study)


# -- published figures


def test_each_published_gain_is_the_difference_of_its_published_means():
    versions, _ = published.load()
    checked = 0
    for version in versions.values():
        for (place, method, _), figure in version.figures.items():
            assert figure.where and 80 < figure.mean < 100
            if figure.gain is not None:
                base = version.figures[place.split("-")[1], "baseline", None]
                assert figure.gain == pytest.approx(figure.mean - base.mean, abs=0.0151), (version.title, place, method)
                checked += 1
    assert checked == 6 + 8, "two methods on three pairs, then on four"


def test_published_figures_stand_beside_the_arms_that_the_study_has(study):
    rows = {(row["what"], row["pair"], row["arm"]): row for row in found(study)["published"]["rows"]}
    feature = rows["Feature-KD", "r34-r18", "corrected"]
    assert feature["ours"]["mean"] == pytest.approx(95.4) and feature["ours"]["seeds"] == 3
    assert (feature["theirs"]["first"].mean, feature["theirs"]["second"].mean) == (95.31, 94.98)
    stem = rows["Baseline", "r34-r18", "imagenet-stem"]
    assert stem["theirs"]["first"] is None and stem["theirs"]["second"].mean == 87.71
    assert ("Feature-KD", "r34-r18", "projector-unclipped") not in rows, "printed for another pair"
    assert rows["Teacher", "r34", "corrected"]["theirs"]["second"].sd == 0.09
    page, text = report.html(found(study), {}), report.markdown(found(study))
    for said in ("95.31 ± 0.05 (3)", "94.98 ± 0.15 (5)", "arXiv:2605.31191v1", "tables 4 and 6"):
        assert said in page and said in text


def test_a_study_of_other_pairs_has_nothing_published_beside_it(tmp_path):
    study = write(tmp_path, faults=[None], pairs=("r18-r50",))
    assert found(study)["published"] is None and "Published" not in report.html(found(study), {})


def test_the_papers_protocol_has_no_departures_and_the_page_says_so(tmp_path):
    study = write(tmp_path, "paper", [None], dataset="cifar10")
    assert published.departures(study) == []
    page = report.html(found(study), {})
    assert "no replication" not in page and "The recipe is that of the preset" in page


def test_each_point_in_which_a_recipe_departs_from_the_papers_is_said(tmp_path):
    paper = load_preset("paper")
    changes = {
        "recipe": dataclasses.replace(paper.recipe, base_width=16, train_size=5000, flip=False),
        "teacher": {"epochs": 12, "lr": 0.05},
        "method": {"logit": {"ce_weight": 0.3, "kd_weight": 0.7, "temperature": 4}, "feature": paper.method["feature"]},
        "seeds": (0, 1, 2),
        "pairs": ("r34-r18",),
    }
    study = write(tmp_path, "paper", [None], dataset="folder-cats", **changes)
    assert published.departures(study) == [
        "data set: folder-cats instead of cifar10",
        "channels of the first stage: 16 instead of 64",
        "mirrored images: no instead of yes",
        "training images: 5,000 instead of 45,000",
        "the teacher's epochs: 12 instead of 200",
        "the teacher's learning rate: 0.05 instead of 0.1",
        "temperature of Logit-KD (r34-r18): 4 instead of 2",
        "seeds: 3 instead of 5",
    ]
    for page in (report.html(found(study), {}), report.markdown(found(study))):
        assert "This is no replication of the paper." in page and "5,000 instead of 45,000" in page
        assert "8 points" in page


# -- the claim of gradient norms


def test_norms_are_read_from_the_first_steps_and_judged(study):
    norms = found(study)["norms"]
    rows = {row["arm"]: row for row in norms["rows"]}
    assert set(rows) == {"corrected", "projector-unclipped", "random-teacher"}
    assert rows["random-teacher"]["early"] == pytest.approx([20.0, 20.1, 20.2])
    assert rows["random-teacher"]["ever"] == pytest.approx(21.2) and rows["random-teacher"]["steps"] == 2
    assert "1.70 to 1.90 with the projectors unclipped (below 4.65)" in norms["text"]
    assert "20.00 to 20.20 with a teacher of random weights (past 4.65)" in norms["text"]
    assert norms["text"].endswith("no proof of it; the missing clip alone did not come near it.")
    assert norms["text"] in report.markdown(found(study))


VERDICTS = {
    "only the missing clip": (1.4, 4.7, 1.0, "consistent with the paper's reading"),
    "only the random teacher": (1.4, 1.5, 4.7, "consistent with a teacher that was not loaded"),
    "both": (1.4, 4.7, 4.7, "consistent with either bug"),
    "near is four fifths": (1.4, 3.73, 1.0, "consistent with the paper's reading"),
    "less is not": (1.4, 3.71, 1.0, "no such norm was seen here"),
    "the corrected arm as well": (4.7, 4.7, 4.7, "a sign of neither bug"),
    "no arm with a random teacher": (1.4, 1.5, None, "no such norm was seen here"),
    "no unclipped arm": (1.4, None, 9.0, "consistent with a teacher that was not loaded, no proof of it."),
}


@pytest.mark.parametrize(("corrected", "unclipped", "random", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_what_the_norms_are_consistent_with(corrected, unclipped, random, verdict):
    tops = {"corrected": corrected, published.UNCLIPPED: unclipped, published.RANDOM: random}
    rows = [{"arm": arm, "early": [top], "steps": 9, "student": 1.0} for arm, top in tops.items() if top is not None]
    text = published._verdict_on_norms(rows, 4.65)
    assert verdict in text and "student's own" not in text
    rows[0]["student"] = 5.0
    assert "reached 5.00 in the corrected arm" in published._verdict_on_norms(rows, 4.65) or corrected is None


def test_norms_that_are_no_numbers_do_not_count(study):
    trial = next(iter(study.arms.values()))[0][0]
    path = study.folder.trial(trial.key).path / "odd.csv"
    path.write_text("step,student,projectors,all\n1,1.0,2.0,3.0\n2,inf,inf,inf\n3,nan,9.0,nan\n")
    assert published._early(path) == {"step": 1.0, "student": 1.0, "projectors": 2.0, "all": 3.0}
    path.write_text("step,student,all\n1,1.0,1.0\n")
    assert published._early(path) == {} and published._early(path.with_name("none.csv")) == {}


def test_nothing_is_said_of_norms_without_the_arms_that_could_tell(tmp_path):
    study = write(tmp_path, faults=[None, "imagenet-stem"])
    assert found(study)["norms"] is None and "4.65" not in report.html(found(study), {})


# -- by class


def test_accuracy_by_class_is_of_corrected_arms_beside_their_baseline(study):
    table = found(study)["per_class"]
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["Teacher", "Baseline", "Logit-KD", "Feature-KD"] and table["classes"] == ["0", "1"]
    assert [cell["mean"] for cell in rows["Feature-KD"]["cells"]] == pytest.approx([94.4, 96.4])
    assert [cell["less"] for cell in rows["Feature-KD"]["cells"]] == pytest.approx([0.3, 0.3])
    assert {cell["less"] for cell in rows["Baseline"]["cells"]} == {None}
    assert "95.4" not in {f"{cell['mean']:.1f}" for cell in rows["Baseline"]["cells"]}


def test_of_many_classes_those_that_differ_most_are_shown(tmp_path):
    def classes(arm, seed):
        return [50.0 + (i if arm.method == "feature" else 0) * (-1) ** i for i in range(20)]

    study = write(tmp_path, faults=[None], per_class=classes)
    table = found(study)["per_class"]
    assert table["classes"] == [str(i) for i in range(8, 20)] and table["of"] == 20
    heat = [cell["heat"] for cell in table["rows"][-1]["cells"]]
    assert heat[:2] == ["up2", "down2"] and heat[-2:] == ["up3", "down3"]
    assert "Of 20 classes" in report.html(found(study), {})


def test_classes_of_cifar10_have_names(tmp_path):
    study = write(tmp_path, faults=[None], dataset="cifar10", per_class=lambda arm, seed: [50.0] * 10)
    assert found(study)["per_class"]["classes"][3] == "cat"


def test_a_class_without_an_image_has_an_empty_cell(tmp_path):
    study = write(tmp_path, faults=[None], per_class=lambda arm, seed: [50.0, None])
    assert found(study)["per_class"]["rows"][-1]["cells"][1] == {"mean": None, "less": None, "heat": ""}
    report.html(found(study), {}), report.markdown(found(study))


# -- the page


def comparison(b, method, verdict, difference):
    said = {"verdict": verdict, "difference_pp": difference, "ci95_pp": [-1.0, 1.0], "mde_pp": 0.84}
    unsaid = dict.fromkeys(field.name for field in dataclasses.fields(ComparisonRow))
    return ComparisonRow(**{**unsaid, "pair": "r34-r18", "b": b, "method": method, **said})


def test_few_comparisons_have_a_line_each_and_many_a_line_for_each_bug():
    stem = [comparison("imagenet-stem", "logit", "different", -6.0 - i) for i in range(4)]
    clip = [comparison("projector-unclipped", "feature", "undecided", 0.1 * i) for i in range(4)]
    few = report._claims(stem + clip)
    assert len(few) == 8
    assert few[0] == report.Claim("different, lower", False, "imagenet-stem in Logit-KD: -6.00 pp [-1.00, +1.00]")
    assert (few[7].open, few[7].power) == (True, "under 0.8 pp easily missed")
    many = report._claims([*stem, *clip, comparison("imagenet-stem", "feature", "undecided", -1.0)])
    assert [(row.verdict, row.open) for row in many] == [
        ("4 different, lower; 1 undecided", False),
        ("undecided", True),
    ]
    assert many[0].text == "imagenet-stem, 5 comparisons: -9.00 to -1.00 pp"
    alone = report._claims([*stem, *clip, comparison("random-teacher", "logit", "different", -40.0)])
    assert alone[2].text == "random-teacher in Logit-KD: -40.00 pp [-1.00, +1.00]", "of one there is no span"


def test_what_still_runs_is_not_called_wrong(tmp_path):
    waiting = write(tmp_path, faults=[None])
    (arm,) = (arm for arm in waiting.arms if arm.method == "logit")
    rows = [dataclasses.replace(arm_row(a, trials), as_expected=a != arm) for a, trials in waiting.arms.items()]
    spec, _ = waiting.arms[arm][1]
    assert report._code(waiting, rows, None)[0] == {"word": "NO", "text": "2 of 3 corrected arms are proven clean"}
    waiting.arms[arm][1] = (spec, None)
    assert report._code(waiting, rows, None)[0]["word"] == "not yet"


def test_links_of_the_page_lead_somewhere_in_it(study, pictures):
    page = report.html(found(study), pictures)
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert len(targets) >= 9 and targets <= set(re.findall(r'id="(\w+)"', page))
    assert set(re.findall(r'(?:src|href)="(.)', page)) == {"d", "#"}, "nothing is loaded from elsewhere"


def test_every_colour_of_a_figure_has_one_for_dark_pages(pictures):
    assert set(pictures) == set(figures.FIGURES) - {"grid"}, "a heat map's colours are values, on any page"
    for name, picture in pictures.items():
        svg = base64.b64decode(picture.partition("base64,")[2]).decode()
        seen = re.sub(r"<style>.*?</style>|stroke: #000000; stroke-opacity: 0", "", svg, flags=re.S)
        drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", seen))
        assert drawn and drawn <= set(figures._DARK), name
        assert all(f'[style*="stroke: {colour}"]' in svg for colour in drawn)


def test_the_study_is_named_by_an_argument_and_its_page_is_the_same_again(study, pictures, tmp_path):
    runs, name = study.folder.path.parent, study.folder.path.name
    code, out, err = kdbench("report", name, "--runs", runs, "--output", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert code == 0 and "report.html" in out and f"kdbench report {name}<" in page, err
    assert all(picture in page for picture in pictures.values())
    for output in (tmp_path / "report.md", tmp_path / "report.md" / "deeper"):
        code, _, err = kdbench("report", name, "--runs", runs, "--output", output)
        assert code == 2 and f"no page can be written into {output}" in err, err
    code, _, err = kdbench("report", "quik-digits", "--runs", runs, "--output", tmp_path)
    assert code == 2 and f"did you mean '{name}'" in err
    code, _, err = kdbench("report", name, "--study", "other", "--runs", runs, "--output", tmp_path)
    assert code == 2 and "leave one out" in err
