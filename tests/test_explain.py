"""The parts that explain a gradient, each on tensors made up for it: what it must recognise, and what it must not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.audits.infer.explain import Explanation, explain
from kdbench.audits.infer.explain.fit import Rest, best_fit, shifted_fit
from kdbench.audits.infer.explain.forms import Answer, Softening, gradients_of_forms, softening, temperature_of
from kdbench.audits.infer.explain.heads import Gradients, Head, gradients_at, heads, teacher_answers
from kdbench.audits.infer.explain.permutation import permutation_of
from kdbench.audits.infer.roles import Cast, Group, Label
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import FunctionCall, ModuleCall, RawWindow

N, C, T = 12, 5, 4.0
STUDENT, TEACHER = 1, 2
"Masks of who made what."


def logits(seed, scale=3.0):
    return scale * torch.randn(N, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z, SAID = logits(0), logits(1)
CLASSES = torch.arange(N) % C


def kl(z, t, ts=T, tt=T):
    return F.kl_div(F.log_softmax(z / ts, 1), F.softmax(t / tt, 1), reduction="batchmean") * ts * ts


def gradient(loss, z=Z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


# --- forms ---


LOSSES = {
    "forward": lambda z: kl(z, SAID),
    "reversed": lambda z: T * T * F.kl_div((SAID / T).log_softmax(1), (z / T).softmax(1), reduction="batchmean"),
    "probabilities": lambda z: T * T * F.kl_div((z / T).softmax(1), (SAID / T).softmax(1), reduction="batchmean"),
    "logits-as-target": lambda z: -T * T * ((z / T).log_softmax(1) * (SAID / T)).sum() / N,
    "log-target": lambda z: -T * T * ((z / T).log_softmax(1) * (SAID / T).log_softmax(1)).sum() / N,
    "hard-labels": lambda z: F.cross_entropy(z, SAID.argmax(1)),
    "mse-logits": lambda z: F.mse_loss(z, SAID),
    "mse-probabilities": lambda z: T * T * F.mse_loss((z / T).softmax(1), (SAID / T).softmax(1)) / T / T,
}


@pytest.mark.parametrize("form", LOSSES)
def test_a_form_in_closed_form_is_the_gradient_of_its_loss_and_no_other_form_is(form):
    true = gradient(LOSSES[form])

    def residual(basis):
        return float((true - (true * basis).sum() / (basis * basis).sum() * basis).norm() / true.norm())

    residuals = {}
    for name, basis in gradients_of_forms(Z, SAID, "logits", T, T, N):
        residuals[name] = min(residual(basis), residuals.get(name, 1.0))
    assert residuals.pop(form) < 1e-12
    assert min(residuals.values()) > 0.01


def test_the_canonical_form_has_the_scale_of_its_loss():
    name, basis = gradients_of_forms(Z, SAID, "logits", T, T, N)[0]
    assert name == "forward" and torch.allclose(basis, gradient(LOSSES["forward"]))
    name, basis = gradients_of_forms(Z, SAID, "logits", T, 1.0, N)[0]
    assert name == "one-sided" and torch.allclose(basis, gradient(lambda z: kl(z, SAID, tt=1.0)))


def test_a_temperature_is_read_off_a_softmaxs_argument():
    assert temperature_of(Z / T, Z) == T
    assert temperature_of((Z / 2.5).float(), Z) == 2.5
    assert temperature_of(Z / T - (Z / T).amax(1, keepdim=True), Z) == T
    assert temperature_of((Z / 4.0004).float(), Z) == 4.0  # as near as it was written
    assert temperature_of(SAID, Z) is None
    assert temperature_of(-Z, Z) is None
    assert temperature_of(Z[:-1], Z) is None


def test_pairs_of_temperatures_begin_with_what_was_seen_on_both_sides():
    assert Softening([4.0], [1.0, 4.0], []).pairs("logits") == [(4.0, 4.0), (4.0, 1.0)]
    assert Softening([4.0], [], []).pairs("logits") == [(4.0, 4.0), (4.0, 1.0), (1.0, 4.0)]
    assert Softening([2.0], [4.0], []).pairs("probabilities") == [(2.0, 2.0)]
    assert (7.0, 7.0) in Softening([], [], []).pairs("logits")


# --- heads ---


def called(index, answer, made, parent=None, module=None):
    call = ModuleCall(module or nn.Identity(), index, parent, Made(), True, True, [], out=Made(made, 1 << index))
    call.answer, call.value = answer, answer.detach().clone()
    return call


def function(name, index, args, made, out=None, **kwargs):
    operands = [(t, Made(m), tuple(t.shape)) for t, m in zip(args, made, strict=True)]
    return FunctionCall(name, index, args, kwargs, operands, out, Made(), None, True, None)


def window(weight=0.7, kd_weight=0.3, other=False):
    """A student of one hidden layer that labels and a teacher teach, and the roles in it."""
    body, top = nn.Linear(3, 8).double(), nn.Linear(8, C).double()
    hidden = body(torch.randn(N, 3, dtype=torch.float64))
    z = top(hidden)
    used = z + 0 if other else z  # the same values, beside what the module returned
    ce = F.cross_entropy(used, CLASSES)
    softened, target = used / T, SAID / T
    loss = weight * ce + kd_weight * kl(used, SAID)
    raw = RawWindow(0)
    raw.calls = [called(0, hidden, STUDENT), called(1, z, STUDENT), called(2, SAID, TEACHER)]
    raw.functions = [
        function("cross_entropy", 3, (used, CLASSES), (STUDENT, 0), ce),
        function("log_softmax", 4, (softened,), (STUDENT,)),
        function("softmax", 5, (target,), (TEACHER,)),
    ]
    raw.roots, raw.root = [loss], Made(STUDENT | TEACHER, 0b111111)
    label = Label(raw.functions[0], STUDENT, used, CLASSES, 0.0, True)
    cast = Cast([Group(STUDENT, None)], [Group(TEACHER, None, [raw.calls[2]])], labels=[label])
    return raw, cast, z, hidden


def test_the_head_is_the_logits_that_labels_were_held_against_and_not_what_lies_below():
    raw, cast, z, hidden = window()
    answers = teacher_answers(raw, cast, STUDENT)
    assert [a.kind for a in answers] == ["logits", "argument"] and torch.equal(answers[0].values, SAID)
    (head,) = heads(raw, cast, STUDENT, answers)
    assert head.z is z and head.labels == cast.labels
    (head,) = heads(raw, Cast(cast.students, cast.teachers), STUDENT, answers)
    assert head.z is z and head.labels == [] and hidden.shape[1] != C


def test_a_copy_beside_the_loss_is_not_the_head():
    raw, cast, z, _ = window()
    copy = z.detach().clone().requires_grad_()
    raw.calls[1].answer = copy
    (head,) = heads(raw, cast, STUDENT, teacher_answers(raw, cast, STUDENT))
    assert head.z is z and head.labels == cast.labels  # by the label's own operand: the copy gets no gradient from it


def test_the_labels_part_of_a_gradient_is_taken_apart():
    raw, cast, z, _ = window()
    found = gradients_at(raw, Head(z, z.detach(), cast.labels))
    assert found.label_weight == pytest.approx(0.7)
    assert torch.allclose(found.of_labels, 0.7 * gradient(lambda v: F.cross_entropy(v, CLASSES), z.detach()))
    assert torch.allclose(found.whole - found.of_labels, 0.3 * gradient(lambda v: kl(v, SAID), z.detach()))


def test_no_gradient_is_taken_apart_where_the_label_loss_is_unknown_or_a_hook_may_change_it():
    raw, cast, z, _ = window()
    cast.labels[0].call.name = "binary_cross_entropy"
    found = gradients_at(raw, Head(z, z.detach(), cast.labels))
    assert found.of_labels is None and found.label_weight is None
    z.register_hook(lambda grad: grad)
    assert gradients_at(raw, Head(z, z.detach(), cast.labels)) is None


# --- fit ---


SEEN = Softening([T], [T], [Answer("logits", SAID)])
BLANK = Explanation("nothing", 0.0, 0.0, N, C, N)


def rest(kd, labels=None, z=Z):
    labels = gradient(lambda v: F.cross_entropy(v, CLASSES), z) if labels is None else labels
    return Rest(z, Gradients(kd + labels, labels, 1.0), [], torch.float32)


def test_a_term_is_recognised_by_form_temperature_and_weight():
    one = rest(0.3 * gradient(LOSSES["forward"]))
    best = best_fit(one, SEEN, BLANK)
    assert one.fits(best) and best.form == "forward" and best.temperature == (T, T)
    assert best.weight == pytest.approx(0.3) and best.residual < 1e-10
    best = best_fit(one, Softening([], [], SEEN.answers), BLANK)  # written out by hand
    assert one.fits(best) and best.form == "forward" and best.temperature == (T, T)


def test_a_term_of_the_wrong_sign_is_told_from_the_right_one():
    assert best_fit(rest(-0.3 * gradient(LOSSES["forward"])), SEEN, BLANK).form == "negative"


def test_noise_is_no_form():
    one = rest(logits(7))
    best = best_fit(one, SEEN, BLANK)
    assert not one.fits(best) and best.residual > 0.1


def test_a_term_at_a_temperature_that_nobody_saw_or_uses_is_not_recognised():
    one = rest(gradient(lambda z: kl(z, SAID, 2.25, 2.25)))
    assert not one.fits(best_fit(one, SEEN, BLANK))


def test_rounding_is_no_term():
    labels = gradient(lambda v: F.cross_entropy(v, CLASSES))
    assert rest(1e-7 * labels, labels).is_nothing
    assert not rest(1e-3 * labels, labels).is_nothing


def test_rows_without_a_gradient_are_left_out_of_the_mean():
    kd = gradient(lambda z: kl(z[:8], SAID[:8]))
    one = rest(kd)
    best = best_fit(one, SEEN, BLANK)
    assert one.fits(best) and best.partial and best.rows == 8 and best.weight == pytest.approx(1.0)
    assert not rest(gradient(LOSSES["forward"])).partial


def test_a_term_is_fitted_beside_labels_whose_part_is_unknown():
    labels = gradient(lambda v: F.cross_entropy(v, CLASSES))
    columns = [labels, (Z.softmax(1) - 1 / C) / N]

    def beside(whole):
        return Rest(Z, Gradients(whole, None, None), columns, torch.float32)

    one = beside(0.7 * labels + 0.3 * gradient(LOSSES["forward"]))
    best = best_fit(one, SEEN, BLANK)
    assert one.fits(best) and not one.is_nothing
    assert (best.form, best.weight, best.label_weight) == ("forward", pytest.approx(0.3), pytest.approx(0.7))
    assert beside(0.7 * labels).is_nothing


@pytest.mark.parametrize("by", [1, -1])
def test_a_sequence_whose_answers_are_one_position_off(by):
    shape = (2, N // 2, C)
    answers = SAID.reshape(shape).roll(by, 1).reshape(N, C)
    one = rest(gradient(lambda z: kl(z, answers)))
    found = shifted_fit(one, SEEN, BLANK, shape)
    assert found.form == "permuted" and found.permutation == [i - by for i in range(N)]
    assert shifted_fit(rest(logits(7)), SEEN, BLANK, shape) is None


# --- permutation ---


def test_rows_that_another_row_teaches_are_matched():
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    assert permutation_of(gradient(lambda z: kl(z, SAID[order])), Z, SEEN) == order.tolist()
    assert permutation_of(gradient(lambda z: F.mse_loss(z, SAID[order])), Z, SEEN) == order.tolist()


def test_no_permutation_is_read_off_rows_in_order_noise_or_one_answer_for_all():
    assert permutation_of(gradient(LOSSES["forward"]), Z, SEEN) is None
    assert permutation_of(logits(7), Z, SEEN) is None
    alike = SAID[:1].expand(N, C).clone()
    assert permutation_of(gradient(lambda z: kl(z, alike)), Z, Softening([T], [T], [Answer("logits", alike)])) is None


# --- all of it ---


@pytest.mark.parametrize("other", [False, True])
def test_a_window_is_explained(other):
    raw, cast, z, _ = window(other=other)
    (found,) = explain(raw, cast)
    assert (found.form, found.temperature, found.weight) == ("forward", (T, T), pytest.approx(0.3))
    assert found.label_weight == pytest.approx(0.7) and found.residual < 1e-6 and found.labels is CLASSES
    assert softening(raw, cast, STUDENT, z, teacher_answers(raw, cast, STUDENT)).student == [T]


def test_a_window_of_which_nothing_teaches_is_not_explained():
    raw, cast, _, _ = window()
    raw.functions, calls, raw.calls = raw.functions[:1], raw.calls, raw.calls[:2]
    assert explain(raw, Cast(cast.students, labels=cast.labels)) == []
    raw.calls = calls
    assert explain(raw, cast) != []
    raw.roots = [torch.zeros(2, requires_grad=True)]
    assert explain(raw, cast) == []


def test_a_window_without_a_distillation_term_says_so():
    raw, cast, _, _ = window(kd_weight=0.0)
    assert [e.form for e in explain(raw, cast)] == ["nothing"]
