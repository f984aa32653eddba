"""Losses as people write them, watched for three steps: what the audits say of the right ones and of the wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import audits

T = 2.0


class Segmenter(nn.Module):
    """Classes by pixel (B, C, H, W)."""

    def __init__(self, width, classes=5):
        super().__init__()
        self.inner, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, classes, 1)

    def forward(self, x):
        return 3 * self.out(self.inner(x).relu())


class Tagger(nn.Module):
    """Classes by token (B, L, C), and the hidden states below them."""

    def __init__(self, width, classes=11):
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(20, width), nn.GRU(width, width, batch_first=True), None
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        hidden = self.mix(self.words(x))[0]
        return 3 * self.head(hidden), hidden


def watched(student, teacher, data, loss_of, projector=None, steps=3):
    """Train and return the watch."""
    teacher.eval().requires_grad_(False)
    parts = [student, *([projector] if projector else [])]
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.1)
    named = {"hint": projector} if projector else None
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer, projectors=named) as watch:
        for _ in range(steps):
            x, y = data()
            with torch.no_grad():
                said = teacher(x)
            optimizer.zero_grad()
            loss_of(student(x), said, y).backward()
            optimizer.step()
    assert watch.trace.broken is None
    return watch


def finding(watch, audit):
    return next(f for f in watch.report.findings if f.id == audit)


def pictures(channels=3, size=6):
    return torch.randn(4, channels, size, size), torch.randint(0, 5, (4, size, size))


def of_pixels(soft):
    torch.manual_seed(0)
    return watched(Segmenter(4), Segmenter(8), pictures, lambda z, t, y: 0.5 * F.cross_entropy(z, y) + 0.5 * soft(z, t))


def rows(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def kl(z, t, dim=1, tau=T):
    p, q = F.log_softmax(z / tau, dim), F.softmax(t / tau, dim)
    return F.kl_div(p, q, reduction="sum") * tau * tau / (z.numel() / z.shape[dim])


PIXELS = {
    "over the channels": kl,
    "as rows of pixels": lambda z, t: kl(rows(z), rows(t)),
    "by hand": lambda z, t: -(F.softmax(t / T, 1) * F.log_softmax(z / T, 1)).sum(1).mean() * T * T,
}


@pytest.mark.parametrize("way", PIXELS)
def test_a_right_term_over_pixels_is_explained_and_passes(way):
    watch = of_pixels(PIXELS[way])
    (e,) = watch.trace.losses.sights[0].explanations
    assert (e.form, e.temperature, e.rows, e.classes) == ("forward", (T, T), 4 * 36, 5)
    assert e.weight == pytest.approx(0.5, rel=1e-4) and e.label_weight == pytest.approx(0.5)
    for audit in ("KD305", "KD312", "KD313"):
        assert finding(watch, audit).status == "pass"


WRONG_PIXELS = {
    "rows that mix pixels and classes": (lambda z, t: kl(z.reshape(-1, 5), t.reshape(-1, 5)), "KD313", "mix pixels"),
    "softmax over the height": (lambda z, t: kl(z, t, 2), "KD313", "the picture's rows (dimension 2 of (4, 5, 6, 6))"),
    "by hand over the width": (
        lambda z, t: -(F.softmax(t, 3) * (z - z.logsumexp(3, keepdim=True))).sum(3).mean(),
        "KD313",
        "the picture's columns (dimension 3 of (4, 5, 6, 6))",
    ),
    "batchmean over pixels": (
        lambda z, t: F.kl_div(F.log_softmax(z / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T * T,
        "KD312",
        "rows/B",
    ),
    "T * T missing": (lambda z, t: kl(z, t) / T / T, "KD312", "1/T^2 (T * T is missing)"),
    "turned round": (lambda z, t: kl(z, t.flip(0)), "KD305", "taught by the teacher's answer to another sample"),
    "reversed": (
        lambda z, t: (F.softmax(z, 1) * (F.log_softmax(z, 1) - F.log_softmax(t, 1))).sum(1).mean(),
        "KD313",
        "KL(student || teacher)",
    ),
}


@pytest.mark.parametrize("slip", WRONG_PIXELS)
def test_a_wrong_term_over_pixels_is_named(slip):
    soft, audit, words = WRONG_PIXELS[slip]
    found = finding(of_pixels(soft), audit)
    assert found.status == "fail" and words in found.message


def sentences():
    return torch.randint(0, 20, (8, 7)), torch.randint(0, 11, (8, 7))


def of_tokens(soft, projector=None):
    torch.manual_seed(0)

    def loss(student, teacher, y):
        return 0.3 * F.cross_entropy(student[0].flatten(0, 1), y.flatten()) + 0.7 * soft(student, teacher, projector)

    return watched(Tagger(12), Tagger(16), sentences, loss, projector)


def by_hand(z, t):
    return (F.softmax(z, -1) * (F.log_softmax(z, -1) - F.log_softmax(t, -1))).sum(-1).mean()


def weight_detached(z, t):
    return (F.softmax(z, -1).detach() * (F.log_softmax(z, -1) - F.log_softmax(t, -1))).sum(-1).mean()


def test_a_reversed_kl_over_tokens_is_a_choice():
    watch = of_tokens(lambda s, t, _: by_hand(s[0], t[0]))
    assert finding(watch, "KD313").status == "pass" and finding(watch, "KD305").status == "pass"
    assert "KL(student || teacher)" in finding(watch, "KD313").message


def test_a_term_whose_gradient_cancels_is_told_from_one_without_a_weight():
    found = finding(of_tokens(lambda s, t, _: weight_detached(s[0], t[0])), "KD313")
    assert found.status == "fail" and "cancels at the student's logits" in found.message
    watch = of_tokens(lambda s, t, _: 0.0 * by_hand(s[0], t[0]))
    assert finding(watch, "KD313").status == finding(watch, "KD311").status == "not_triggered"
    assert "cancels" not in finding(watch, "KD313").message and "its weight is 0" not in finding(watch, "KD311").message


SHIFTED = {
    "forward": lambda z, t: kl(z.flatten(0, 1), t.flatten(0, 1)),
    "reversed by hand": by_hand,
    "squared distance": F.mse_loss,
}


@pytest.mark.parametrize("form", SHIFTED)
def test_answers_one_token_ahead_are_told_in_words(form):
    found = finding(of_tokens(lambda s, t, _: SHIFTED[form](s[0][:, :-1], t[0][:, 1:])), "KD305")
    assert found.status == "fail" and "the student's token i is taught by the teacher's i + 1" in found.message
    found = finding(of_tokens(lambda s, t, _: SHIFTED[form](s[0][:, :-1], t[0][:, :-1])), "KD305")
    assert found.status == "pass"


def test_a_softmax_over_the_sequence_by_hand_is_named():
    def soft(s, t, _):
        return -(F.softmax(t[0], 1) * (s[0] - s[0].logsumexp(1, keepdim=True))).sum(1).mean()

    found = finding(of_tokens(soft), "KD313")
    assert found.status == "fail" and "the sequence (dimension 1 of (8, 7, 11))" in found.message


def over_k(z, t, tail=True, of=None):
    """KL over the teacher's three likeliest classes and the rest as one."""
    v, at = t.log_softmax(-1).topk(3, -1)
    ls = z.log_softmax(-1).gather(-1, at if of is None else of.topk(3, -1).indices)
    if tail:
        v, ls = (torch.cat([x, (1 - x.exp().sum(-1, keepdim=True)).log()], -1) for x in (v, ls))
    return (v.exp() * (v - ls)).sum(-1).mean()


