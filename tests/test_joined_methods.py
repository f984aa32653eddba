"""Methods joined by `+`: the parts' terms, each with its own weight; what is refused; and a study of one."""

import dataclasses
import json

import pytest
import torch
from conftest import TINY, put_back
from test_cli import kdbench
from test_method_laws import CHANNELS, drawn

from kdbench.harness import faults
from kdbench.harness.plan.preset import load_preset, parse_preset
from kdbench.harness.records.environment import method_digest
from kdbench.harness.run.trial import declared
from kdbench.harness.zoo.selfcheck import audit_once
from kdbench.kd import train
from kdbench.kd.errors import InputError
from kdbench.kd.methods import (
    METHODS,
    Answer,
    Batch,
    Images,
    Method,
    MethodSettings,
    Soft,
    build,
    method,
    read_settings,
)
from kdbench.kd.methods.ls import standardised
from kdbench.kd.procedure import CANONICAL, Views

IMAGES = Images(torch.arange(12), torch.arange(12) % 4)


def made(name, **values):
    lacking = {f"{t}_weight": 1.0 for t in METHODS[name].Settings.terms()} | {"ce_weight": 1.0}
    return build(
        name,
        CHANNELS,
        CHANNELS,
        read_settings(name, lacking | values),
        CANONICAL,
        torch.Generator().manual_seed(0),
        IMAGES,
    )


def terms(method, student, teacher, labels):
    return method(student, teacher, Batch(method.needs, labels, torch.arange(len(labels)), Views(None, None)))


def test_the_terms_are_those_of_the_parts_and_its_weights_have_their_names():
    student, teacher, labels = drawn(3, 6)
    both = made("dkd+at", temperature=2.0)
    found = terms(both, student, teacher, labels)
    assert list(found) == ["tckd", "nckd", "at"] == [*both.settings.terms()]
    parts = terms(made("dkd", temperature=2.0), student, teacher, labels) | terms(made("at"), student, teacher, labels)
    assert {name: value.item() for name, value in found.items()} == {k: v.item() for k, v in parts.items()}


def test_a_name_that_an_earlier_part_has_gets_the_later_ones_name():
    kind = METHODS["logit+feature"]
    assert kind.Settings.names() == ("ce_weight", "kd_weight", "temperature", "feature_kd_weight", "beta")
    student, teacher, labels = drawn(3, 6)
    assert list(terms(made("logit+feature"), student, teacher, labels)) == ["kd", "feature_kd"]


def test_a_part_that_needs_more_is_given_it(prepare):
    """CRD: the ids of the batch, the images that are trained on; a memory and an embedding, saved under its name."""
    training = prepare("logit+crd")
    (first, _) = train.epochs(training)
    assert list(first.loss) == ["ce", "kd", "crd", "total"]
    assert first.loss["total"] == pytest.approx(
        0.5 * (first.loss["ce"] + first.loss["kd"] + first.loss["crd"]), rel=1e-4
    )
    assert "of.crd.memory_student" in training.method.state_dict()
    assert [*training.method.named_projectors()] == ["crd.embed_student", "crd.embed_teacher"]


def test_what_it_declares_is_of_its_parts():
    kind = METHODS["logit+crd"]
    assert (kind.soft, kind.has_projectors, kind.stages, kind.wraps) == (Soft.HINTON, True, "last", False)
    assert kind.needs == ("labels", "ids") and kind.seams == ("soft_loss", "features")
    assert kind.title == "Logit-KD + CRD"
    assert METHODS["logit+at"].stages == "all" and METHODS["logit+dkd"].soft is Soft.OTHER
    kd = declared("logit+at", read_settings("logit+at", {"ce_weight": 0.3, "kd_weight": 0.7}))
    assert (kd.form, kd.temperature, kd.alpha) == (None, 4.0, 0.7)
    assert declared("dkd+at", made("dkd+at").settings).form == "decoupled"
    assert faults.get("projector-unclipped").why_not("logit+at") == "logit+at has no projectors"
    assert faults.get("projector-unclipped").why_not("logit+crd") is None


