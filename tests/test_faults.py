"""The zoo's rules: a fault is one field, its story is told, and audits and faults name each other."""

import pytest
import torch
from torch import nn

from audits.checks import CATALOGUE
from harness import faults
from harness.faults import FAULTS, fault
from harness.variants import VARIANTS
from kd.errors import InputError
from kd.procedure import CANONICAL

NO_FAULT_OF_ITS_OWN = {
    "norm-bound": "fails as a consequence of clip-coverage; a fault of its own (one clip a module) belongs to the zoo",
    "teacher-above-chance": "fails as a consequence of teacher-provenance",
    **dict.fromkeys(
        (
            *("clip-order", "clip-after-unscale", "optimizer-coverage", "teacher-not-optimised", "no-stale-parameters"),
            *("gradients-zeroed", "one-step-per-backward", "update-effective", "group-schedule", "alignment"),
            *("split-hygiene", "term-provenance", "target-form", "kd-scale", "weight-endpoints", "teacher-mode"),
            *("teacher-frozen", "student-mode"),
        ),
        "its fault comes with the zoo; until then twins of foreign scripts trip it (tests/scripts/twins.toml)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_replaces_one_field_and_tells_its_story(name):
    found = faults.get(name)
    calls = []
    changed = found.inject(CANONICAL, lambda: calls.append(1))
    differing = [s for s in faults.SEAMS if getattr(changed, s) is not getattr(CANONICAL, s)]
    assert differing == [found.seam]
    assert len(found.story.splitlines()) > 2 and found.caught_by
    difference = found.difference()
    assert f"-def {found.seam}(" in difference and f"+def {found.function.__name__}(" in difference
    assert '"""' not in difference


def test_the_seams_calls_are_counted():
    calls = []
    changed = faults.get("projector-unclipped").inject(CANONICAL, lambda: calls.append(1))
    student, method = nn.Linear(2, 2), nn.Linear(2, 2)
    assert list(changed.clipped(student, method)) == [*student.parameters()]
    assert calls == [1]


def test_the_random_teacher_is_left_as_it_was_and_only_logged(tmp_path, caplog):
    teacher = nn.Linear(2, 2)
    before = teacher.weight.clone()
    provenance = faults.get("random-teacher").function(teacher, tmp_path / "teacher.safetensors", None)
    assert torch.equal(teacher.weight, before) and provenance.loaded_fraction == 0
    assert "no teacher checkpoint" in caplog.text


def test_each_error_audit_is_named_by_a_fault_or_says_why_not():
    named = {audit for f in FAULTS.values() for audit in f.caught_by}
    for name, audit in CATALOGUE.items():
        if audit.severity == "error":
            assert (name in named) != (name in NO_FAULT_OF_ITS_OWN), name


def test_variants_are_made_of_known_faults():
    assert {f for arms in VARIANTS.values() for f in arms if f} == set(FAULTS)


def test_unknown_fault_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'random-teacher'"):
        faults.get("random-techer")


@pytest.fixture
def zoo(monkeypatch):
    monkeypatch.setattr(faults, "FAULTS", dict(FAULTS))


def test_registering_refuses_what_does_not_fit(zoo):
    def stemm(input_size):
        """Story."""

    with pytest.raises(InputError, match=r"unknown seam 'stemm'; did you mean 'stem'"):
        fault("stemm", caught_by=[])(stemm)
    with pytest.raises(InputError, match=r"unknown audit 'stem-resolutio'; did you mean 'stem-resolution'"):
        fault("stem", caught_by=["stem-resolutio"])(stemm)
    with pytest.raises(InputError, match=r"the seam clipped takes \(student, method\), not \(input_size\)"):
        fault("clipped", caught_by=[])(stemm)
    fault("stem", caught_by=[])(stemm)
    with pytest.raises(InputError, match="registered already"):
        fault("stem", caught_by=[])(stemm)


def test_the_digest_follows_the_code_and_not_the_story(zoo):
    def one(input_size):
        """A story."""
        return "cifar"

    first = one

    def one(input_size):
        """Another story, over
        two lines."""
        return "cifar"

    second = one

    def one(input_size):
        """A story."""
        return "imagenet"

    digests = [faults.Fault("x", "stem", f, (), (), "student", None).digest for f in (first, second, one)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("name", "method", "why"),
    [
        ("projector-unclipped", "logit", "logit has no projectors"),
        ("projector-unclipped", "feature", None),
        ("random-teacher", "baseline", "baseline has no teacher"),
        ("imagenet-stem", "baseline", None),
    ],
)
def test_where_a_fault_applies(name, method, why):
    assert faults.get(name).why_not(method) == why
