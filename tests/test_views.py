"""Answers that were stored of other views of the samples; masks that leave nothing out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_which_training import named_first, observed, step
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, mlp

SIZE = 64


class Drawn(Dataset):
    """Samples with noise that is drawn anew, if it is any, each time."""

    def __init__(self, noise):
        self.noise, self.x = noise, torch.randn(SIZE, WIDTH)

    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        return i, self.x[i] + self.noise * torch.randn(WIDTH)


def trained():
    teacher = mlp(32)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(30):
        x = torch.randn(64, WIDTH)
        step(optimizer, F.cross_entropy(teacher(x), x[:, :CLASSES].argmax(1)))
    return teacher.eval().requires_grad_(False)


def soft(student, teacher):
    return 4 * F.kl_div(F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1), reduction="batchmean")


@pytest.mark.parametrize("way", ["stored once, views anew", "stored, one view", "stored, the loop adds noise", "live"])
def test_answers_that_were_stored_once_belong_to_the_views_they_were_given_to(way):
    def loop():
        teacher, student = trained(), mlp(8)
        loader = DataLoader(Drawn(0.3 * (way in ("live", "stored once, views anew"))), 16, shuffle=True)
        stored = torch.zeros(SIZE, CLASSES)
        with torch.no_grad():
            for ids, x in loader:
                stored[ids] = teacher(x)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(2):
            for ids, x in loader:
                said = teacher(x) if way == "live" else stored[ids]
                shown = x + 0.1 * torch.randn_like(x) if "noise" in way else x
                step(optimizer, soft(student(shown), said))

    report, _ = observed(loop)
    assert named_first(report) == (("KD304", "warn") if way == "stored once, views anew" else None)


@pytest.mark.parametrize("of", ["labels", "teacher", "student"])
def test_a_mask_is_made_of_the_labels(of):
    def loop():
        body = [nn.Conv2d(3, CLASSES, 1) for _ in range(2)]
        teacher, student = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), body[0]), nn.Sequential(body[1])
        optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
        for network in (teacher, student):
            if network is student:
                teacher.eval().requires_grad_(False)
                optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
            for _ in range(8):
                x = torch.randn(4, 3, 6, 6)
                y = x.mean(1).gt(0).long().masked_fill(torch.rand(4, 6, 6) < 0.2, 255)
                loss = F.cross_entropy(network(x), y, ignore_index=255)
                if network is student:
                    answer, said = student(x), teacher(x)
                    target = F.softmax(said, 1)
                    mask = {"labels": y.unsqueeze(1).expand_as(target), "teacher": target, "student": answer}[of] != 255
                    kd = F.kl_div(F.log_softmax(answer, 1), target, reduction="none") * mask
                    loss = 0.5 * loss + 0.5 * kd.sum() / mask.sum() * CLASSES
                step(optimizer, loss)

    report, _ = observed(loop)
    verdict = next(f for f in report.findings if f.id == "KD352")
    assert (verdict.status == "fail") == (of != "labels")
    assert of == "labels" or f"the {of}'s answer with 255" in verdict.message


@pytest.mark.parametrize("masked", [False, True])
def test_frames_beyond_their_length_are_not_distilled(masked):
    def network(width):
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 6))

    def loop():
        teacher, student = network(16), network(8)
        for one in (teacher, student):
            optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
            for _ in range(6):
                x, lengths = torch.randn(8, 12, 4), torch.randint(6, 13, (8,))
                answer = one(x)
                log_p = answer.log_softmax(-1)
                loss = F.ctc_loss(log_p.transpose(0, 1), torch.randint(1, 6, (8, 2)), lengths, torch.full((8,), 2))
                if one is student:
                    with torch.no_grad():
                        said = teacher(x).softmax(-1)
                    kl = F.kl_div(log_p, said, reduction="none").sum(-1)
                    inside = torch.arange(12)[None] < lengths[:, None]
                    loss = loss + (kl[inside].mean() if masked else kl.mean())
                step(optimizer, loss)
            one.requires_grad_(one is student)

    report, _ = observed(loop)
    verdict = next(f for f in report.findings if f.id == "KD352")
    assert (verdict.status == "fail") == (not masked)
    assert masked or "beyond the lengths that ctc_loss is given" in verdict.message


class Strided(nn.Module):
    """Answers one frame for four, and is told how many frames there are."""

    def __init__(self, width):
        super().__init__()
        self.front, self.out = nn.Conv1d(4, width, 4, 4), nn.Linear(width, 6)

    def forward(self, x, lengths):
        return self.out(self.front(x.transpose(1, 2)).tanh().transpose(1, 2)), lengths // 4


@pytest.mark.parametrize("of", ["answers", "frames"])
def test_frames_are_masked_by_the_lengths_of_what_is_answered(of):
    def loop():
        teacher, student = Strided(16).eval().requires_grad_(False), Strided(8)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        for _ in range(6):
            x, lengths = torch.randn(8, 40, 4), torch.randint(8, 41, (8,))
            x = x * (torch.arange(40)[None] < lengths[:, None])[..., None]
            with torch.no_grad():
                said = teacher(x, lengths)[0].softmax(-1)
            answer, own = student(x, lengths)
            kl = F.kl_div(answer.log_softmax(-1), said, reduction="none").sum(-1)
            inside = torch.arange(10)[None] < (own if of == "answers" else lengths)[:, None]
            step(optimizer, kl[inside].mean())
        return teacher, student

    report, _ = observed(loop)
    verdict = next(f for f in report.findings if f.id == "KD352")
    assert (verdict.status == "fail") == (of == "frames")
    assert of == "answers" or "beyond the lengths that the student is given" in verdict.message


class Reads(nn.Module):
    """A classifier of texts that tells its layers, and nobody else, which words are padding."""

    def __init__(self, width):
        super().__init__()
        self.words = nn.Embedding(12, width)
        layer = nn.TransformerEncoderLayer(width, 2, width, 0.0, batch_first=True)
        self.body, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(width, 3)

    def forward(self, ids):
        hidden = self.body(self.words(ids), src_key_padding_mask=ids == 0)
        return hidden, self.out(hidden.mean(1))


@pytest.mark.parametrize("masked", [False, True])
def test_padding_that_inner_layers_are_told_of_is_padding(masked):
    def loop():
        teacher, student = Reads(8), Reads(8)
        optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
        for one in (teacher, student):
            optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
            for _ in range(6):
                ids = torch.randint(1, 12, (8, 9))
                ids = ids.masked_fill(torch.arange(9)[None] >= torch.randint(4, 10, (8, 1)), 0)
                hidden, answer = one(ids)
                loss = F.cross_entropy(answer, ids[:, 0] % 3)
                if one is student:
                    with torch.no_grad():
                        told, _ = teacher(ids)
                    far = 1 - F.cosine_similarity(hidden, told, dim=-1)
                    loss = loss + (far[ids != 0].mean() if masked else far.mean())
                step(optimizer, loss)
            one.requires_grad_(one is student)

    report, _ = observed(loop)
    assert named_first(report) == (None if masked else ("KD352", "warn"))


@pytest.mark.parametrize("absolute", [False, True])
def test_margins_keep_their_sign(absolute):
    def scores():
        return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))

    def loop():
        teacher, student = scores(), scores()
        optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
        for _ in range(6):
            a, b = torch.randn(2, 16, WIDTH)
            better = (a.sum(1) > b.sum(1)).float()
            step(optimizer, F.binary_cross_entropy_with_logits(teacher(a) - teacher(b), better))
        teacher.requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        for _ in range(6):
            a, b = torch.randn(2, 16, WIDTH)
            mine, its = student(a) - student(b), teacher(a) - teacher(b)
            step(optimizer, F.mse_loss(mine.abs(), its.abs()) if absolute else F.mse_loss(mine, its))

    report, _ = observed(loop)
    assert named_first(report) == (("KD313", "error") if absolute else None)


# -- two views of one batch


def without_labels(way):
    """A student learns an averaged teacher's answer to another view of the batch; or, wrongly, to the same view."""
    student = mlp(16)
    average = copy.deepcopy(student).requires_grad_(False)
    predictor = nn.Linear(CLASSES, CLASSES)
    optimizer = torch.optim.Adam([*student.parameters(), *predictor.parameters()], 1e-3)
    for _ in range(10):
        x = torch.randn(32, WIDTH)
        one, two = x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)
        p1, p2 = predictor(student(one)), predictor(student(two))
        with torch.no_grad():
            z1, z2 = average(one), average(two)
        pairs = {"crossed": ((p1, z2), (p2, z1)), "same": ((p1, z1), (p2, z2)), "all": ((p1, z1), (p1, z2))}[way]
        step(optimizer, sum(2 - 2 * F.cosine_similarity(p, z, dim=1).mean() for p, z in pairs))
        with torch.no_grad():
            for mine, its in zip(average.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 0.02)
    return student, average, predictor


