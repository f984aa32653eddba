"""The parts that explain a gradient, each on tensors made up for it: what it must recognise, and what it must not."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.audits.infer.explain import Explanation, explain
from kdbench.audits.infer.explain.fit import beside_each_other, fits, seen_fit
from kdbench.audits.infer.explain.forms import FORMS, MIXED, Sides, Try
from kdbench.audits.infer.explain.heads import Head, heads, teacher_answers
from kdbench.audits.infer.explain.parts import Gradients, LabelPart, gradients_at
from kdbench.audits.infer.explain.permutation import order_searched, ordered_fit, permutation_of
from kdbench.audits.infer.explain.rest import rest_of
from kdbench.audits.infer.explain.rows import MOST_ROWS, Layout, places, sizes, spread
from kdbench.audits.infer.explain.search import searched_fit
from kdbench.audits.infer.explain.softening import Answer, Softening, said_by, softening, temperature_of
from kdbench.audits.infer.explain.topk import topk_fit
from kdbench.audits.infer.labels import Label
from kdbench.audits.infer.roles import Cast, Group
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


# --- rows ---


def test_rows_are_taken_wherever_the_classes_lie():
    value = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    layout = Layout.of(value, 1)
    assert (layout.rows, layout.classes) == (40, 3)
    index = torch.tensor([0, 7, 39])
    assert torch.equal(layout.take(value, index), value.permute(0, 2, 3, 1).reshape(-1, 3)[index].double())
    assert Layout.of(value).classes == 5 and not torch.equal(
        Layout.of(value).take(value, index)[:, :3], value[0, 0, :3, :3]
    )


def test_rows_to_look_at_are_spread_evenly_and_few():
    assert spread(torch.arange(10), 5).tolist() == list(range(10))
    chosen = spread(torch.arange(1000), 5)
    assert len(chosen) == MOST_ROWS and chosen[0] == 0 and chosen[-1] == 999 and int(chosen.diff().max()) <= 17
    assert len(spread(torch.arange(1000), 2**22)) == 8  # of a vocabulary that large fewer


def test_operands_of_a_masked_loss_are_placed_in_order():
    layout = Layout((2, 3, 5), 2)
    live = torch.tensor([0, 1, 3, 4])
    by_order, cut, tail = places((4, 5), layout, live)[0], *places((2, 2, 5), layout, torch.arange(2))
    assert by_order.tolist() == [0, 1, -1, 2, 3, -1]
    assert cut.tolist() == [0, 1, -1, 2, 3, -1] and tail.tolist() == [-1, 0, 1, -1, 2, 3]
    assert places((5, 5), layout, live) == []


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_sums_of_a_gradient_say_along_which_dimension_a_softmax_was_taken(dim):
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (g,) = torch.autograd.grad(
        (z.log_softmax(dim) * torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))).sum(), z
    )
    found = sizes(Layout.of(z, 2), g)
    assert [s < 1e-5 for s in found.sums] == [d == dim for d in range(3)]
    assert found.norm == pytest.approx(float(g.norm())) and len(found.largest) == 12


# --- forms ---


LOSSES = {
    "forward": lambda z: kl(z, SAID),
    "reversed": lambda z: T * T * F.kl_div((SAID / T).log_softmax(1), (z / T).softmax(1), reduction="batchmean"),
    "probabilities": lambda z: T * T * F.kl_div((z / T).softmax(1), (SAID / T).softmax(1), reduction="batchmean"),
    "logits-as-target": lambda z: -T * T * ((z / T).log_softmax(1) * (SAID / T)).sum() / N,
    "log-target": lambda z: -T * T * ((z / T).log_softmax(1) * (SAID / T).log_softmax(1)).sum() / N,
    "log-weights": lambda z: (
        T * T * ((z / T).log_softmax(1) * ((z / T).log_softmax(1) - (SAID / T).log_softmax(1))).sum() / N
    ),
    "hard-labels": lambda z: F.cross_entropy(z, SAID.argmax(1)),
    "mse-logits": lambda z: F.mse_loss(z, SAID),
    "mse-probabilities": lambda z: F.mse_loss((z / T).softmax(1), (SAID / T).softmax(1)),
    "cosine": lambda z: (1 - F.cosine_similarity(z, SAID)).mean(),
    "sigmoids": lambda z: T * T * F.binary_cross_entropy_with_logits(z / T, (SAID / T).sigmoid()),
    "sigmoids-to-softmax": lambda z: T * T * F.binary_cross_entropy_with_logits(z / T, (SAID / T).softmax(1)),
    "standardised": lambda z: kl(standardise(z), standardise(SAID)),
}


def standardise(x):
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)


def mixture(z, beta=0.3, detached=False):
    """Both log-probabilities and the mixture's."""
    p, q = (SAID / T).softmax(1), (z / T).softmax(1)
    m = beta * p + (1 - beta) * q
    return p, q, m.detach() if detached else m


