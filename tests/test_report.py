"""The report: what the paper printed beside a study's own figures, claims in words, figures for light and dark."""

import base64
import dataclasses
import json
import re

import pytest
from test_cli import kdbench

from kdbench.harness import loading
from kdbench.harness.analysis import expectation, study_table
from kdbench.harness.analysis.because import because
from kdbench.harness.analysis.rows import ComparisonRow
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.publish import figures, first_screen, report
from kdbench.harness.publish import paper as published
from kdbench.harness.records.record import Folder, Metrics, Result, StudyFolder
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS

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
            other = {
                "lr": 0.1,
                "loss": {},
                "train_accuracy": 50.0,
                "clipped_share": 0.5,
                "overflowed_steps": 0,
                "digest": "",
            }
            epochs = [{**other, "epoch": n, "val_accuracy": 90.0 + n, "grad_norms": norms} for n in (1, 2)]
            (trial.path / "curve.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return study_table.read_study(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def on_paper(tmp_path_factory):
    """A study on the paper's scale, of one pair and three seeds, with the bugs that it writes of."""
    return write(tmp_path_factory.mktemp("paper"), "paper", dataset="cifar10", pairs=("r34-r18",), seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def pictures(study):
    return figures.draw(study, found(study)["gains"], None)


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


def test_published_figures_stand_beside_the_arms_that_the_study_has(on_paper):
    study = on_paper
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


OTHERWISE = {
    "another data set": {"dataset": "folder-cats"},
    "narrow networks": {"recipe": {"base_width": 16}},
    "few epochs": {"recipe": {"epochs": 6}},
    "teachers of few epochs": {"teacher": {"epochs": 12}},
    "another pair": {"pairs": ("r18-r50",)},
}


@pytest.mark.parametrize("changes", OTHERWISE.values(), ids=OTHERWISE)
def test_the_papers_results_stand_only_beside_a_study_on_its_scale(tmp_path, changes):
    recipe = dataclasses.replace(load_preset("paper").recipe, **changes.get("recipe", {}))
    rest = {name: value for name, value in changes.items() if name != "recipe"}
    options = {"dataset": "cifar10", "pairs": ("r34-r18",), "seeds": (0, 1, 2), "recipe": recipe, **rest}
    study = write(tmp_path, "paper", [None, "projector-unclipped"], **options)
    told = found(study)
    assert not published.follows_protocol(study) and told["published"] is None and told["norms"]["text"] == ""
    for page in (report.html(told, {}), report.markdown(told)):
        assert "Published" not in page and "4.65" not in page and "the paper" not in page.lower()


def test_the_papers_protocol_has_no_departures_and_the_page_says_so(tmp_path):
    study = write(tmp_path, "paper", [None], dataset="cifar10")
    assert published.departures(study) == []
    page = report.html(found(study), {})
    assert "not an exact replication" not in page and "The recipe is that of the preset" in page


def test_each_point_in_which_a_recipe_departs_from_the_papers_is_said(tmp_path):
    paper = load_preset("paper")
    changes = {
        "recipe": dataclasses.replace(paper.recipe, train_size=5000, flip=False),
        "teacher": {"epochs": 200, "lr": 0.05},
        "method": {"logit": {"ce_weight": 0.3, "kd_weight": 0.7, "temperature": 4}, "feature": paper.method["feature"]},
        "seeds": (0, 1, 2),
        "pairs": ("r34-r18",),
    }
    study = write(tmp_path, "paper", [None], dataset="cifar10", **changes)
    assert published.departures(study) == [
        "mirrored images: no instead of yes",
        "training images: 5,000 instead of 45,000",
        "the teacher's learning rate: 0.05 instead of 0.1",
        "temperature of Logit-KD (r34-r18): 4 instead of 2",
        "seeds: 3 instead of 5",
    ]
    for page in (report.html(found(study), {}), report.markdown(found(study))):
        assert "This is not an exact replication of the paper." in page and "5,000 instead of 45,000" in page


# -- the claim of gradient norms


def test_norms_are_read_from_the_first_steps_and_judged(on_paper):
    norms = found(on_paper)["norms"]
    rows = {row["arm"]: row for row in norms["rows"] if row["method"] == "Feature-KD"}
    assert set(rows) == {"corrected", "projector-unclipped", "random-teacher", "imagenet-stem"}
    assert rows["random-teacher"]["early"] == pytest.approx([20.0, 20.1, 20.2])
    assert rows["random-teacher"]["ever"] == pytest.approx(21.2) and rows["random-teacher"]["steps"] == 2
    assert "1.70 to 1.90 with unclipped projectors (below 4.65)" in norms["text"]
    assert "20.00 to 20.20 with a random teacher (above 4.65)" in norms["text"]
    assert norms["text"].endswith("It is no proof. The missing clip alone did not come near it.")
    assert norms["text"] in report.markdown(found(on_paper))


def test_every_arm_with_norms_has_its_row_with_projectors_and_without(study):
    norms = found(study)["norms"]
    rows = {(row["method"], row["arm"]): row for row in norms["rows"]}
    assert len(rows) == len(study.arms) == 9 and norms["text"] == "", "judged on the paper's scale alone"
    assert rows["Logit-KD", "random-teacher"]["early"] == [] and rows["Logit-KD", "random-teacher"]["ever"] is None
    assert rows["Logit-KD", "random-teacher"]["student"] == pytest.approx(20.2)
    assert rows["Baseline", "imagenet-stem"]["student_ever"] == pytest.approx(3.2)
    assert report.html(found(study), {}).count("no projectors") == 5


VERDICTS = {
    "only the missing clip": (1.4, 4.7, 1.0, "consistent with the paper's reading"),
    "only the random teacher": (1.4, 1.5, 4.7, "consistent with a teacher that was not loaded"),
    "both": (1.4, 4.7, 4.7, "consistent with either bug"),
    "near is four fifths": (1.4, 3.73, 1.0, "consistent with the paper's reading"),
    "less is not": (1.4, 3.71, 1.0, "No arm came near the paper's norm."),
    "the corrected arm as well": (4.7, 4.7, 4.7, "a sign of neither bug"),
    "no arm with a random teacher": (1.4, 1.5, None, "No arm came near the paper's norm."),
    "no unclipped arm": (1.4, None, 9.0, "consistent with a teacher that was not loaded. It is no proof."),
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
    folder = Folder(study.folder.trial(trial.key).path / "odd")
    folder.path.mkdir()
    path = folder.path / "norms.csv"
    path.write_text("step,student,projectors,all\n1,1.0,2.0,3.0\n2,inf,inf,inf\n3,nan,9.0,nan\n")
    assert published._early(folder.norms()) == {"step": 1.0, "student": 1.0, "projectors": 2.0, "all": 3.0}
    path.write_text("step,student,all\n1,inf,inf\n")
    assert published._early(folder.norms()) == {} and published._early(Folder(folder.path / "none").norms()) == {}
    for damage, says in (("step,student\n1,x\n", "no table of numbers"), ("step,student\n1\n", "1 columns under 2")):
        path.write_text(damage)
        with pytest.raises(InputError, match=says):
            folder.norms()


def test_nothing_is_said_of_the_papers_norm_without_the_arms_that_could_tell(tmp_path):
    study = write(tmp_path, "paper", [None, "imagenet-stem"], dataset="cifar10", pairs=("r34-r18",), seeds=(0, 1))
    assert published.follows_protocol(study)
    assert found(study)["norms"]["text"] == "" and "4.65" not in report.html(found(study), {})


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
    assert "Shown are the 12 of 20 classes" in report.html(found(study), {})


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
    few = first_screen.claims(stem + clip)
    assert len(few) == 8
    assert few[0] == first_screen.Claim("different, lower", False, "imagenet-stem in Logit-KD: -6.00 pp [-1.00, +1.00]")
    assert (few[7].open, few[7].power) == (True, "differences under 0.8 pp are easily missed")
    many = first_screen.claims([*stem, *clip, comparison("imagenet-stem", "feature", "undecided", -1.0)])
    assert [(row.verdict, row.open) for row in many] == [
        ("4 different, lower; 1 undecided", False),
        ("undecided", True),
    ]
    assert many[0].text == "imagenet-stem, 5 comparisons: -9.00 to -1.00 pp"
    alone = first_screen.claims([*stem, *clip, comparison("random-teacher", "logit", "different", -40.0)])
    assert alone[2].text == "random-teacher in Logit-KD: -40.00 pp [-1.00, +1.00]", "of one there is no span"


def test_an_interval_beside_an_undecided_verdict_is_explained_where_it_excludes_zero():
    row = dataclasses.replace(comparison("feature", "feature", "undecided", 0.86), ci95_pp=[0.14, 1.58], holm_p=0.07)
    (claim,) = first_screen.claims([row])
    assert claim.power == "the interval excludes 0, but p is 0.07 when adjusted for all comparisons of its family"


def finding(id_, name, status, message, severity="error"):
    return {"id": id_, "name": name, "status": status, "severity": severity, "message": message, "consequence_of": None}


def say(study, arm, *findings):
    """Have the audits say this of each seed of an arm, and `pass` where a corrected arm needs it."""
    for seed, (spec, result) in study.arms[arm].items():
        needed = expectation.needed_passes(spec.method, spec.recipe) - {f["id"] for f in findings}
        said = [*findings, *(finding(id_, "x", "pass", "") for id_ in sorted(needed))]
        study.arms[arm][seed] = (spec, dataclasses.replace(result, findings=said))


def test_each_no_has_its_reasons_with_the_audits_message_and_its_seeds(tmp_path):
    study = write(tmp_path, faults=[None])
    for arm in study.arms:
        say(study, arm)
    feature, logit = (next(arm for arm in study.arms if arm.method == name) for name in ("feature", "logit"))
    say(study, feature, finding("KD201", "clip-coverage", "fail", "2 of 66 parameters are never clipped"))
    say(study, logit, finding("KD343", "schedule-endpoints", "error", "ZeroDivisionError"))
    told = report.read(study)
    reasons = {method: of for (_, method, _), of in told["reasons"].items() if method != "teacher"}
    assert set(reasons) == {"feature", "logit"}
    (of_feature,), (of_logit,) = reasons["feature"], reasons["logit"]
    assert (of_feature.kind, of_feature.what, of_feature.seeds) == ("failed", "KD201 clip-coverage failed", [0, 1, 2])
    assert of_feature.message == "2 of 66 parameters are never clipped" and of_logit.kind == "broken"
    (teachers, corrected, no_controls) = told["code"]
    assert (corrected.word, corrected.text) == ("NO", "1 of 3 corrected arms are proven clean")
    for page in (report.html(told, {}), report.markdown(told)):
        assert "Do not quote an accuracy from this page while a point here is NO." in page
        assert "2 of 66 parameters are never clipped" in page and "ZeroDivisionError" in page
        assert f"kdbench audits show quick-digits/trials/{of_feature.key}" in page
    assert "Feature-KD r34-r18, corrected (seeds 0, 1, 2)" in report.markdown(told)
    order = [report.markdown(told).index(text) for text in (teachers.text, corrected.text, no_controls.text)]
    assert order == sorted(order), "arms before controls"


def test_what_still_runs_is_not_called_wrong(tmp_path):
    study = write(tmp_path, faults=[None])
    arm = next(arm for arm in study.arms if arm.method == "logit")
    for other in study.arms:
        say(study, other)

    def corrected():
        reasons = because(study, [], None)
        return first_screen.code_lines(study, report.summary(study), [], reasons, None)[0]

    assert (corrected().word, corrected().because) == ("yes", [])
    study.arms[arm][1] = (study.arms[arm][1][0], None)
    assert (corrected().word, corrected().text) == ("not yet", "2 of 3 corrected arms are proven clean")
    say(study, next(arm for arm in study.arms if arm.method == "feature"), finding("KD201", "clip", "fail", "m"))
    assert corrected().word == "NO"


def test_the_head_says_when_and_with_what_the_trials_ran(tmp_path):
    study = write(tmp_path, faults=[None])
    for by_seed in study.arms.values():
        for seed, (spec, result) in by_seed.items():
            environment = {**result.environment, "kdbench": "0.1.0", "device_name": "AMD EPYC"}
            times = {"started": f"2026-11-{28 + min(seed, 1)}T08:00:00+00:00", "seconds": 7.0}
            by_seed[seed] = (spec, dataclasses.replace(result, environment=environment, times=times))
    about = report.read(study)["about"]
    assert about == {"run on": "28 November 2026 to 29 November 2026", "kdbench": "0.1.0", "device": "AMD EPYC"}
    for page in (report.html(report.read(study), {}), report.markdown(report.read(study))):
        assert (
            "29 November 2026" in page and "320 training images" in page and report.read(study)["headline"].text in page
        )


def test_links_of_the_page_lead_somewhere_in_it(study, pictures):
    page = report.html(found(study), pictures)
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert len(targets) >= 9 and targets <= set(re.findall(r'id="(\w+)"', page))
    assert set(re.findall(r'(?:src|href)="(.)', page)) == {"d", "#"}, "nothing is loaded from elsewhere"


def test_every_colour_of_a_figure_has_one_for_dark_pages(pictures):
    assert set(pictures) == set(figures.FIGURES) - {"grid"}, "a heat map's colours are values, on any page"
    for name, picture in pictures.items():
        for drawing in picture:
            svg = base64.b64decode(drawing.partition("base64,")[2]).decode()
            check_colours(name, svg)


def test_no_two_methods_of_a_study_are_drawn_alike():
    drawn = figures.colours_of({*METHODS, "logit+at", "ls+dkd"})
    assert len({*drawn.values()}) == len(drawn) == len(METHODS) + 2
    few = figures.colours_of({"rkd", "at"})
    assert [*few] == ["baseline", "at", "rkd"] and {stroke.line for stroke in few.values()} == {"-"}


def test_a_figure_for_a_telephone_is_no_wider_than_one_and_its_letters_are_not_small(pictures):
    for name, picture in pictures.items():
        svg = base64.b64decode(picture.narrow.partition("base64,")[2]).decode()
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) * 96 / 72
        assert width <= 390 - 2 * 16 + 2, f"{name}: beside the page's margins"
        sizes = [float(size) * 96 / 72 for size in re.findall(r"font-size: ([\d.]+)px", svg)]
        assert sizes and min(sizes) >= 8.8, f"{name}: {min(sizes)} pixels"  # exponents of a logarithmic axis


def check_colours(name, svg):
    seen = re.sub(r"<style>.*?</style>|stroke: #000000; stroke-opacity: 0", "", svg, flags=re.S)
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", seen))
    assert drawn and drawn <= set(figures._DARK), name
    assert all(f'[style*="stroke: {colour}"]' in svg for colour in drawn)


def test_the_study_is_named_by_an_argument_and_its_page_is_the_same_again(study, pictures, tmp_path):
    runs, name = study.folder.path.parent, study.folder.path.name
    code, out, err = kdbench("report", name, "--runs", runs, "--output", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert code == 0 and "report.html" in out and f"kdbench report {name}<" in page, err
    assert " ".join(out.split()).startswith(found(study)["headline"].text), "the page's headline, in the terminal too"
    assert all(drawing in page for picture in pictures.values() for drawing in picture)
    for output in (tmp_path / "report.md", tmp_path / "report.md" / "deeper"):
        code, _, err = kdbench("report", name, "--runs", runs, "--output", output)
        assert code == 2 and f"no page can be written into {output}" in err, err
    code, _, err = kdbench("report", "quik-digits", "--runs", runs, "--output", tmp_path)
    assert code == 2 and f"did you mean '{name}'" in err
    code, _, err = kdbench("report", name, "--study", "other", "--runs", runs, "--output", tmp_path)
    assert code == 2 and "leave one out" in err


def test_the_page_names_the_command_that_makes_it_with_files_of_ones_own(tmp_path, monkeypatch):
    study = write(tmp_path, faults=[None])
    monkeypatch.setattr(loading, "LOADED", [loading.Loaded("methods", tmp_path / "mine.py")])
    page = report.html(report.read(study), {})
    assert f"kdbench report {study.folder.path.name} --method-file mine.py<" in page and str(tmp_path) not in page


def test_arms_of_another_code_are_compared_where_that_is_allowed_and_the_page_says_so(tmp_path):
    study = write(tmp_path, faults=[None])
    logit = next(arm for arm in study.arms if arm.method == "logit")
    for seed, (spec, result) in study.arms[logit].items():
        study.arms[logit][seed] = (spec, dataclasses.replace(result, environment={**ENVIRONMENT, "code_digest": "d"}))
    refused, allowed = report.read(study), report.read(study, ["code_digest"])
    verdicts = [{g.method: g.verdict for g in told["gains"]}["logit"] for told in (refused, allowed)]
    assert verdicts[0] == "undefined" != verdicts[1]
    assert "allowed to differ: code_digest" in report.markdown(allowed)
    assert "--allow-difference code_digest" in report.html(allowed, {})
    assert "allowed to differ" not in report.markdown(refused)
    with pytest.raises(InputError, match=r"code_digset.*code_digest"):
        report.read(study, ["code_digset"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("narrow", [False, True])
def test_the_names_of_many_methods_leave_their_curves_room(narrow):
    figure, (axes,) = figures._panels(1, narrow)
    for method in METHODS.values():
        axes.plot([1, 2, 3], [40, 50, 55], label=method.title)
    before = figure.get_figheight()
    figures._name_lines(figure, axes, narrow)
    assert figures._svg(figure).startswith("data:image/svg+xml")
    panel = axes.get_position()
    assert panel.width > 0.5 and panel.height * figure.get_figheight() > 0.5 * before
