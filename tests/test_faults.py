"""The zoo's rules: a fault is one field, its story is told, and audits and faults name each other."""

import pytest
import torch
from conftest import put_back
from torch import nn

from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.laws import LAWS
from kdbench.harness import faults
from kdbench.harness.faults import FAULTS, fault
from kdbench.harness.plan.variants import VARIANTS
from kdbench.kd.errors import InputError
from kdbench.kd.procedure import CANONICAL

NO_FAULT_OF_ITS_OWN = {
    "teacher-frozen": "a consequence of the teacher's mode, or of an optimizer that holds it",
    "teacher-not-optimised": "needs two faults at once: an optimizer that holds the teacher, and a recorded answer; "
    "twins of foreign scripts have both",
    "token-mask": "a study trains on images; specimens of language models have it",
    "result-kept": "the harness keeps the record of a trial itself; specimens of scripts have it",
    "rank-batches": "a trial has one process; scripts of several have it (tests/ranks)",
    "rank-teachers": "the same",
    "rank-students": "the same",
    "rank-clip": "the same",
    "update-effective": "a rate or dtype at which updates are lost is a number of the recipe, not a decision",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_replaces_one_field_and_tells_its_story(name):
    found = faults.get(name)
    calls = []
    changed = found.inject(CANONICAL, lambda: calls.append(1))
    differing = [s for s in faults.SEAMS if getattr(changed, s) is not getattr(CANONICAL, s)]
    assert differing == [found.seam]
    assert len(found.story.splitlines()) > 2 and bool(found.caught_by) != bool(found.escapes)
    difference = found.difference()
    assert f"-def {found.seam}(" in difference and f"+def {found.function.__name__}(" in difference
    assert '"""' not in difference


def test_the_seams_calls_are_counted():
    calls = []
    changed = faults.get("projector-unclipped").inject(CANONICAL, lambda: calls.append(1))
    student, method = nn.Linear(2, 2), nn.Linear(2, 2)
    assert [list(params) for params in changed.clipped(student, method)] == [[*student.parameters()]]
    assert calls == [1]


def test_the_random_teacher_is_left_as_it_was_and_only_logged(tmp_path, caplog):
    teacher = nn.Linear(2, 2)
    before = teacher.weight.clone()
    provenance = faults.get("random-teacher").function(teacher, nn.Linear(2, 2), tmp_path / "teacher.safetensors", None)
    assert torch.equal(teacher.weight, before) and provenance.loaded_fraction == 0
    assert "no teacher checkpoint" in caplog.text


def test_each_error_audit_and_law_is_named_by_a_fault_or_says_why_not():
    named = {audit for f in FAULTS.values() for audit in f.caught_by}
    for name, entry in (CATALOGUE | LAWS).items():
        if entry.severity == "error":
            assert (name in named) != (name in NO_FAULT_OF_ITS_OWN), name


def test_variants_are_made_of_known_faults():
    assert {f for arms in VARIANTS.values() for f in arms if f} <= set(FAULTS)


def test_unknown_fault_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'random-teacher'"):
        faults.get("random-techer")


@pytest.fixture
def zoo():
    with put_back(FAULTS):
        yield


def test_registering_refuses_what_does_not_fit(zoo):
    def stemm(input_size):
        """Story."""

    with pytest.raises(InputError, match=r"unknown seam 'stemm'; did you mean 'stem'"):
        fault("stemm", caught_by=[])(stemm)
    with pytest.raises(InputError, match=r"unknown audit 'stem-resolutio'; did you mean 'stem-resolution'"):
        fault("stem", caught_by=["stem-resolutio"])(stemm)
    with pytest.raises(InputError, match=r"the seam clipped takes \(student, method\), not \(input_size\)"):
        fault("clipped", caught_by=["clip-order"])(stemm)
    with pytest.raises(InputError, match="or says why it escapes them all"):
        fault("stem", caught_by=[])(stemm)
    with pytest.raises(InputError, match="or says why it escapes them all"):
        fault("stem", caught_by=["stem-resolution"], escapes="no")(stemm)
    fault("stem", caught_by=[], escapes="it is a story")(stemm)
    with pytest.raises(InputError, match="has no docstring"):
        fault("stem", caught_by=["stem-resolution"])(lambda input_size: "cifar")
    with pytest.raises(InputError, match="registered already"):
        fault("stem", caught_by=["stem-resolution"])(stemm)


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
        ("missing-t-squared", "feature", "feature has no soft term"),
        ("features-detached", "logit", "logit has no projectors"),
        ("teacher-rows-shuffled", "baseline", "baseline has no teacher"),
        ("student-eval-mode", "baseline", "baseline distils nothing, and the audit that tells is of distillations"),
        ("projector-unclipped", "logit", "logit has no projectors"),
        ("projector-unclipped", "feature", None),
        ("random-teacher", "baseline", "baseline has no teacher"),
        ("imagenet-stem", "baseline", None),
    ],
)
def test_where_a_fault_applies(name, method, why):
    assert faults.get(name).why_not(method) == why