def divergence(a, b):
    return (a * (a / b).log()).sum(1).mean()


def jsd(z, beta=0.3, detached=False):
    p, q, m = mixture(z, beta, detached)
    return T * T * (beta * divergence(p, m) + (1 - beta) * divergence(q, m))


def jsd_swapped(z, beta=0.3):
    p, q, m = mixture(z, beta)
    return T * T * (beta * divergence(m, p) + (1 - beta) * divergence(m, q))


def jsd_of_logits(z, beta=0.3):
    p, q, _ = mixture(z, beta)
    m = (beta * SAID / T + (1 - beta) * z / T).softmax(1)
    return T * T * (beta * divergence(p, m) + (1 - beta) * divergence(q, m))


MIXTURES = {"jsd": jsd, "jsd-swapped": jsd_swapped, "jsd-of-logits": jsd_of_logits}


@pytest.mark.parametrize("form", [*LOSSES, *MIXTURES])
def test_a_form_in_closed_form_is_the_gradient_of_its_loss_and_no_other_form_is(form):
    true = gradient({**LOSSES, **MIXTURES}[form])
    s = Sides(Z, SAID, "logits", T, T)
    bases = {f.name: f.gradient(s) for f in FORMS} | {f.name: f.gradient(s, 0.3) for f in MIXED}
    residuals = {
        name: float((true - (true * basis).sum() / (basis * basis).sum() * basis).norm() / true.norm())
        for name, basis in bases.items()
    }
    assert torch.allclose(bases[form] / N, true)  # to the scale
    assert residuals.pop(form) < 1e-12
    assert min(residuals.values()) > 0.01


def test_the_canonical_form_of_one_side_softened_has_the_scale_of_its_loss():
    one = Try(FORMS[0], T, 1.0)
    assert one.name == "one-sided"
    assert torch.allclose(one.gradient(Z, SAID, "logits") / N, gradient(lambda z: kl(z, SAID, tt=1.0)))


def test_a_temperature_is_read_off_a_softmaxs_argument():
    assert temperature_of(Z / T, Z) == T
    assert temperature_of((Z / 2.5).float(), Z) == 2.5
    assert temperature_of(Z / T - (Z / T).amax(1, keepdim=True), Z) == T
    assert temperature_of((Z / 4.0004).float(), Z) == 4.0  # as near as it was written
    assert temperature_of(SAID, Z) is None
    assert temperature_of(-Z, Z) is None
    assert temperature_of(Z[:-1], Z) is None


def said(values=SAID, kind="logits", index=None, lead=(N,)):
    """An answer of the teacher's, by the rows of the head."""
    layout = Layout((*lead, values.shape[-1]), len(lead))
    everyone = SimpleNamespace(
        layout=layout, index=torch.arange(layout.rows) if index is None else index, live=torch.arange(layout.rows), z=Z
    )
    (found,) = said_by(everyone, Answer(kind, values.reshape(layout.shape)))
    return found


def test_pairs_of_temperatures_begin_with_what_was_seen_on_both_sides():
    assert Softening([4.0], [1.0, 4.0], []).pairs(said()) == [(4.0, 4.0), (4.0, 1.0)]
    assert Softening([4.0], [], []).pairs(said()) == [(4.0, 4.0), (4.0, 1.0), (1.0, 4.0)]
    assert Softening([2.0], [4.0], []).pairs(said(kind="probabilities")) == [(2.0, 2.0)]
    assert (7.0, 7.0) in Softening([], [], []).pairs(said())


