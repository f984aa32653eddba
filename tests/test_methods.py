"""What a method declares, what its settings refuse, and that a new one moves no key of a record that there is."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch
from test_cli import kdbench

from kdbench.harness import faults
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset, parse_preset
from kdbench.harness.records.spec import Spec
from kdbench.kd import train
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS, Batch, Method, MethodSettings, Soft, build, method, read_settings
from kdbench.kd.methods.registry import get
from kdbench.kd.models import MODELS
from kdbench.kd.procedure import CANONICAL, Views
from kdbench.kd.recipe import Recipe

GROUND = Ground("digits", "d" * 64, "cpu")


@pytest.fixture(autouse=True)
def as_before():
    known = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(known)


def register(name="mine", soft=Soft.OTHER, fields=(("kd_weight", float), ("size", int, 3)), **declared):
    bases = [(f[0], f[1], dataclasses.field(default=f[2])) if len(f) == 3 else f for f in fields]
    settings = dataclasses.make_dataclass("Settings", bases, bases=(MethodSettings,), frozen=True, kw_only=True)
    kind = type("Mine", (Method,), {"Settings": settings})
    return method(name, title="Mine", paper="none", soft=soft, **declared)(kind)


def spec(name, values, **other):
    fields = {"teacher": None, "fault": None, "fault_digest": None, "seed": 0, "threads": 1, "device": "cpu", **other}
    return Spec("digits", "d" * 64, "r18", name, read_settings(name, values), Recipe(), **fields)


def keys():
    plan = make_plan(load_preset("quick"), [None, "imagenet-stem"], GROUND, controls=True)
    return dict(plan.arms), plan.teachers


# -- keys


def test_a_new_method_moves_no_key():
    before = keys()
    register()
    assert keys() == before


def test_a_new_setting_with_a_default_moves_no_key_and_a_changed_one_does(monkeypatch):
    """Both of a method of version 0.1, whose keys name four numbers, and of one that is new."""
    register()
    values = {"logit": {"kd_weight": 0.7, "ce_weight": 0.3}, "mine": {"kd_weight": 0.7}}
    before = {name: spec(name, given).key for name, given in values.items()}
    for name, given in values.items():
        more = dataclasses.make_dataclass(
            "Settings", [("extra", float, 2.0)], bases=(METHODS[name].Settings,), frozen=True, kw_only=True
        )
        monkeypatch.setattr(METHODS[name], "Settings", more)
        assert spec(name, given).key == before[name]
        changed = {spec(name, {**given, "extra": value}).key for value in (2.5, 3.0)}
        assert len(changed | {before[name]}) == 3


def test_every_changed_value_is_another_key():
    register()
    found = [
        spec("mine", {"kd_weight": 0.5}),
        spec("mine", {"kd_weight": 0.6}),
        spec("mine", {"kd_weight": 0.5, "size": 4}),
        spec("mine", {"kd_weight": 0.5, "ce_weight": 0.5}),
        spec("mine", {"kd_weight": 0.5}, method_digest="1" * 16),
        spec("mine", {"kd_weight": 0.5}, method_digest="2" * 16),
        spec("mine", {"kd_weight": 0.5}, arch_digest="1" * 16),
        spec("mine", {"kd_weight": 0.5}, teacher_digest="1" * 16),
        spec("logit", {"kd_weight": 0.5}),
        spec("logit", {"kd_weight": 0.5, "temperature": 2}),
        spec("feature", {"kd_weight": 0.5}),
        spec("feature", {"kd_weight": 0.5, "beta": 1}),
        spec("baseline", {}),
        spec("baseline", {"ce_weight": 0.5}),
    ]
    assert len({s.key for s in found}) == len(found)
    assert spec("mine", {"kd_weight": 0.5, "size": 3}).key == found[0].key, "the default, written down"


def test_a_spec_holds_a_methods_own_settings_and_reads_them_back():
    register()
    for name, values in (("mine", {"kd_weight": 0.5}), ("logit", {"kd_weight": 0.5}), ("baseline", {})):
        one = spec(name, values, method_digest="1" * 16 if name == "mine" else None)
        plain = json.loads(one.to_json())
        assert set(plain["settings"]) == set(METHODS[name].Settings.names())
        assert ("method_digest" in plain) == (name == "mine")
        again = Spec.from_json(one.to_json())
        assert again == one and again.key == one.key


def of_0_1(name, **changed):
    """Return a spec as version 0.1 wrote it: all four numbers, whoever's they are."""
    plain = json.loads(spec(name, {} if name == "baseline" else {"kd_weight": 0.0}).to_json())
    plain["settings"] = {"ce_weight": 1.0, "kd_weight": 0.0, "temperature": 4.0, "beta": 0.5, **changed}
    return json.dumps(plain)