def test_a_term_over_the_teachers_likeliest_words_is_told_by_its_rest_and_by_whose_they_are():
    found = finding(of_tokens(lambda s, t, _: over_k(s[0], t[0])), "KD313")
    assert found.status == "pass" and "likeliest classes and the rest as one, temperature 1, k = 3" in found.message
    found = finding(of_tokens(lambda s, t, _: over_k(s[0], t[0], tail=False)), "KD313")
    assert (found.status, found.severity) == ("fail", "warn") and "leaves out the rest" in found.message
    found = finding(of_tokens(lambda s, t, _: over_k(s[0], t[0], of=s[0])), "KD313")
    assert found.status == "fail" and "the student's likeliest, not the teacher's" in found.message


def mixed(z, t, beta=0.3, of_logits=False):
    p, q = t.log_softmax(-1), z.log_softmax(-1)
    m = (beta * t + (1 - beta) * z).log_softmax(-1) if of_logits else (beta * p.exp() + (1 - beta) * q.exp()).log()
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1).mean()


def test_a_mixture_is_named_with_its_beta_and_a_wrong_one_is_named_as_such():
    found = finding(of_tokens(lambda s, t, _: mixed(s[0], t[0])), "KD313")
    assert found.status == "pass" and "Jensen-Shannon divergence, temperature 1, beta 0.3" in found.message
    found = finding(of_tokens(lambda s, t, _: mixed(s[0], t[0], of_logits=True)), "KD313")
    assert found.status == "fail" and "its mixture is one of logits" in found.message