@pytest.mark.parametrize("way", ["crossed", "same", "all"])
def test_a_view_is_taught_by_another_view(way):
    report, _ = observed(without_labels, way)
    assert named_first(report) == (("KD304", "warn") if way == "same" else None)


def test_a_frozen_teacher_teaches_each_view_by_itself():
    def loop():
        teacher, student = trained(), mlp(8)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(10):
            x = torch.randn(32, WIDTH)
            views = [x + 0.1 * torch.randn_like(x) for _ in range(2)]
            step(optimizer, sum(soft(student(view), teacher(view)) for view in views))

    report, _ = observed(loop)
    assert named_first(report) is None


# -- what is told of a text beside its words


class Pairs(nn.Module):
    """Classes of two texts in a row; which is which may be told by segments."""

    def __init__(self, width):
        super().__init__()
        self.words, self.segments = nn.Embedding(20, width), nn.Embedding(2, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids, segments=None, labels=None):
        told = torch.zeros_like(ids) if segments is None else segments
        logits = self.head((self.words(ids) * self.segments(told)).mean(1))
        return logits if labels is None else F.cross_entropy(logits, labels)


TEXTS = torch.randint(0, 20, (48, 8), generator=torch.Generator().manual_seed(5))
SEGMENTS = (torch.arange(8) > 3).long().expand(48, 8).contiguous()


