"""Who teaches whom where that is less plain: students without data, teachers with a loss of their own, twins."""

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


# -- a student that is fed features


def rebuilds(cut):
    """A decoder rebuilds the features of a frozen network from what a bottleneck leaves of them."""
    encoder = trained(mlp(24))[:2].requires_grad_(False)
    narrow, decoder = nn.Linear(24, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 24))
    adam = learner(narrow, decoder)
    for _ in range(STEPS):
        features = encoder(rows()[0])
        again = decoder(narrow(features))
        again = again.detach() + 1e-3 * again if cut else again
        step(adam, (1 - F.cosine_similarity(again, features)).mean())
    return encoder, narrow, decoder


def test_a_decoder_that_rebuilds_frozen_features_is_the_student():
    report, trace = observed(rebuilds, False)
    assert trace.roles["teacher"] == ["Sequential (encoder)"] and trace.roles["student"] == ["Sequential (decoder)"]
    assert trace.roles["projectors"] == ["Linear (narrow)"]
    assert named_first(report) is None and verdict_of(report, "KD313").status == "pass"


def adapts(whole):
    """An adapter on a frozen network learns another network's answers."""
    teacher, base = trained(mlp(24)).requires_grad_(False), trained(mlp(16))[:2].requires_grad_(False)
    adapter = nn.Linear(16, CLASSES)
    adam = learner(adapter)
    for _ in range(STEPS):
        x, _ = rows()
        step(adam, F.mse_loss(adapter(base(x)), teacher(x)))
    return teacher, base, adapter


def test_an_adapter_on_a_frozen_network_is_the_student_and_that_network_no_teacher():
    report, trace = observed(adapts, True)
    assert trace.roles["teacher"] == ["Sequential (teacher)"]
    assert "Linear (adapter)" in trace.roles["student"] or trace.roles["student"] == ["Sequential (base)"]
    assert named_first(report) is None


def probe(_):
    """A head on a frozen network learns numbers that are labels: no distillation."""
    base, head = trained(mlp(16))[:2].requires_grad_(False), nn.Linear(16, 2)
    adam = learner(head)
    for _ in range(STEPS):
        x, _ = rows()
        step(adam, F.mse_loss(head(base(x)), x[:, :2] * x[:, 2:4]))
    return base, head


def test_a_head_that_learns_labels_from_frozen_features_is_no_distillation():
    _, trace = observed(probe, 0)
    assert not trace.losses.sights


# -- a teacher that learns beside


class Maker(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner, self.out = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x):
        hidden = self.inner(x).relu()
        return self.out(hidden), hidden


def online(swapped):
    """A teacher learns pictures of the data, and a student its answers, in turn; neither has classes."""
    teacher, student = Maker(16), Maker(16)
    of_teacher, of_student = learner(teacher), learner(student)
    for _ in range(STEPS):
        x, _ = rows()
        said, hint = teacher(x)
        step(of_teacher, F.l1_loss(said, x.sin()))
        mine, hidden = student(x)
        step(of_student, F.l1_loss(mine, said.detach()) + 0.1 * F.mse_loss(hidden, hint.detach()))
    return teacher, student


def test_a_teacher_with_a_loss_of_its_own_is_no_student():
    report, trace = observed(online, False)
    assert trace.roles["student"] == ["Maker (student)"] and trace.roles["teacher"] == ["Maker (teacher)"]
    assert named_first(report) is None


# -- twins


def twins(way):
    """A copy of the student's start answers views; no label is in sight, and some make new heads for it."""
    student, ahead = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(8, 8)
    target = copy.deepcopy(student).requires_grad_(False)
    if way != "copy":
        target[2].reset_parameters()
    adam = learner(student, ahead)
    for _ in range(2 * STEPS):
        x, _ = rows()
        one, other = (x + 0.2 * torch.randn_like(x) for _ in range(2))
        with torch.no_grad():
            said = target(other)
        step(adam, -F.cosine_similarity(ahead(student(one)), said).mean())
        with torch.no_grad():
            for mine, its in zip(target.parameters(), student.parameters(), strict=True) if way == "averaged" else ():
                mine.lerp_(its, 0.05)
    return student, target, ahead