def masked(x):
    return x[torch.arange(7) < torch.arange(1, 9)[:, None].clamp(max=6)]


FEATURES = {
    "mse": (lambda s, t, p: F.mse_loss(masked(p(s[1])), masked(t[1])), None, ""),
    "mse, turned round": (lambda s, t, p: F.mse_loss(masked(p(s[1])), masked(t[1].flip(0))), "KD305", "another order"),
    "cosine": (lambda s, t, p: 1 - F.cosine_similarity(masked(p(s[1])), masked(t[1]), dim=-1).mean(), None, ""),
    "cosine, wrong sign": (
        lambda s, t, p: F.cosine_similarity(masked(p(s[1])), masked(t[1]), dim=-1).mean(),
        "KD313",
        "wrong sign",
    ),
    "cosine over the batch": (
        lambda s, t, p: 1 - F.cosine_similarity(masked(p(s[1])), masked(t[1]), dim=0).mean(),
        "KD313",
        "over the batch",
    ),
    "cosine over the sequence": (
        lambda s, t, p: 1 - F.cosine_similarity(p(s[1]), t[1]).mean(),
        "KD313",
        "over the sequence",
    ),
    "projector after the mask": (lambda s, t, p: F.mse_loss(p(masked(s[1])), masked(t[1])), None, ""),
    "projector after the mask, turned round": (
        lambda s, t, p: F.mse_loss(p(masked(s[1])), masked(t[1].flip(0))),
        "KD305",
        "another order",
    ),
    "projector after the mask, wrong sign": (
        lambda s, t, p: F.cosine_similarity(p(masked(s[1])), masked(t[1]), dim=-1).mean(),
        "KD313",
        "wrong sign",
    ),
}


@pytest.mark.parametrize("way", FEATURES)
def test_features_meet_in_order_are_drawn_together_and_compared_feature_by_feature(way):
    soft, audit, words = FEATURES[way]
    watch = of_tokens(soft, nn.Linear(12, 16))
    failed = {f.id: f.message for f in watch.report.findings if f.status == "fail"}
    assert (not failed and not audit) or (audit in failed and words in failed[audit])


def test_a_sum_divided_by_batch_and_classes_is_named_so():
    def divided(z, t):
        return F.kl_div(F.log_softmax(z / T, 1), F.softmax(t / T, 1), reduction="sum") * T * T / z.numel()

    found = finding(of_pixels(lambda z, t: divided(rows(z), rows(t))), "KD312")
    assert found.status == "fail" and "1/C" in found.message and "a factor B" not in found.message