@pytest.mark.parametrize("way", ["segments", "none", "none to either", "own loss", "other texts"])
def test_a_teacher_is_told_what_it_was_told_when_it_learned(way):
    def loop():
        teacher, student = Pairs(16), Pairs(6)
        optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
        y = TEXTS[:, 0] % CLASSES
        told = None if way == "none to either" else SEGMENTS
        for _ in range(12):
            loss = teacher(TEXTS, told, y) if way == "own loss" else F.cross_entropy(teacher(TEXTS, told), y)
            step(optimizer, loss)
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        texts = (TEXTS + 1) % 20 if way == "other texts" else TEXTS
        for _ in range(10):
            step(optimizer, soft(student(texts), teacher(texts, SEGMENTS if way == "segments" else None)))

    report, _ = observed(loop)
    assert named_first(report) == (("KD304", "warn") if way == "none" else None)


@pytest.mark.parametrize("learned", [20, 40, None])
def test_words_that_a_teacher_never_learned_are_padding_of_its_table(learned):
    """Its table is twice as long as the student's: padded, of another vocabulary, or nobody saw which."""

    def loop():
        teacher, student = Pairs(16), Pairs(6)
        teacher.words = nn.Embedding(40, 16)
        texts = torch.randint(0, learned or 40, (64, 8), generator=torch.Generator().manual_seed(6))
        optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(12 if learned else 0):
            step(optimizer, F.cross_entropy(teacher(texts), texts[:, 0] % CLASSES))
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(6):
            step(optimizer, soft(student(TEXTS), teacher(TEXTS)))

    report, _ = observed(loop)
    warned = next(f for f in report.findings if f.id == "KD304").status == "fail"
    assert warned is (learned != 20)
