"""MLKD on two crops of each image: what a batch holds, what its terms are, and that the audits judge it rightly."""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from test_cli import kdbench
from test_method_formulas import CLASSES, N, drawn, leaves, mlkd
from test_method_laws import made

from kdbench.harness import faults
from kdbench.harness.records.spec import Spec
from kdbench.harness.run.cost import trial_flop
from kdbench.harness.zoo import selfcheck
from kdbench.kd import train
from kdbench.kd.answers import Answers
from kdbench.kd.errors import InputError
from kdbench.kd.methods import Answer, Batch, read_settings
from kdbench.kd.procedure import Views

TWO = {"views": 2, "ce_weight": 0.5, "instance_weight": 0.5, "batch_weight": 0.5, "class_weight": 0.5}


@pytest.fixture
def training(prepare):
    """Return a training of MLKD by its settings."""

    def make(values, **changes):
        plain = prepare("mlkd", **changes)
        plain.settings = plain.method.settings = read_settings("mlkd", values)
        return plain

    return make


def test_a_batch_holds_its_images_once_for_every_crop(training):
    one, two = training({**TWO, "views": 1}), training(TWO)
    size, steps = one.recipe.batch_size, one.steps_per_epoch
    (ids, crops), (both, drawn_twice) = (train._drawn(t, 1) for t in (one, two))
    assert len(ids) == steps * size and len(both) == 2 * len(ids) and two.rows == 2 * one.rows
    for step in range(steps):
        mine, first, second = (slice(a * size, (a + 1) * size) for a in (step, 2 * step, 2 * step + 1))
        assert ids[mine].equal(both[first]) and ids[mine].equal(both[second])
        assert all(a.equal(b) for a, b in zip(crops.batch(mine), drawn_twice.batch(first), strict=True)), "as with one"
        assert not crops.top[mine].equal(drawn_twice.top[second]), "a crop of its own"


def test_the_terms_are_the_means_over_both_views():
    """The paper's formula on each view alone, in float64, and its gradient."""
    first, second = drawn(), drawn(size=2)
    views = [(leaves(s, torch.float64), Answer((t.logits + shift).double(), ())) for (s, t, _), shift in (
        (first, 0.0), (second, torch.arange(CLASSES)),
    )]  # fmt: skip
    method = made("mlkd", CLASSES, views=2)
    mine, theirs = (torch.cat([pair[side].logits for pair in views]).float().detach() for side in (0, 1))
    mine.requires_grad_()
    batch = Batch((), torch.zeros(2 * N, dtype=torch.int64), torch.arange(2 * N), Views(None, None))
    found = method(Answer(mine, ()), Answer(theirs, ()), batch)
    alone = [mlkd(student, teacher, None, None) for student, teacher in views]
    for term, value in found.items():
        wanted = sum(one[term] for one in alone) / 2
        assert value.item() == pytest.approx(wanted.item(), rel=1e-4), term
        (ours,) = torch.autograd.grad(value, mine, retain_graph=True)
        right = torch.cat(torch.autograd.grad(wanted, [student.logits for student, _ in views], retain_graph=True))
        torch.testing.assert_close(ours.double(), right, rtol=1e-3, atol=1e-5 * float(right.abs().max()))


def test_a_step_is_on_both_views_labels_included(training):
    """The first epoch of one step against the textbook: both views through the networks, each with its label."""
    ours, twin = (training(TWO, epochs=1, train_size=16) for _ in range(2))
    (epoch,) = train.epochs(ours)
    ids, crops = train._drawn(twin, 0)
    images, labels = twin.pool.crop(ids, crops), twin.pool.labels[ids]
    twin.student.train()
    with torch.no_grad():
        student, teacher = twin.student(images), twin.teacher.eval()(images)
    views = [(Answer(s.double(), ()), Answer(t.double(), ())) for s, t in zip(
        student.logits.chunk(2), teacher.logits.chunk(2), strict=True
    )]  # fmt: skip
    assert epoch.loss["ce"] == pytest.approx(F.cross_entropy(student.logits, labels).item(), rel=1e-4)
    with torch.no_grad():
        instance = sum(kl_of(s.logits, t.logits) for s, t in views) / 2
    assert epoch.loss["instance"] == pytest.approx(instance.item(), rel=1e-3)
    right = (student.logits.argmax(1) == labels).double().mean()
    assert epoch.train_accuracy == pytest.approx(100 * right.item())


def kl_of(z_s, z_t):
    """Return the sum over the paper's temperatures of T^2 KL."""
    total = 0.0
    for t in (2, 3, 4, 5, 6):
        p, log_q = (z_t / t).softmax(1), (z_s / t).log_softmax(1)
        total = total + t**2 * (p * (p.log() - log_q)).sum(1).mean()
    return total


def test_two_views_keep_no_answers_and_cost_twice_the_training(training, tmp_path):
    two = training(TWO)
    two.answers = Answers(tmp_path, "a")
    assert list(train.epochs(two)) and not [*tmp_path.rglob("*.answers")], "no other method has these batches"
    one, both = (read_settings("mlkd", {"views": views}) for views in (1, 2))
    recipe = dataclasses.replace(two.recipe, epochs=10, val_size=1, test_stride=10_000)
    none = {"teacher": None, "fault": None, "fault_digest": None, "data_digest": ""}
    spec = Spec(
        "digits", arch="r18", method="mlkd", settings=one, recipe=recipe, seed=0, threads=1, device="cpu", **none
    )
    flop = [trial_flop(dataclasses.replace(spec, settings=settings), 1) for settings in (one, both)]
    assert 1.9 < flop[1] / flop[0] <= 2


@pytest.mark.parametrize("fault", [None, "teacher-rows-shuffled", "teacher-other-view"])
def test_the_audits_judge_two_views_as_one(fault, monkeypatch):
    preset, data = selfcheck._study()
    monkeypatch.setattr(selfcheck, "_study", lambda: (dataclasses.replace(preset, method={"mlkd": {"views": 2}}), data))
    run = selfcheck.audit_once("mlkd", faults.get(fault) if fault else None, 0, lambda _: None)
    assert run.as_declared, run.departures


def test_what_two_views_refuse():
    with pytest.raises(InputError, match="views is 3; it is 1, or 2 as in the paper"):
        read_settings("mlkd", {"views": 3})
    with pytest.raises(
        InputError, match="mlkd is trained on several crops of each image only by itself; leave its views at 1"
    ):
        read_settings("mlkd+at", {"views": 2})
    assert read_settings("mlkd+at", {}).crops() == 1
    code, out, _ = kdbench("methods", "mlkd")
    assert code == 0 and re.search(r"views +1\b", out)