def test_a_spec_of_0_1_is_read_and_anothers_setting_only_at_what_it_was():
    assert Spec.from_json(of_0_1("baseline")).key == spec("baseline", {}).key
    assert Spec.from_json(of_0_1("feature", kd_weight=0.5)).key == spec("feature", {"kd_weight": 0.5}).key
    with pytest.raises(InputError, match="a trial of logit: unknown setting 'beta'"):
        Spec.from_json(of_0_1("logit", beta=0.25))
    with pytest.raises(InputError, match="unknown setting 'temprature'; did you mean 'temperature'"):
        Spec.from_json(of_0_1("logit", temprature=4.0))
    register()
    with pytest.raises(InputError, match="a trial of mine: unknown setting"):  # what is new was never written so
        Spec.from_json(of_0_1("baseline").replace('"baseline"', '"mine"'))
    with pytest.raises(InputError, match="a trial's spec: unknown method 'yours'"):
        Spec.from_json(of_0_1("baseline").replace('"baseline"', '"yours"'))


# -- settings


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("logit", {}, "method logit: kd_weight is missing; this weight of a term has no default"),
        (
            "dkd",
            {},
            "method dkd: tckd_weight and nckd_weight are missing; these weights of terms have no default, so write "
            "tckd_weight = a number, nckd_weight = a number",
        ),
        ("logit", {"kd_weight": 1, "beta": 1}, "method logit: unknown key 'beta'"),
        ("logit", {"kd_weight": -1}, "method logit: kd_weight is -1.0; a weight must not be negative"),
        ("logit", {"kd_weight": 1, "temperature": 0}, "method logit: temperature is 0.0; it must be positive"),
        ("logit", {"kd_weight": "1"}, "method logit: kd_weight is '1'; it must be of type float"),
        ("feature", {"kd_weight": 1, "beta": -0.5}, "method feature: beta is -0.5; a weight must not be negative"),
        ("logits", {}, "unknown method 'logits'; did you mean 'logit'"),
    ],
)
def test_settings_refuse_nonsense_and_name_the_setting(name, values, says):
    with pytest.raises(InputError) as error:
        read_settings(name, values)
    assert says in str(error.value)


SMALL = '[study]\ndataset = "digits"\npairs = ["r34-r18"]\nmethods = ["logit"]\nseeds = "0"\n'


def test_a_study_that_names_no_weight_is_told_which_and_where():
    with pytest.raises(InputError, match=r"small.toml, \[method.logit\]: kd_weight is missing"):
        parse_preset("small", SMALL)
    assert parse_preset("small", SMALL + "[method.logit]\nkd_weight = 1\n")
    assert parse_preset("small", SMALL + "[pair.r34-r18.logit]\nkd_weight = 1\n")
    assert parse_preset("small", SMALL + '[grid]\nseeds = "9"\n[grid.logit]\nalpha = [0.5]\n'), "each point names it"
    with pytest.raises(InputError, match="kd_weight is missing"):
        parse_preset("small", SMALL + '[grid]\nseeds = "9"\n[grid.logit]\ntemperature = [2]\n')


