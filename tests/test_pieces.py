"""Losses over a sequence in pieces: a head is asked about some hidden states at a time, by call or by its weights."""

import functools

import pytest
import torch
import torch.nn.functional as F
from test_forms_by_hand import verdict_of
from test_which_training import named_first, observed, step
from torch import nn
from torch.utils.checkpoint import checkpoint

WORDS, LENGTH, T = 24, 16, 2.0
FOLLOWING = torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(3)).mul(2).softmax(1)


def texts(n=8):
    ids = [torch.randint(0, WORDS, (n, 1))]
    for _ in range(LENGTH):
        ids.append(torch.multinomial(FOLLOWING[ids[-1][:, 0]], 1))
    return torch.cat(ids, 1)


class Words(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS, bias=False)

    def states(self, ids):
        return self.rnn(self.embed(ids))[0]

    def forward(self, ids):
        return self.head(self.states(ids))


HEADS = {
    "call": lambda net, h: net.head(h),
    "linear": lambda net, h: F.linear(h, net.head.weight),
    "product": lambda net, h: h @ net.head.weight.T,
}


def divergence(form, mine, its, t=T):
    p, q = (its / t).log_softmax(-1), (mine / T).log_softmax(-1)
    if form == "forward":
        return F.kl_div(q, p, log_target=True, reduction="sum") * T * T
    mixed = ((p.exp() + q.exp()) / 2).log()
    return sum(F.kl_div(mixed, side, log_target=True, reduction="sum") for side in (p, q)) / 2


@functools.cache
def learned():
    """Return the weights of a teacher; one training serves all cases."""
    torch.manual_seed(7)
    teacher = Words(24)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(25):
        ids = texts()
        step(adam, F.cross_entropy(teacher(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    return teacher.state_dict()


@pytest.fixture(autouse=True)
def _learned_before():
    learned()


def in_pieces(form="forward", head="call", slip="", kept=True, reentrant=None):
    """Distil four pieces of each text at a time, with one backward; each piece may be a checkpoint."""
    teacher, student = Words(24).requires_grad_(False), Words(12)
    teacher.load_state_dict(learned())
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(6):
        ids = texts()[:, :-1]
        its = teacher(ids)
        its = its.roll(-1, 1) if slip == "ahead" else its

        def piece(states, said):
            return divergence(form, HEADS[head](student, states), said, 1.0 if slip == "one side" else T)

        pieces = zip(student.states(ids).chunk(4, 1), its.chunk(4, 1), strict=True)
        terms = [piece(*p) if kept else checkpoint(piece, *p, use_reentrant=bool(reentrant)) for p in pieces]
        step(adam, sum(terms) / ids.numel())
    return teacher, student


WAYS = [
    *(("forward", head, kept) for head in HEADS for kept in (True, False)),
    ("jsd", "call", False),
    ("jsd", "linear", True),
]


@pytest.mark.parametrize(("form", "head", "kept"), WAYS)
def test_a_right_loss_in_pieces_is_read_over_all_of_them(form, head, kept):
    report, trace = observed(in_pieces, form, head, "", kept)
    assert named_first(report) is None
    assert [verdict_of(report, id).status for id in ("KD305", "KD313")] == ["pass", "pass"]
    assert (trace.roles["student"], trace.roles["projectors"]) == (["Words (student)"], [])
    read = [e for s in trace.losses.sights for e in s.explanations]
    weight = 0.25 if form == "forward" else 0.0625
    assert all(e.weight == pytest.approx(weight, rel=1e-2) for e in read), "a quarter of the mean is this piece's"


@pytest.mark.parametrize(("form", "head", "kept"), WAYS)
def test_pieces_of_which_one_side_is_a_word_ahead_are_told_so(form, head, kept):
    report, _ = observed(in_pieces, form, head, "ahead", kept)
    assert named_first(report) == ("KD305", "error")
    assert "taught by the teacher's i + 1" in verdict_of(report, "KD305").message


@pytest.mark.parametrize(("form", "head", "kept"), WAYS)
def test_pieces_of_which_one_side_alone_is_softened_are_told_so(form, head, kept):
    report, _ = observed(in_pieces, form, head, "one side", kept)
    assert named_first(report) == ("KD313", "error")
    assert "temperature 2 for the student, 1 for the teacher" in verdict_of(report, "KD313").message


def test_a_checkpoint_that_hides_the_gradient_breaks_nothing_and_is_named():
    report, _ = observed(in_pieces, "forward", "call", "", False, True)
    assert named_first(report) is None and not [f for f in report.findings if f.status == "error"]
    form = verdict_of(report, "KD313")
    assert form.reason == "form-not-recognised" and "use_reentrant=False shows it" in form.message