def test_a_wider_vocabulary_is_cut_at_its_end():
    narrow = SimpleNamespace(layout=Layout((N, 20), 1), index=torch.arange(N), live=torch.arange(N), z=WIDE_Z)
    (found,) = said_by(narrow, Answer("logits", torch.cat([WIDE_SAID, WIDE_SAID[:, :2]], 1)))
    assert torch.equal(found.rows, WIDE_SAID)
    assert said_by(narrow, Answer("logits", WIDE_SAID[:, :-1])) == []
    assert said_by(narrow, Answer("logits", torch.cat([WIDE_SAID, WIDE_SAID], 1))) == []  # features, most likely


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
    labels = found.labels()
    assert labels.weight == pytest.approx(0.7) and labels.rows.tolist() == list(range(N))
    assert labels.norm == pytest.approx(0.7 * float(gradient(lambda v: F.cross_entropy(v, CLASSES), z.detach()).norm()))
    assert torch.allclose(found.kd(), 0.3 * gradient(lambda v: kl(v, SAID), z.detach()), rtol=1e-12)


def test_no_gradient_is_taken_apart_where_the_label_loss_is_unknown_or_a_hook_may_change_it():
    raw, cast, z, _ = window()
    cast.labels[0].call.name = "gather"
    found = gradients_at(raw, Head(z, z.detach(), cast.labels))
    assert not found.known
    assert torch.allclose(found.kd(), torch.autograd.grad(raw.roots[0], z, retain_graph=True)[0])
    z.register_hook(lambda grad: grad)
    assert gradients_at(raw, Head(z, z.detach(), cast.labels)) is None


# --- fit ---

SEEN = Softening([T], [T], [said()])
UNSEEN = Softening([], [], [said()])
BLANK = Explanation("nothing", 0.0, 0.0, N, C, N)


def rest(kd, labels=None, z=Z, lead=(N,)):
    labels = gradient(lambda v: F.cross_entropy(v, CLASSES), z) if labels is None else labels
    shape = (*lead, z.shape[-1])
    head = Head(z.reshape(shape).float(), z.reshape(shape), [])
    part = LabelPart(float(labels.norm()), labels.norm(dim=1).nonzero().flatten(), 1.0)
    return rest_of(head, Gradients(lambda: kd.reshape(shape), lambda: part))


def best_fit(one, softening):
    found = seen_fit(one, softening, BLANK)
    return found if found is not None and fits(one, found) else searched_fit(one, softening, BLANK) or found


def test_a_term_is_recognised_by_form_temperature_and_weight():
    one = rest(0.3 * gradient(LOSSES["forward"]))
    best = seen_fit(one, SEEN, BLANK)
    assert fits(one, best) and best.form == "forward" and best.temperature == (T, T)
    assert best.weight == pytest.approx(0.3) and best.residual < 1e-10
    assert torch.allclose(best.coefficients, torch.full((N,), 0.3 / N, dtype=torch.float64))
    best = best_fit(one, UNSEEN)  # written out by hand
    assert fits(one, best) and best.form == "forward" and best.temperature == (T, T)


@pytest.mark.parametrize("ts, tt", [(2.25, 2.25), (0.3, 0.3), (0.1, 0.04), (1.0, 4.0)])
def test_temperatures_off_the_grid_are_read_off_the_gradient(ts, tt):
    one = rest(gradient(lambda z: kl(z, SAID, ts, tt)))
    best = best_fit(one, Softening([], [], [said(index=one.index)]))  # a row may underflow
    assert fits(one, best) and best.form == ("forward" if ts == tt else "one-sided")
    assert best.temperature == (pytest.approx(ts), pytest.approx(tt)) and best.weight == pytest.approx(
        len(one.live) / N
    )


@pytest.mark.parametrize("form", MIXTURES)
@pytest.mark.parametrize("beta", [0.1, 0.35, 0.5])
def test_a_mixture_is_read_off_the_gradient(form, beta):
    one = rest(0.7 * gradient(lambda z: MIXTURES[form](z, beta)))
    for known in (SEEN, UNSEEN):
        best = best_fit(one, known)
        assert fits(one, best) and best.form == form
        assert best.beta == pytest.approx(beta, abs=2e-3) and best.weight == pytest.approx(0.7, rel=1e-2)


def test_a_mixture_that_is_detached_has_the_same_gradient():
    assert torch.allclose(gradient(jsd), gradient(lambda z: jsd(z, detached=True)))