@pytest.mark.parametrize("way", ["copy", "new head"])
def test_an_average_that_is_never_taken_is_told(way):
    report, _ = observed(twins, way)
    assert named_first(report) == ("KD302", "error")
    assert "call the update of the average" in verdict_of(report, "KD302").mend


def test_one_that_is_taken_is_not():
    assert named_first(observed(twins, "averaged")[0]) is None


def forgetful(decay):
    """An average whose decay is warmed up, or is as it was at the beginning."""
    student = mlp(16)
    target = copy.deepcopy(student).requires_grad_(False)
    adam = learner(student)
    for n in range(2 * STEPS):
        x, y = rows()
        with torch.no_grad():
            said = target(x)
        logits = student(x)
        step(adam, F.cross_entropy(logits, y) + F.mse_loss(logits.softmax(1), said.softmax(1)))
        with torch.no_grad():
            for mine, its in zip(target.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 1 - decay(n))
    return student, target


@pytest.mark.parametrize(
    ("decay", "found"),
    [
        (lambda n: min(0.99, (1 + n) / (10 + n)), None),
        (lambda n: 0.9, None),
        (lambda n: 0.55, ("KD302", "warn")),
        (lambda n: max(0.5, 0.9 - n / 20), ("KD302", "warn")),
    ],
)
def test_an_average_that_forgets_at_once_is_told(decay, found):
    assert named_first(observed(forgetful, decay)[0]) == found


# -- a layer of the student's in the teacher's way


def normalised(shared):
    teacher, student = trained(mlp(16))[:2].requires_grad_(False), nn.Linear(WIDTH, 16)
    norms = nn.ModuleList([nn.BatchNorm1d(16), nn.BatchNorm1d(16, affine=False)])
    out, mix = nn.Linear(16, CLASSES), nn.Linear(16, 16)
    adam = learner(student, norms, out, mix)
    for _ in range(STEPS):
        x, y = rows()
        hidden, hint = student(x), teacher(x)
        goal = norms[0 if shared else 1](hint).detach()
        step(adam, F.cross_entropy(out(hidden), y) + F.mse_loss(mix(norms[0](hidden)), goal))
    return teacher, student, norms, out, mix


@pytest.mark.parametrize("shared", [False, True])
def test_a_target_that_a_layer_of_the_students_makes_is_told(shared):
    report, _ = observed(normalised, shared)
    assert named_first(report) == (("KD302", "warn") if shared else None)


# -- inputs


def scaled(who):
    """The teacher learned inputs that are scaled; student or teacher is shown them as they come."""
    teacher, student = mlp(24), mlp(8)
    adam = learner(teacher)
    for _ in range(20):
        x, y = rows()
        step(adam, F.cross_entropy(teacher(4 * x + 2), y))
    teacher.eval()
    adam = learner(student)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(4 * x + 2 if who == "student" else x)
        logits = student(x if who == "student" else 4 * x + 2)
        step(adam, F.cross_entropy(logits, y) + F.mse_loss(logits, said))
    return teacher, student


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_teacher_that_is_shown_what_it_learned_on_is_not_accused(who):
    report, _ = observed(scaled, who)
    assert verdict_of(report, "KD304").status == ("fail" if who == "teacher" else "not_triggered")


# -- what comes later


def phases(last):
    """After thirty steps the second phase begins, whose term is the labels' in place of the teacher's answer."""
    teacher, student = trained(mlp(24)).eval(), mlp(8)
    adam = learner(student)
    for n in range(42):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        goal = said if n < 30 or last == "teacher" else F.one_hot(y, CLASSES).float()
        step(adam, F.mse_loss(student(x), goal))
    return teacher, student


@pytest.mark.parametrize("last", ["teacher", "labels"])
def test_a_term_that_a_later_phase_loses_is_told(last):
    report, _ = observed(phases, last)
    assert named_first(report) == (("KD311", "error") if last == "labels" else None)