@pytest.mark.parametrize("name", METHODS)
def test_no_weight_has_a_default_of_zero(name):
    settings = METHODS[name].Settings
    for weight in (f"{term}_weight" for term in ("ce", *settings.terms())):
        assert settings.defaults().get(weight, 1.0) > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "logit"}, "method logit is registered already"),
        ({"fields": (("kd_weight", float, 0.0),)}, "kd_weight has the default 0, which turns the term off in silence"),
        ({"fields": ()}, "method mine: it has no term; name its weight in Settings"),
        ({"soft": Soft.HINTON}, "has the settings kd_weight and temperature"),
        ({"needs": ("label",)}, "unknown part of a batch 'label'; did you mean 'labels'"),
        ({"seams": ("softloss",)}, "unknown seam 'softloss'; did you mean 'soft_loss'"),
    ],
)
def test_registering_refuses_what_does_not_fit(changes, says):
    before = dict(METHODS)
    with pytest.raises(InputError) as error:
        register(**changes)
    assert says in str(error.value) and before == METHODS


def test_a_method_needs_settings_of_its_own():
    with pytest.raises(InputError, match="the class needs a Settings of its own"):
        method("mine", title="Mine", paper="none", soft=Soft.OTHER)(type("Mine", (Method,), {}))


# -- declarations


@pytest.mark.parametrize("name", METHODS)
def test_a_method_asks_for_the_seams_that_it_declares_and_no_others(prepare, name):
    asked = set()

    def counting(seam):
        def ask(*args):
            asked.add(seam)
            return getattr(CANONICAL, seam)(*args)

        return ask

    seams = {seam: counting(seam) for seam in ("soft_loss", "features")}
    next(train.epochs(prepare(name, dataclasses.replace(CANONICAL, **seams))))
    assert asked == {*METHODS[name].seams}


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_parameters_are_its_projectors(prepare, name):
    assert any(True for _ in prepare(name).method.parameters()) == METHODS[name].has_projectors


def test_a_part_of_the_batch_that_is_not_declared_is_not_there():
    views = Views(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2))
    batch = Batch(("ids", "views"), torch.tensor([1]), torch.tensor([7]), views)
    assert batch.ids.tolist() == [7] and batch.views is views
    with pytest.raises(InputError, match="asked for the batch's labels and does not declare it; add it to needs="):
        _ = batch.labels


@dataclass(frozen=True, kw_only=True)
class TwoWeights(MethodSettings):
    first_weight: float
    second_weight: float


def two_terms(returned):
    class Two(Method):
        Settings = TwoWeights

        def forward(self, student, teacher, batch):
            self.seen = (batch.labels, batch.ids, batch.views.student)
            return {name: (student.logits.float() ** power).mean() for name, power in returned.items()}

    method("two", title="Two", paper="none", soft=Soft.OTHER, needs=("labels", "ids", "views"))(Two)


def test_terms_are_weighed_by_name_and_stand_in_the_curve(prepare):
    two_terms({"second": 4, "first": 2})
    training = prepare("two")
    training.settings = read_settings("two", {"ce_weight": 0.5, "first_weight": 2, "second_weight": 3})
    epoch, *_ = train.epochs(training)
    assert list(epoch.loss) == ["ce", "first", "second", "total"]
    loss = epoch.loss
    assert loss["total"] == pytest.approx(0.5 * loss["ce"] + 2 * loss["first"] + 3 * loss["second"], rel=1e-5)
    labels, ids, images = training.method.seen
    assert torch.equal(training.pool.labels[ids], labels) and len(images) == len(ids)


def test_a_term_without_a_weight_is_said(prepare):
    two_terms({"first": 2, "third": 2})
    with pytest.raises(InputError, match="returned the terms first, third, and its settings weigh first, second"):
        next(train.epochs(prepare("two")))


def test_settings_of_another_method_are_refused():
    other = read_settings("logit", {"kd_weight": 1})
    with pytest.raises(InputError, match="method feature: its settings are of logit"):
        build("feature", (2,), (2,), other, CANONICAL, torch.Generator())


# -- faults ask the declaration