def test_rows_with_weights_of_their_own_are_recognised_and_their_weights_kept():
    weights = torch.linspace(0.5, 2, N, dtype=torch.float64)[:, None]
    wide = torch.cat([Z, logits(3)], 1), torch.cat([SAID, logits(4)], 1)
    kd = weights * gradient(lambda z: kl(z, wide[1]), wide[0])
    one = rest(kd, torch.zeros_like(kd), wide[0])
    best = seen_fit(one, Softening([T], [T], [said(wide[1])]), BLANK)
    assert fits(one, best) and best.form == "forward" and best.uneven
    assert torch.allclose(best.coefficients, weights.flatten() / N) and best.coefficient_rows.tolist() == list(range(N))
    best = seen_fit(rest(weights * gradient(LOSSES["forward"])), SEEN, BLANK)
    assert best.uneven and best.form == "forward"


@pytest.mark.parametrize("form", ["forward", "reversed", "mse-logits"])
def test_a_term_of_the_wrong_sign_is_told_from_the_right_one(form):
    best = seen_fit(rest(-0.3 * gradient(LOSSES[form])), SEEN, BLANK)
    assert best.form == "negative" and best.negated == form


def test_noise_is_no_form():
    one = rest(logits(7))
    best = seen_fit(one, SEEN, BLANK)
    assert not fits(one, best) and best.residual > 0.1
    zero_sum = logits(7) - logits(7).mean(1, keepdim=True)
    one = rest(zero_sum)
    assert not fits(one, best_fit(one, UNSEEN)) and topk_fit(one, SEEN, BLANK) is None
    assert beside_each_other(one, SEEN, BLANK) is None


def test_several_terms_added_are_told_apart():
    one = rest(0.5 * gradient(LOSSES["forward"]) + 0.2 * gradient(LOSSES["mse-logits"]))
    found = beside_each_other(one, SEEN, BLANK)
    assert found.form == "sum" and found.parts == ["forward", "mse-logits"]
    one = rest(0.5 * gradient(LOSSES["forward"]) - 0.2 * gradient(LOSSES["mse-logits"]))
    assert beside_each_other(one, SEEN, BLANK) is None  # a term that is taken away is none


def test_rounding_is_no_term():
    labels = gradient(lambda v: F.cross_entropy(v, CLASSES))
    assert rest(1e-7 * labels, labels).is_nothing
    assert not rest(1e-3 * labels, labels).is_nothing


def test_rows_without_a_gradient_are_left_out_of_the_mean():
    kd = gradient(lambda z: kl(z[:8], SAID[:8]))
    one = rest(kd)
    index = torch.arange(8)
    best = seen_fit(one, Softening([T], [T], [said(index=index)]), BLANK)
    assert fits(one, best) and best.partial and best.rows == 8 and best.weight == pytest.approx(1.0)
    assert not rest(gradient(LOSSES["forward"])).partial


def test_a_term_is_fitted_beside_labels_whose_part_is_unknown():
    labels = gradient(lambda v: F.cross_entropy(v, CLASSES))
    label = Label(function("cross_entropy", 0, (), ()), STUDENT, Z, CLASSES, 0.0, True)

    def beside(whole):
        return rest_of(Head(Z.float(), Z, [label]), Gradients(lambda: whole, lambda: None, known=False))

    one = beside(0.7 * labels + 0.3 * gradient(LOSSES["forward"]))
    best = seen_fit(one, SEEN, BLANK)
    assert fits(one, best) and not one.is_nothing
    assert (best.form, best.weight, best.label_weight) == ("forward", pytest.approx(0.3), pytest.approx(0.7))
    assert beside(0.7 * labels).is_nothing
    one = beside(0.7 * labels + 0.3 * gradient(lambda z: kl(z, SAID, tt=1.0)))
    assert seen_fit(one, UNSEEN, BLANK).form == "one-sided"


# --- the teacher's k likeliest ---