def test_standardisation_changes_what_another_method_of_logits_is_shown():
    student, teacher, labels = drawn(4, 6)
    hot = [Answer(standardised(a.logits), a.features) for a in (student, teacher)]
    found = terms(made("ls+dkd"), student, teacher, labels)
    plain = terms(made("dkd"), *hot, labels)
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in plain.items()})
    assert METHODS["ls+dkd"].soft is Soft.OTHER and METHODS["ls+dkd"].title == "LS + DKD"
    assert METHODS["ls+at"].Settings.terms() == ("kd", "at"), "beside no other method of logits it has its own term"
    of_three = terms(made("ls+logit+at"), student, teacher, labels)
    assert of_three["kd"].item() == pytest.approx(terms(made("logit"), *hot, labels)["kd"].item())
    assert of_three["at"].item() == pytest.approx(terms(made("at"), student, teacher, labels)["at"].item())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("at+logit", "method at+logit: write it as logit+at"),
        ("dkd+ls", "method dkd+ls: write it as ls+dkd"),
        ("baseline+at", "method baseline+at: baseline has no term to be joined with others"),
        ("at+at", "method at+at: at stands in it twice"),
        ("logit+att", "logit+att: unknown method 'att'; did you mean 'at'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_trained(name, says):
    code, out, err = kdbench("run", "--preset", "quick", "--method", name)
    assert code == 2 and out == "" and says in " ".join(err.split()) and "Traceback" not in err


def test_a_study_takes_what_it_says_of_the_parts_and_what_it_says_of_the_whole():
    preset = load_preset("quick")
    settings = preset.settings(preset.pairs[0], "logit+feature")
    assert (settings.ce_weight, settings.kd_weight, settings.feature_kd_weight, settings.beta) == (0.3, 0.7, 1, 0.5)
    text = (
        '[study]\ndataset = "digits"\npairs = ["r34-r18"]\nmethods = ["logit+at"]\nseeds = "0"\n'
        "[method.logit]\nkd_weight = 0.7\nce_weight = 0.3\n"
        '[method."logit+at"]\nat_weight = 10\n'
    )
    settings = parse_preset("small", text).settings("r34-r18", "logit+at")
    assert (settings.ce_weight, settings.kd_weight, settings.at_weight) == (0.3, 0.7, 10)
    with pytest.raises(InputError, match="unknown key 'ta_weight'; did you mean 'at_weight'"):
        parse_preset("small", text.replace("at_weight", "ta_weight"))
    grid = text + '[grid]\nseeds = "9"\n[grid."logit+at"]\nat_weight = [1, 10]\n'
    assert len(parse_preset("small", grid).grid.points("logit+at")) == 2


def test_settings_of_a_part_are_refused_as_by_itself():
    with pytest.raises(InputError, match=r"method ttm: power is 0\.0; it must be positive"):
        read_settings("ttm+at", {"power": 0.0})


def test_a_joined_method_is_in_no_list_and_follows_its_parts():
    listed = [*METHODS]
    assert "logit+at" in METHODS and METHODS["logit+at"] is METHODS["logit+at"] and [*METHODS] == listed
    assert "logit+nothing" not in METHODS and METHODS.rank("logit+at") > METHODS.rank(listed[-1])
    assert method_digest("logit+at") not in (None, method_digest("logit"), method_digest("at"))
    with put_back(METHODS):
        own = METHODS["logit+at"]
        Settings = dataclasses.make_dataclass(
            "Settings", [("mine_weight", float, 1.0)], bases=(MethodSettings,), frozen=True, kw_only=True
        )
        METHODS.pop("at")
        method("at", title="Mine", paper="none", soft=Soft.NONE)(type("Mine", (Method,), {"Settings": Settings}))
        METHODS["at"].digest = "1" * 16
        assert METHODS["logit+at"] is not own and METHODS["logit+at"].digest == "1" * 16
    assert METHODS["logit+at"].digest is None


@pytest.mark.parametrize("name", ["logit+at", pytest.param("ls+dkd+crd", marks=pytest.mark.long)])
def test_a_correct_one_is_clean_and_a_fault_in_it_is_caught_by_exactly_its_audits(name):
    clean = audit_once(name, None, 0, lambda _: None)
    assert clean.as_declared, clean.departures
    found = audit_once(name, faults.get("kd-term-detached"), 0, lambda _: None)
    assert found.as_declared, found.departures


@pytest.mark.long
def test_a_study_of_one_runs_and_is_compared_and_reported(tmp_path):
    runs = ["--runs", str(tmp_path)]
    code, out, err = kdbench(
        "run", TINY, "--method", "baseline", "--method", "logit+at", "--no-controls", *runs, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert {arm["method"] for arm in found["arms"]} == {"baseline", "logit+at"}
    code, out, err = kdbench("compare", "baseline", "logit+at", *runs, "--json")
    assert code == 0 and json.loads(out)["comparisons"][0]["b"] == "logit+at", err
    assert kdbench("report", *runs)[0] == 0
