"""DKD against the formula worked out class by class, its limits, its gradient, and the audits' verdict on it."""

import math

import pytest
import torch

from kdbench.harness import faults
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.run.trial import declared
from kdbench.harness.zoo.selfcheck import audit_once
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS, Answer, Batch, Soft, build, read_settings
from kdbench.kd.procedure import CANONICAL, Views, soft_loss

STUDENT = [[1.0, 0.0, -2.0, 0.5], [0.5, 0.5, 3.0, -1.0], [0.2, -0.4, 0.1, 2.0]]
TEACHER = [[2.0, -1.0, 0.0, 0.3], [0.0, 1.0, 4.0, 1.0], [1.0, 0.0, 0.5, -3.0]]
LABELS = [0, 2, 3]


def dkd(temperature=4.0):
    settings = read_settings("dkd", {"tckd_weight": 1, "nckd_weight": 8, "temperature": temperature})
    return build("dkd", (), (), settings, CANONICAL, torch.Generator())


def batch(labels):
    return Batch(METHODS["dkd"].needs, labels, torch.arange(len(labels)), Views(None, None))


def terms(z_s, z_t, labels, temperature=4.0):
    return dkd(temperature)(Answer(z_s, ()), Answer(z_t, ()), batch(labels))


def softmax(row, temperature):
    top = [math.exp(z / temperature) for z in row]
    return [t / sum(top) for t in top]


def by_hand(temperature):
    tckd = nckd = 0.0
    for z_s, z_t, y in zip(STUDENT, TEACHER, LABELS, strict=True):
        p, q = softmax(z_t, temperature), softmax(z_s, temperature)
        tckd += p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        for c in set(range(4)) - {y}:
            p_hat, q_hat = p[c] / (1 - p[y]), q[c] / (1 - q[y])
            nckd += p_hat * math.log(p_hat / q_hat)
    return {name: temperature**2 * value / len(LABELS) for name, value in (("tckd", tckd), ("nckd", nckd))}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_terms_by_hand(temperature):
    found = terms(torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS), temperature)
    wanted = by_hand(temperature)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(wanted, rel=1e-5)


def drawn(seed=0, n=8, classes=10):
    rng = torch.Generator().manual_seed(seed)
    z_s, z_t = (3 * torch.randn(n, classes, generator=rng) for _ in range(2))
    return z_s, z_t, torch.randint(0, classes, (n,), generator=rng)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_the_weights_of_the_paper_that_undo_it_it_is_logit_kd(temperature):
    """Eq. 6: KL = TCKD + (1 - p) NCKD, image by image, p the teacher's probability of the right class."""
    for row in range(8):
        z_s, z_t, y = (values[row : row + 1] for values in drawn())
        found = terms(z_s, z_t, y, temperature)
        rest = 1 - (z_t / temperature).softmax(1)[0, y]
        torch.testing.assert_close(found["tckd"] + rest[0] * found["nckd"], soft_loss(z_s, z_t, temperature))


def test_two_classes_have_nothing_within_the_rest():
    """The limit of alpha alone: with two classes TCKD is the whole KL, and NCKD is nothing."""
    z_s, z_t, y = drawn(classes=2)
    found = terms(z_s, z_t, y)
    torch.testing.assert_close(found["tckd"], soft_loss(z_s, z_t, 4.0))
    assert found["nckd"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_right_class_alone_is_nothing_to_the_rest():
    """The limit of beta alone: a student that differs in the logit of the right class has NCKD 0, and TCKD above it."""
    _, z_t, y = drawn()
    z_s = z_t.clone()
    z_s[torch.arange(8), y] += 5.0
    found = terms(z_s, z_t, y)
    assert found["nckd"].item() == pytest.approx(0.0, abs=1e-6) and found["tckd"].item() > 0.1


def test_gradients_are_those_of_the_two_distributions():
    """T/B (q - p) of the pair, spread over the rest by q within it; and T/B (q - p) within the rest."""
    z_s, z_t, y = drawn()
    z_s.requires_grad_(True)
    t, n, rows = 4.0, 8, torch.arange(8)
    found = terms(z_s, z_t, y)
    q, p = (z_s.detach() / t).softmax(1), (z_t / t).softmax(1)
    right = torch.zeros_like(q, dtype=torch.bool)
    right[rows, y] = True
    q_hat, p_hat = (d.masked_fill(right, 0.0) / (1 - d[rows, y])[:, None] for d in (q, p))
    off = (q - p)[rows, y][:, None]
    wanted = {"tckd": torch.where(right, off, -off * q_hat), "nckd": q_hat - p_hat}
    for name, term in found.items():
        (gradient,) = torch.autograd.grad(term, z_s, retain_graph=True)
        torch.testing.assert_close(gradient, t / n * wanted[name], atol=1e-6, rtol=1e-4)


def test_it_says_what_it_is():
    kind = METHODS["dkd"]
    assert (kind.soft, kind.has_projectors, kind.needs, kind.seams) == (
        Soft.DECOUPLED, False, ("labels",), ("soft_loss",),
    )  # fmt: skip
    assert kind.Settings.terms() == ("tckd", "nckd")
    assert declared("dkd", dkd().settings).form == "decoupled"
    with pytest.raises(InputError, match=r"method dkd: nckd_weight is missing"):
        read_settings("dkd", {"tckd_weight": 1})


@pytest.mark.parametrize("preset", ["quick", "cifar10", "paper"])
def test_the_presets_have_its_weights_and_do_not_train_it_unasked(preset):
    found = load_preset(preset)
    settings = found.settings(found.pairs[0], "dkd")
    assert (settings.ce_weight, settings.tckd_weight, settings.nckd_weight) == (1, 1, 8)
    assert "dkd" not in found.methods


def test_no_step_hands_a_number_to_python_and_the_terms_are_in_the_curve(prepare):
    from kdbench.kd import train

    (epoch, _) = train.epochs(prepare("dkd"))
    assert list(epoch.loss) == ["ce", "tckd", "nckd", "total"]
    parts = epoch.loss["ce"] + epoch.loss["tckd"] + epoch.loss["nckd"]
    assert epoch.loss["total"] == pytest.approx(0.5 * parts, rel=1e-4)


CAUGHT = {
    "kd-term-detached": "KD311",
    "student-teaches-itself": "KD311",
    "teacher-train-mode": "KD301",
    "random-teacher": "KD104",
    "kd-term-forgotten": "KD341",
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_fault_in_it_is_caught_by_exactly_its_audits(name):
    run = audit_once("dkd", faults.get(name), 0, lambda _: None)
    assert run.calls > 0 and run.as_declared, {f.name: f.message for f in run.report.failed("error")}
    assert CAUGHT[name] in {f.id for f in run.report.failed("error")}


def test_a_fault_that_no_audit_could_tell_in_it_is_not_tried():
    why = faults.get("missing-t-squared").why_not("dkd")
    assert why == "the soft term of dkd is decoupled, and the audit that tells reads T^2 KL"
    assert faults.get("projector-unclipped").why_not("dkd") == "dkd has no projectors"


def test_what_reads_another_form_decides_nothing_of_it():
    run = audit_once("dkd", None, 0, lambda _: None)
    found = {f.name: (f.status, f.reason) for f in run.report.findings}
    assert found["kd-scale"] == found["target-form"] == ("not_triggered", "out-of-scope")
    assert found["term-provenance"][0] == "pass"
    assert run.as_declared and run.report.failed("warn") == []