@pytest.mark.parametrize(
    ("declared", "fault", "why"),
    [
        ({"soft": Soft.OTHER}, "kd-term-detached", "mine does not ask for soft_loss"),
        ({"soft": Soft.NONE}, "kd-term-detached", "mine has no soft term"),
        ({"soft": Soft.OTHER, "seams": ("soft_loss",)}, "kd-term-detached", None),
        ({"soft": Soft.DECOUPLED, "seams": ("soft_loss",)}, "kl-reversed", "the soft term of mine is decoupled"),
        ({"soft": Soft.OTHER}, "teacher-rows-shuffled", "the soft term of mine is other"),
        ({"soft": Soft.DIVERGENCE}, "teacher-rows-shuffled", None),
        ({"soft": Soft.DIVERGENCE}, "missing-t-squared", "mine does not ask for soft_loss"),
        (
            {"soft": Soft.DIVERGENCE, "seams": ("soft_loss",)},
            "missing-t-squared",
            "the soft term of mine is divergence",
        ),
        ({"soft": Soft.OTHER}, "features-detached", "mine has no projectors"),
        ({"soft": Soft.NONE, "seams": ("features",)}, "features-detached", None),
        ({"soft": Soft.OTHER}, "projector-unclipped", "mine has no projectors"),
        ({"soft": Soft.OTHER, "projectors": True}, "projector-unclipped", None),
        ({"soft": Soft.OTHER}, "random-teacher", None),
        ({"soft": Soft.OTHER, "teacher": False}, "random-teacher", "mine has no teacher"),
    ],
)
def test_whether_a_fault_applies_is_what_the_method_declares(declared, fault, why):
    register(**declared)
    found = faults.get(fault).why_not("mine")
    assert found is None if why is None else found.startswith(why)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="unknown method 'featur'; did you mean 'feature'"):
        get("featur")


def test_every_method_and_network_is_listed_with_what_it_reads():
    code, out, _ = kdbench("methods", "--json")
    found = json.loads(out)
    assert code == 0 and [entry["name"] for entry in found["methods"]] == [*METHODS] and found["networks"] == [*MODELS]
    logit = found["methods"][1]
    assert logit["settings"] == {"ce_weight": 1.0, "kd_weight": None, "temperature": 4.0}
    assert (logit["soft"], logit["projectors"], logit["teacher"]) == ("forward", False, True)


def test_one_method_is_shown_with_what_the_presets_set():
    code, out, _ = kdbench("methods", "dkd")
    row = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("setting ", "nckd_w"))}
    presets = dict(zip(row["setting"], row["nckd_weight"], strict=True))
    assert code == 0 and presets["default"] == "-" and presets["cifar10"] == "8"
    assert "other values stand in cifar100-crd" in out
    assert "Decoupled Knowledge Distillation, CVPR 2022" in out and "reads, beside the logits: the labels" in out
    asked = out.partition("for example:\n")[2].replace("    ", "")
    assert asked == "[method.dkd]\ntckd_weight = 1\nnckd_weight = 8\n"
    assert parse_preset("small", SMALL.replace('"logit"', '"dkd"') + asked), "what is shown can be pasted"
    code, out, _ = kdbench("methods", "fitnet")
    assert "projectors: yes" in out and "for example" not in out, "all its settings have defaults"


def test_a_joined_method_is_shown_by_its_parts():
    code, out, _ = kdbench("methods", "logit+at", "--json")
    (shown,) = json.loads(out)["methods"]
    assert code == 0 and (shown["name"], shown["settings"]["at_weight"]) == ("logit+at", 1000.0)
    _, out, _ = kdbench("methods", "ls+dkd")
    assert "The terms of DKD, of answers that LS changes first." in out
    asked = out.partition("for example:\n")[2].replace("    ", "")
    study = SMALL.replace('"logit"', '"ls+dkd"')
    assert parse_preset("small", study + asked).settings("r34-r18", "ls+dkd")
    with pytest.raises(InputError, match=r'stands in quotes, as \[method."logit\+at"\]'):
        parse_preset("small", study + asked.replace('"', ""))
    with pytest.raises(InputError, match=r'small.toml, \[method."ls\+dkd"\]: tckd_weight'):
        parse_preset("small", study)
    code, _, err = kdbench("methods", "dkf")
    assert code == 2 and "did you mean 'dkd'" in err
    code, _, err = kdbench("methods", "DIST")
    assert code == 2 and "did you mean 'dist'" in err