K = 3
WIDE_Z, WIDE_SAID = (
    3 * torch.randn(N, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (5, 6)
)


def over_k(z, way, of=WIDE_SAID, also_of=None):
    at, its = of.topk(K, 1).indices, (of if also_of is None else also_of).topk(K, 1).indices
    ls, lt = ((x / T).log_softmax(1).gather(1, i) for x, i in ((z, at), (WIDE_SAID, its)))
    if way == "topk":
        ls, lt = ls.log_softmax(1), lt.log_softmax(1)
    elif way == "topk-scatter":
        lt = lt.log_softmax(1)
    elif way == "topk-tail":
        ls, lt = (torch.cat([x, (1 - x.exp().sum(1, keepdim=True)).log()], 1) for x in (ls, lt))
    return T * T * (lt.exp() * (lt - ls)).sum(1).mean()


@pytest.mark.parametrize("way", ["topk", "topk-tail", "topk-scatter", "topk-sum"])
def test_a_term_over_the_teachers_likeliest_classes_is_told_by_what_becomes_of_the_rest(way):
    def found(loss):
        kd = 0.4 * gradient(loss, WIDE_Z)
        return topk_fit(rest(kd, torch.zeros_like(kd), WIDE_Z), Softening([T], [T], [said(WIDE_SAID)]), BLANK)

    e = found(lambda z: over_k(z, way))
    assert (e.form, e.kept, e.weight) == (way, K, pytest.approx(0.4)) and 0 < e.mass < 1
    assert found(lambda z: over_k(z, way, WIDE_Z)).form == "topk-of-student"
    assert found(lambda z: over_k(z, way, WIDE_Z, WIDE_SAID)).form == "topk-of-student"
    assert found(lambda z: kl(z, WIDE_SAID)) is None


# --- permutation ---


def test_rows_that_another_row_teaches_are_matched():
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    for loss in (lambda z: kl(z, SAID[order]), lambda z: F.mse_loss(z, SAID[order])):
        assert permutation_of(rest(gradient(loss)), SEEN) == (list(range(N)), order.tolist())


def test_no_permutation_is_read_off_rows_in_order_noise_or_one_answer_for_all():
    assert permutation_of(rest(gradient(LOSSES["forward"])), SEEN) is None
    assert permutation_of(rest(logits(7)), SEEN) is None
    alike = SAID[:1].expand(N, C).clone()
    assert permutation_of(rest(gradient(lambda z: kl(z, alike))), Softening([T], [T], [said(alike)])) is None


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("form", ["forward", "reversed", "jsd"])
def test_a_sequence_whose_answers_are_one_position_off(by, form):
    lead = (2, N // 2)
    answers = SAID.reshape(*lead, C).roll(-by, 1).reshape(N, C)
    kd = gradient(lambda z: {**LOSSES, **MIXTURES}[form](z), Z)
    ends = torch.arange(N) % (N // 2) == (N // 2 - 1 if by == 1 else 0)
    kd = kd.masked_fill(ends[:, None], 0)  # the last token has no next one
    # The loss above is of SAID, and the teacher is said to have answered with its rows moved the other way.
    shifted = Softening([T], [T], [said(SAID.reshape(*lead, C).roll(by, 1).reshape(N, C), lead=lead)])
    one = rest(kd, torch.zeros_like(kd), lead=lead)
    index = one.index
    shifted = shifted.of([said(SAID.reshape(*lead, C).roll(by, 1).reshape(N, C), index=index, lead=lead)])
    found = ordered_fit(one, shifted, BLANK) if form != "jsd" else order_searched(one, shifted, BLANK)
    assert found.form == "permuted" and found.shift == by
    assert [found.permutation[i] - i for i in one.live.tolist()] == [by] * len(one.live)
    assert answers.shape == (N, C) and ordered_fit(rest(logits(7), lead=lead), shifted, BLANK) is None


@pytest.mark.parametrize("form", ["forward", "reversed", "mse-logits"])
def test_a_batch_that_is_turned_round_is_told_whatever_the_form(form):
    one = rest(gradient(LOSSES[form]))
    found = ordered_fit(one, Softening([T], [T], [said(SAID.flip(0))]), BLANK)
    assert found.form == "permuted" and found.permutation == list(reversed(range(N))) and found.shift is None
    assert ordered_fit(one, SEEN, BLANK) is None


# --- all of it ---


@pytest.mark.parametrize("other", [False, True])
def test_a_window_is_explained(other):
    raw, cast, z, _ = window(other=other)
    (found,) = explain(raw, cast)
    assert (found.form, found.temperature, found.weight) == ("forward", (T, T), pytest.approx(0.3))
    assert found.label_weight == pytest.approx(0.7) and found.residual < 1e-6 and found.labels is CLASSES
    head = Head(z, z.detach(), cast.labels)
    one = rest_of(head, gradients_at(raw, head))
    assert softening(raw, cast, STUDENT, one, teacher_answers(raw, cast, STUDENT)).student == [T]


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
