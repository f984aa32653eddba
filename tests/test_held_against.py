"""What a student's answers are held against: grown classes, mixed targets, committees, scores, one pair again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_forms_by_hand import verdict_of
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, mlp, rows, trained


def learner(*modules):
    return torch.optim.Adam([p for m in modules for p in m.parameters()], 1e-2)


def soft(s, t, temperature=2.0):
    log_s, of_t = (s / temperature).log_softmax(1), (t / temperature).softmax(1)
    return F.kl_div(log_s, of_t, reduction="batchmean") * temperature * temperature


# -- a student that has grown by classes


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU()), nn.Linear(24, CLASSES)

    def grow(self):
        old = self.head
        self.head = nn.Linear(24, 2 * CLASSES)
        with torch.no_grad():
            self.head.weight[:CLASSES], self.head.bias[:CLASSES] = old.weight, old.bias

    def forward(self, x):
        return self.head(self.trunk(x))


def learns_more_classes(cut):
    """A network learns new classes, and from what it was to keep the old ones."""
    net = trained(Growing())
    before = copy.deepcopy(net).eval().requires_grad_(False)
    net.grow()
    sgd = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        logits = net(x)
        with torch.no_grad():
            kept = before(x)
        step(sgd, F.cross_entropy(logits[:, CLASSES:], y) + soft(logits[:, cut], kept))
    return net, before


def test_the_old_classes_of_a_grown_student_are_its_teachers():
    report, _ = observed(learns_more_classes, slice(0, CLASSES))
    assert named_first(report) is None and verdict_of(report, "KD305").status == "pass"


def test_a_grown_student_that_learns_the_old_classes_as_its_new_ones_is_named():
    report, _ = observed(learns_more_classes, slice(-CLASSES, None))
    found = verdict_of(report, "KD305")
    assert named_first(report) == ("KD305", "error")
    assert "the student's from 0 on" in found.message and f"against its classes from {CLASSES} on" in found.message


# -- a target that is labels and teacher at once


def mixes(share):
    """The teacher's probabilities are mixed into the labels, before one cross-entropy."""
    teacher, student = trained(mlp(24)).requires_grad_(False), mlp(12)
    adam = learner(student)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x).softmax(1)
        target = (1 - share) * F.one_hot(y, CLASSES).float() + share * said
        step(adam, F.cross_entropy(student(x), target))
    return teacher, student


def test_labels_within_the_target_are_told_from_the_teacher():
    report, trace = observed(mixes, 0.3)
    assert named_first(report) is None and verdict_of(report, "KD313").status == "pass"
    (e, *_) = trace.losses.sights[0].explanations
    assert (
        e.form == "forward"
        and e.weight == pytest.approx(0.3, rel=0.02)
        and e.label_weight == pytest.approx(0.7, rel=0.02)
    )


def test_a_share_of_nothing_is_said_to_be_none():
    report, _ = observed(mixes, 0.0)
    found = verdict_of(report, "KD313")
    assert (found.status, found.reason) == ("not_triggered", "not-in-these-steps")
    assert "has no gradient in the steps seen" in found.message


# -- a teacher that answers with probabilities


class Committee(nn.Module):
    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x, temperature):
        return torch.stack([m(x).div(temperature).softmax(1) for m in self.members]).mean(0)


def asks_a_committee(taken):
    committee = Committee(trained(mlp(24)), trained(mlp(16))).eval().requires_grad_(False)
    student = mlp(12)
    adam = learner(student)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = taken(committee(x, 2.0))
        logits = student(x)
        term = F.kl_div((logits / 2).log_softmax(1), said, reduction="batchmean") * 4
        step(adam, 0.5 * term + 0.5 * F.cross_entropy(logits, y))
    return committee, student


def test_probabilities_that_a_module_answers_are_a_right_target():
    report, _ = observed(asks_a_committee, lambda said: said)
    assert named_first(report) is None
    assert verdict_of(report, "KD313").status == "pass" and verdict_of(report, "KD305").status == "pass"


def test_their_logarithms_are_none():
    report, _ = observed(asks_a_committee, torch.log)
    assert named_first(report) == ("KD313", "error")


# -- T * T beside a label weight that T^2 makes look like it


def weighs_one_half(twice):
    teacher, student = trained(mlp(24)).requires_grad_(False), mlp(12)
    adam = learner(student)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        term = F.kl_div((logits / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean") * 2 * 2
        term, of_labels = (0.3 * (0.3 * term), 0.7) if twice else (term, 0.5)
        step(adam, term + of_labels * F.cross_entropy(logits, y))
    return teacher, student


def test_two_factors_of_two_are_the_square_of_the_temperature_and_no_weight_twice():
    report, _ = observed(weighs_one_half, False)
    assert named_first(report) is None
    report, _ = observed(weighs_one_half, True)
    assert named_first(report) == ("KD312", "warn") and "twice" in verdict_of(report, "KD312").message


# -- scores that a script makes of answers


def by_a_queue(turned):
    """Student and teacher say how like each sample is to those in a queue of the teacher's answers."""
    teacher = trained(mlp(24))[:2].requires_grad_(False)
    student = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, 24))
    queue, adam = F.normalize(torch.randn(48, 24), dim=1), learner(student)
    for _ in range(STEPS):
        x, _ = rows()
        with torch.no_grad():
            its = F.normalize(teacher(x), dim=1)
        queue = torch.cat([its, queue])[:48]
        mine = F.normalize(student(x), dim=1)
        said, own = (its @ queue.T / 0.1), (mine @ queue.T / 0.2)
        if turned:
            said, own = own, said
        step(adam, (said.softmax(1) * (said.log_softmax(1) - own.log_softmax(1))).sum(1).mean())
    return teacher, student


@pytest.mark.parametrize(("turned", "form"), [(False, "forward"), (True, "reversed")])
def test_a_divergence_of_likenesses_is_read_at_its_softmax(turned, form):
    report, trace = observed(by_a_queue, turned)
    assert {e.form for s in trace.losses.sights for e in s.explanations} == {form}
    assert verdict_of(report, "KD313").status == ("fail" if turned else "pass")
    assert named_first(report) == (("KD313", "warn") if turned else None)


# -- one pair, several times


def by_stages(binds):
    """A term for each stage, made in a loop."""
    teacher, student = trained(mlp(24)).requires_grad_(False), mlp(24)
    maps, adam = {}, learner(student)

    def keep(name):
        return lambda module, given, out: maps.__setitem__(name, out)

    for who, net in (("t", teacher), ("s", student)):
        for i in (0, 2):
            net[i].register_forward_hook(keep((who, i)))
    bound = [lambda i=i: F.mse_loss(maps["s", i], maps["t", i]) for i in (0, 2)]
    loose = [lambda: F.mse_loss(maps["s", i], maps["t", i]) for i in (0, 2)]  # noqa: B023 - the slip
    terms = bound if binds else loose
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            teacher(x)
        loss = F.cross_entropy(student(x), y)
        step(adam, loss + sum(term() for term in terms))
    return teacher, student


def test_a_term_for_each_stage_compares_each():
    report, _ = observed(by_stages, True)
    assert named_first(report) is None


def test_a_name_bound_in_a_loop_compares_its_last_stage_again():
    report, _ = observed(by_stages, False)
    assert named_first(report) == ("KD106", "warn")
    assert "one pair of answers is compared 2 times, by one line" in verdict_of(report, "KD106").message