class HandsOn(nn.Module):
    """Returns what it was shown, too, as compiled code does for its backward."""

    def __init__(self):
        super().__init__()
        self.net = mlp(8)

    def forward(self, x):
        return self.net(x), x


@pytest.mark.parametrize("traced", [False, True])
def test_a_batch_that_a_network_hands_on_stays_data(traced):
    def loop():
        student, teacher = HandsOn(), trained(mlp(24)).eval().requires_grad_(False)
        student = torch.fx.symbolic_trace(student) if traced else student
        adam = learner(student)
        for _ in range(STEPS):
            x, y = rows()
            logits, _ = student(x)
            soft = F.kl_div(logits.log_softmax(1), teacher(x).softmax(1), reduction="batchmean")
            step(adam, 0.5 * F.cross_entropy(logits, y) + 0.5 * soft)
        return student, teacher

    report, trace = observed(loop)
    assert trace.roles["teacher"] == ["Sequential (teacher)"], trace.roles
    assert named_first(report) is None and verdict_of(report, "KD313").status == "pass"


# -- a teacher that is trained along


def pair(way):
    """A narrow network learns a wide one's embeddings, without labels; the optimizer may hold both."""
    wide, narrow = mlp(24) if way == "both new" else trained(mlp(24)), mlp(6)
    wide.requires_grad_(way != "frozen")
    adam = learner(narrow) if way == "frozen" else learner(wide, narrow)
    for _ in range(STEPS):
        x, y = rows()
        mine, its = narrow(x), wide(rows()[0] if way == "own inputs" else x)
        if way == "towards data":
            step(adam, (mine + its - F.one_hot(y, CLASSES)).pow(2).mean())
        else:
            step(adam, (F.normalize(mine, dim=1) - F.normalize(its, dim=1)).pow(2).sum(1).mean())
    return wide, narrow


def test_a_trained_network_that_is_moved_towards_a_new_one_is_a_teacher_in_the_optimizer():
    report, trace = observed(pair, "in the optimizer")
    assert (trace.roles["student"], trace.roles["teacher"]) == (["Sequential (narrow)"], ["Sequential (wide)"])
    assert named_first(report) == ("KD102", "error")


def test_it_is_a_teacher_all_the_same_where_nothing_moves_it():
    report, trace = observed(pair, "frozen")
    assert trace.roles["teacher"] == ["Sequential (wide)"] and named_first(report) is None


@pytest.mark.parametrize("way", ["both new", "towards data", "own inputs"])
def test_two_networks_that_learn_together_are_no_student_and_teacher(way):
    """As boosting does, towards data, and as two towers with inputs of their own do."""
    report, trace = observed(pair, way)
    assert not trace.roles.get("teacher") and named_first(report) is None


# -- scores of pairs


def preferences(outside):
    """A small judge learns how sure a large one is that the first of two is better."""
    large, small = (nn.Sequential(nn.Linear(WIDTH, w), nn.ReLU(), nn.Linear(w, 1), nn.Flatten(0)) for w in (24, 6))
    adam = learner(large)
    for _ in range(STEPS):
        (x, y), (other, z) = rows(), rows()
        step(adam, F.binary_cross_entropy_with_logits(large(x) - large(other), (y > z).float()))
    large.requires_grad_(False)
    adam = learner(small)
    for _ in range(STEPS):
        x, other = rows()[0], rows()[0]
        margin = large(x) - large(other)
        step(adam, F.binary_cross_entropy_with_logits(small(x) - small(other), margin if outside else margin.sigmoid()))
    return large, small


def test_a_judge_learns_from_scores_of_pairs():
    report, trace = observed(preferences, False)
    assert trace.roles["teacher"] == ["Sequential (large)"] and named_first(report) is None
    assert "scores are compared" in verdict_of(report, "KD313").message


def test_margins_are_no_scores():
    report, _ = observed(preferences, True)
    assert named_first(report) == ("KD313", "error")
    assert "take the sigmoid" in verdict_of(report, "KD313").mend