@pytest.mark.parametrize("said, read", [({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({}, "mean")])
def test_reductions_said_the_old_way_are_read_as_torch_reads_them(said, read):
    from kdbench.audits.observe.taint import Made
    from kdbench.audits.observe.windows import FunctionCall

    for name in ("kl_div", "cross_entropy", "binary_cross_entropy_with_logits"):
        assert FunctionCall(name, 0, (), said, [], None, Made(), None, True, None).reduction == read


def test_a_large_vocabulary_is_explained_without_a_copy(monkeypatch):
    from kdbench.audits.observe import recorder

    monkeypatch.setattr(recorder, "SMALL", 100)
    watch = of_tokens(lambda s, t, _: kl(s[0].flatten(0, 1), t[0].flatten(0, 1)))
    (e,) = watch.trace.losses.sights[0].explanations
    assert (e.form, e.temperature, e.weight) == ("forward", (T, T), pytest.approx(0.7, rel=1e-4))
    assert [finding(watch, audit).status for audit in ("KD305", "KD312", "KD313")] == ["pass"] * 3
    found = finding(of_tokens(lambda s, t, _: kl(s[0].flatten(0, 1), t[0].flip(0).flatten(0, 1))), "KD305")
    assert found.status == "fail"


class Embedder(nn.Module):
    """Classes of a row (B, C), and what they are made of."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.out = nn.Linear(6, width), nn.Linear(width, 5)

    def forward(self, x):
        hidden = self.inner(x).relu()
        return self.out(hidden), hidden


MOVED = torch.tensor([3, 0, 5, 1, 7, 2, 6, 4])


def alike(e):
    return F.normalize(e @ e.T)


def near(e):
    return F.normalize(e) @ F.normalize(e).T + 1


def apart(s, t):
    return (near(s) * (near(s) / near(t)).log()).mean()


def told_apart(s, t, order):
    """The own row's answer is drawn near, another's is kept away."""
    own, other = (F.cosine_similarity(s, x) for x in (t, t[order]))
    return F.softplus(other - own).mean()


RELATIONS = {
    "similarities": (lambda s, t: F.mse_loss(alike(s), alike(t)), False),
    "similarities, moved": (lambda s, t: F.mse_loss(alike(s), alike(t[MOVED])), True),
    "similarities, moved by index_select": (lambda s, t: F.mse_loss(alike(s), alike(t.index_select(0, MOVED))), True),
    "similarities, both moved": (lambda s, t: F.mse_loss(alike(s[MOVED]), alike(t[MOVED])), False),
    "similarities, their channels moved": (lambda s, t: F.mse_loss(alike(s), alike(t[:, MOVED])), False),
    "probabilities by hand": (apart, False),
    "probabilities by hand, moved": (lambda s, t: apart(s, t[MOVED]), True),
    "probabilities by hand, read in order": (lambda s, t: apart(s, t[torch.arange(8)]), False),
    "another sample's answer to keep away from": (lambda s, t: told_apart(s, t, MOVED), False),
    "both orders side by side": (
        lambda s, t: (alike(s)[:, None] - torch.stack([alike(t), alike(t[MOVED])], 1)).square().mean(),
        False,
    ),
}


@pytest.mark.parametrize("way", RELATIONS)
def test_relations_between_samples_whose_rows_an_index_moves_are_named(way):
    loss, moves = RELATIONS[way]
    student, teacher = Embedder(8), Embedder(8)

    def data():
        return torch.randn(8, 6), torch.randint(0, 5, (8,))

    watch = watched(student, teacher, data, lambda s, t, y: F.cross_entropy(s[0], y) + loss(s[1], t[1]))
    found = finding(watch, "KD305")
    assert (found.status == "fail") == moves, found.message
    assert not moves or "read in another order of rows" in found.message


def decoupled(s, t, y):
    """DKD as people write it: the label's class against the rest, and the rest with the label's logit far down."""
    own = F.one_hot(y, s.shape[-1]).bool()
    pair_s, pair_t = (
        torch.stack([(p * own).sum(1), (p * ~own).sum(1)], 1) for p in ((z / T).softmax(1) for z in (s, t))
    )
    rest_s, rest_t = ((z / T - 1000 * own) for z in (s, t))
    rest = F.kl_div(rest_s.log_softmax(1), rest_t.softmax(1), reduction="batchmean")
    return T**2 * (F.kl_div(pair_s.log(), pair_t, reduction="batchmean") + 8 * rest)


def standardised(s, t, y):
    s, t = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (s, t))
    return 9 * T**2 * F.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="batchmean")


def other_scale(s, t, y):
    """What the student gives is raised to a power, and normalised."""
    return 5 * F.kl_div((0.1 * s**3).log_softmax(1), (0.1 * t**3).softmax(1), reduction="batchmean")


def blended(t):
    return 0.8 * t + 0.2 * t[MOVED]


ROWS = {
    "as they come": (lambda t: t, False),
    "moved": (lambda t: t[MOVED], True),
    "moved by index_select": (lambda t: t.index_select(0, MOVED), True),
    "moved there and back": (lambda t: t[MOVED][MOVED.argsort()], False),
    "mixed with another's": (blended, False),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", [decoupled, standardised, other_scale])
def test_rows_that_an_index_moves_are_named_whatever_the_form_of_the_divergence(form, rows):
    order, moves = ROWS[rows]

    def data():
        return torch.randn(8, 6), torch.randint(0, 5, (8,))

    def loss(s, t, y):
        return F.cross_entropy(s[0], y) + form(s[0], order(t[0]), y)

    found = finding(watched(Embedder(8), Embedder(8), data, loss), "KD305")
    assert (found.status == "fail") == moves, found.message
    assert rows != "as they come" or found.status == "pass" or form is other_scale


def pearson(a, b):
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b).mean()


def correlations(p, q, along=0.7, over=0.3):
    return along * (1 - pearson(p, q)) + over * (1 - pearson(p.T, q.T))


def softened(z, by=T):
    return (z / by).softmax(1)


CORRELATED = {
    "DIST": (lambda s, t: correlations(softened(s), softened(t)), "pass", "correlations of probabilities"),
    "along the classes alone": (lambda s, t: 1 - pearson(softened(s), softened(t)), "pass", "correlations of prob"),
    "over the batch alone": (lambda s, t: correlations(softened(s), softened(t), along=0), "pass", "correlations of"),
    "of logits": (correlations, "pass", "correlations of logits"),
    "one side softened": (lambda s, t: correlations(softened(s), softened(t, 1)), "fail", "only the student's side"),
    "with logits": (lambda s, t: correlations(softened(s), t), "fail", "with the teacher's logits, not its prob"),
    "apart": (lambda s, t: -correlations(softened(s), softened(t)), "fail", "its sign is wrong"),
}


@pytest.mark.parametrize("way", CORRELATED)
def test_correlations_are_explained_and_wrong_ones_named(way):
    loss, status, said = CORRELATED[way]
    watch = correlated_watch(lambda s, t, y: F.cross_entropy(s, y) + loss(s, t))
    form = finding(watch, "KD313")
    assert form.status == status and said in form.message, form.message
    assert finding(watch, "KD305").status == "pass"


@pytest.mark.parametrize("moved", [lambda t: t.flip(0), lambda t: t.roll(1, 0), lambda t: t.roll(-1, 0)])
@pytest.mark.parametrize("form", [lambda s, t, y: correlations(softened(s), softened(t)), decoupled])
def test_rows_in_another_order_are_proven_where_a_form_has_two_parts(form, moved):
    watch = correlated_watch(lambda s, t, y: F.cross_entropy(s, y) + form(s, moved(t), y))
    found = finding(watch, "KD305")
    assert found.status == "fail" and found.observed["permutation"] == moved(torch.arange(16)[:, None])[:, 0].tolist()


def correlated_watch(loss_of):
    class Scorer(nn.Sequential):
        def __init__(self, width):
            super().__init__(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 5))

    def data():
        return 2 * torch.randn(16, 6), torch.randint(0, 5, (16,))

    return watched(Scorer(8), Scorer(9), data, loss_of)
