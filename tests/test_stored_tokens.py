"""Answers of a language model's teacher that were stored, all words or the likeliest; seen as a foreign script."""

import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import SEED
from test_tokens import hard

from kdbench.harness.zoo.clean.material import PAD, WORDS, LanguageModel, loaded, texts
from kdbench.harness.zoo.clean.run import observe

K, STEPS = 6, 5


@functools.cache
def store():
    """Return batches of texts, and what a teacher that nobody saw said of them, as if read from a file."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = [texts()[0] for _ in range(STEPS + 1)]
        longest = max(ids.shape[1] for ids in drawn)
        batches = [F.pad(ids, (0, longest - ids.shape[1])) for ids in drawn]
        teacher = loaded("language")
        with torch.no_grad():
            return batches, [teacher(ids, (ids != PAD).long()).log_softmax(-1).tolist() for ids in batches]


@pytest.fixture(autouse=True)
def _stored_before():
    store()


def stored(soft, *, take=0, ahead=0, label=hard):
    """A training on answers that were stored before: those to the texts `take` batches further on, and `ahead` places
    further on."""

    def loop(watch):
        batches, said = store()
        student = LanguageModel()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        with watch(student=student, optimizer=optimizer):
            for i in range(STEPS):
                ids, mask = batches[i], (batches[i] != PAD).long()
                labels, on = ids.masked_fill(mask == 0, -100), mask[:, 1:].bool()
                t = torch.tensor(said[i + take])
                t = t[:, 1:] if ahead else t[:, :-1]
                logits = student(ids, mask)
                logp = logits.log_softmax(-1)[:, :-1][on]
                optimizer.zero_grad()
                (0.5 * label(logits, labels) + 0.5 * soft(logp, t[on])).backward()
                optimizer.step()
        return student

    return loop


def likeliest(term):
    """Return a term over the words that the stored answer finds likeliest."""

    def soft(logp, t):
        values, at = t.topk(K, -1)
        return term(logp.gather(-1, at), values)

    return soft


def scattered(logp, t):
    values, at = t.topk(K, -1)
    return F.kl_div(logp, torch.zeros_like(logp).scatter(-1, at, values.softmax(-1)), reduction="batchmean")


def renormalised(s, t):
    return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")


def ragged(fill):
    """Answers that hold as many words a row as it takes; the rest of a row names word 0, with a number to fill it."""

    def soft(logp, t):
        values, at = t.topk(K, -1)
        there = torch.arange(K) < 2 + torch.arange(len(t))[:, None] % (K - 2)
        values, at = values.masked_fill(~there, fill), at.masked_fill(~there, 0)
        told = values - values.logsumexp(-1, keepdim=True)
        finite = torch.isfinite(told)
        apart = torch.where(finite, told, 0.0) - logp.gather(-1, at)
        return (told.exp() * apart * finite).sum(-1).mean()

    return soft


def by_hand(logp, t):
    return (t.exp() * (t - logp)).sum(-1).mean()


def picked(logits, labels):
    """The labels' loss as many write it, without cross_entropy."""
    y = labels[:, 1:].flatten()
    logp = logits[:, :-1].flatten(0, 1).log_softmax(-1)
    return -logp[y >= 0].gather(1, y[y >= 0][:, None]).mean()


def one_hot_by_hand(logits, labels):
    y = labels[:, 1:].flatten()
    logp, y = logits[:, :-1].flatten(0, 1).log_softmax(-1)[y >= 0], y[y >= 0]
    return -(logp * (y[:, None] == torch.arange(WORDS)).float()).sum(-1).mean()


RIGHT = {
    "the likeliest, renormalised": stored(likeliest(renormalised)),
    "the likeliest, as they are": stored(likeliest(lambda s, t: -(t.exp() * s).sum(-1).mean())),
    "the likeliest, as they are, by kl_div": stored(
        likeliest(lambda s, t: F.kl_div(s, t, log_target=True, reduction="batchmean"))
    ),
    "the likeliest, scattered": stored(scattered),
    "as many as it takes": stored(ragged(float("-inf"))),
    "all, by hand": stored(by_hand),
    "all, in half precision": stored(lambda s, t: by_hand(s, t.half().float())),
    "all": stored(lambda s, t: F.kl_div(s, t, log_target=True, reduction="batchmean")),
    "labels that are picked": stored(by_hand, label=picked),
    "labels multiplied": stored(by_hand, label=one_hot_by_hand),
}
WRONG = {
    "logarithms as weights": (
        stored(likeliest(lambda s, t: -(t * s).sum(-1).mean())),
        "KD313",
        "log_target is not set",
    ),
    "filled with what is a probability": (stored(ragged(0.0)), "KD313", "rows of the stored answers name class 0"),
    "one place ahead": (stored(likeliest(renormalised), ahead=1), "KD305", "taught by the stored answer to i + 1"),
    "all of one place ahead": (stored(by_hand, ahead=1), "KD305", "taught by the stored answer to i + 1"),
    "other texts": (stored(likeliest(renormalised), take=1), "KD305", "the stored answers are those to other texts"),
    "all of other texts": (stored(by_hand, take=1), "KD305", "the stored answers are those to other texts"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_way_passes(name):
    seen = observe(RIGHT[name], SEED, "foreign")
    assert seen.trace.broken is None
    assert [(f.id, f.message) for f in seen.report.failed("warn")] == []
    passed = {f.id for f in seen.report.findings if f.status == "pass"}
    assert {"KD305", "KD311", "KD313", "KD351", "KD352"} <= passed


@pytest.mark.parametrize("name", WRONG)
def test_a_slip_is_named_first(name):
    loop, audit, words = WRONG[name]
    seen = observe(loop, SEED, "foreign")
    assert seen.trace.broken is None
    found = seen.report.failed("warn")[0]
    assert found.id == audit and words in found.message, (found.id, found.message)


def test_weights_of_single_tokens_are_no_stored_answers():
    """As a policy gradient has them: the last dimension of its log-probabilities and advantages is the tokens."""

    def loop(watch):
        student = LanguageModel()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        before = [(torch.rand(8, 4) - 4, torch.rand(8, 4) / 8) for _ in range(STEPS)]
        with watch(student=student, optimizer=optimizer):
            for earlier, advantage in before:
                ids = texts()[0][:, :5]
                logp = student(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
                optimizer.zero_grad()
                (-(logp - earlier).exp() * advantage - logp * advantage).sum(-1).mean().backward()
                optimizer.step()
        return student

    assert observe(loop, SEED, "foreign").trace.losses.sights == []
