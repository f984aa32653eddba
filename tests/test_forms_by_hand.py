"""Terms in forms that people write by hand: each is recognised as what it is, and a wrong twin of each is named."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, mlp, rows, trained


def verdict_of(report, id):
    return next(f for f in report.findings if f.id == id)


def taught(loss, teacher, student, draw=rows, steps=STEPS):
    """Train a student by a loss of (its answer, the teacher's, labels)."""
    teacher.eval().requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(steps):
        x, y = draw()
        with torch.no_grad():
            said = teacher(x)
        step(adam, loss(student(x), said, y))
    return teacher, student


# -- one number a sample


class Ranker(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * WIDTH, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, query, text):
        return self.net(torch.cat([query, text], 1)).squeeze(1)


def margins(cut):
    """The student's margin between two texts is drawn to the teacher's, number by number."""
    teacher, student = Ranker(24), Ranker(8)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(20):
        query, text = rows()[0], rows()[0]
        step(adam, F.binary_cross_entropy_with_logits(teacher(query, text), (query[:, 0] > text[:, 0]).float()))
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        query, one, other = (rows()[0] for _ in range(3))
        with torch.no_grad():
            gold = teacher(query, one) - teacher(query, other)
        margin = student(query, one) - student(query, other)
        spare = 1e-3 * student(query, one).square().mean()
        step(adam, F.mse_loss(margin.detach() if cut else margin, gold) + spare)
    return teacher, student


@pytest.mark.parametrize("cut", [False, True])
def test_one_number_a_sample_is_compared_as_features_are(cut):
    report, _ = observed(margins, cut)
    assert cut or verdict_of(report, "KD313").reason == "out-of-scope"
    assert named_first(report) == (("KD311", "error") if cut else None)


# -- a teacher that knows fewer classes


def older(half, t=2.0, first=0):
    """A teacher of three classes teaches a student of five what it knows of them, by hand."""
    teacher, student = trained(nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 3)), few), mlp(8)

    def loss(z, said, y):
        mine = z[:, first : first + 3] if not half else z.log_softmax(1)[:, first : first + 3]
        soft = -((said / t).softmax(1) * (mine if half else (mine / t).log_softmax(1))).sum(1).mean()
        return F.cross_entropy(z, y) + 2 * soft

    return taught(loss, teacher, student)


def few():
    x, y = rows()
    return x, y % 3


@pytest.mark.parametrize("first", [0, CLASSES - 3])
def test_a_term_over_the_classes_that_the_teacher_knows_is_read(first):
    report, _ = observed(older, False, 2.0, first)
    assert verdict_of(report, "KD313").status == "pass", verdict_of(report, "KD313").message
    assert "temperature 2" in verdict_of(report, "KD313").message
    assert named_first(report) is None


def test_a_softmax_over_all_classes_that_is_cut_is_no_such_term():
    report, _ = observed(older, True)
    assert verdict_of(report, "KD313").status != "pass"


# -- scores, class by class


def scored(wrong):
    """Each output is a score of its own, for labels and for the teacher; both are taken of slices."""
    teacher, student = mlp(24), mlp(8)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(20):
        x, _ = rows()
        step(adam, F.binary_cross_entropy_with_logits(teacher(x), (x[:, :CLASSES] > 0).float()))

    def loss(z, said, y):
        there = (y[:, None] == torch.arange(3)).float()
        hard = F.binary_cross_entropy_with_logits(z[:, :3], there, pos_weight=torch.tensor(3.0))
        goal = said[:, :3] if wrong else said[:, :3].sigmoid()
        return hard + F.binary_cross_entropy_with_logits(z[:, :3], goal)

    return taught(loss, teacher, student)


@pytest.mark.parametrize("wrong", [False, True])
def test_scores_are_held_against_scores(wrong):
    report, _ = observed(scored, wrong)
    assert named_first(report) == (("KD313", "error") if wrong else None)
    if not wrong:
        assert verdict_of(report, "KD313").status == "pass" or verdict_of(report, "KD313").reason == "out-of-scope"


# -- several teachers in one network


class Together(nn.Module):
    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x):
        return torch.stack([net(x) for net in self.nets], 1)


def several(divided_by, t=2.0, alpha=0.7):
    """The mean of the divergences from three teachers; by hand it is divided by what somebody took for their number."""

    def loss(z, said, y):
        cross = -((said / t).softmax(-1) * (z / t).log_softmax(-1).unsqueeze(1)).sum(-1)
        return (1 - alpha) * F.cross_entropy(z, y) + alpha * t * t * cross.sum(1).mean() / divided_by(said)

    return taught(loss, Together(*(trained(mlp(24)) for _ in range(3))), mlp(8))


@pytest.mark.parametrize(
    ("divided_by", "found"),
    [(lambda said: said.shape[1], None), (len, "3/B"), (lambda said: 1, "3 (the sum over 3 teachers")],
)
def test_several_teachers_are_one_in_the_mean(divided_by, found):
    report, _ = observed(several, divided_by)
    assert named_first(report) == (None if found is None else ("KD312", "error"))
    assert verdict_of(report, "KD313").message == "the term is KL(teacher || student), temperature 2"
    assert (found or "") in verdict_of(report, "KD312").message


def weighed(t=2.0):
    """Each sample weighs two teachers by how well they know its label."""

    def loss(z, said, y):
        known = torch.stack([-F.cross_entropy(said[:, i], y, reduction="none") for i in range(2)], 1).softmax(1)
        soft = [F.kl_div((z / t).log_softmax(1), (said[:, i] / t).softmax(1), reduction="none").sum(1) for i in (0, 1)]
        return F.cross_entropy(z, y) + sum((known[:, i] * soft[i]).mean() for i in (0, 1)) * t * t

    return taught(loss, Together(trained(mlp(24)), trained(mlp(16))), mlp(8))


def mixed(t=3.0):
    """The teachers' logits are mixed, each with a weight of its own, before the softmax."""

    def loss(z, said, y):
        goal = (0.3 * said[:, 0] + 0.7 * said[:, 1]) / t
        soft = F.kl_div((z / t).log_softmax(1), goal.softmax(1), reduction="batchmean")
        return 0.5 * F.cross_entropy(z, y) + 0.5 * t * t * soft

    return taught(loss, Together(trained(mlp(24)), trained(mlp(16))), mlp(8))


@pytest.mark.parametrize(("loop", "said"), [(weighed, "a sum of KL"), (mixed, "KL(teacher || student), temperature 3")])
def test_several_teachers_with_weights_of_their_own_are_read(loop, said):
    report, _ = observed(loop)
    told = verdict_of(report, "KD313")
    assert told.status == "pass" and said in told.message, told.message
    assert named_first(report) is None


# -- two views of a batch, taught crosswise


def crosswise(crossed):
    """Both networks answer two views in one call; each view is taught by the answer to the other."""
    teacher, student = trained(mlp(24)), mlp(8)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    teacher.eval().requires_grad_(False)
    for _ in range(STEPS):
        x, _ = rows()
        both = torch.cat([x + 0.3 * torch.randn_like(x) for _ in range(2)])
        said, mine = (teacher(both) / 2).softmax(1).chunk(2), (student(both) / 2).log_softmax(1).chunk(2)
        pairs = [(said[0], mine[1]), (said[1], mine[0])] if crossed else [(said[0].flip(0), mine[0])]
        step(adam, sum(-(p * q).sum(1).mean() for p, q in pairs))
    return teacher, student


def test_views_that_teach_each_other_crosswise_are_read():
    report, _ = observed(crosswise, True)
    assert verdict_of(report, "KD313").status == "pass", verdict_of(report, "KD313").message
    assert named_first(report) is None


def test_half_a_batch_in_another_order_is_no_view():
    report, _ = observed(crosswise, False)
    assert verdict_of(report, "KD313").status != "pass"


# -- distributions over what is no class, labels with rows of their own, sharpened teachers


def relations(way):
    """How alike the samples of a batch are, as a distribution over the others."""

    def like(f):
        f = F.normalize(f, dim=1)
        return ((f @ f.T + 1) / 2).fill_diagonal_(0)

    def loss(z, said, y):
        p, q = (like(x) / like(x).sum(1, keepdim=True) + 1e-7 for x in (said, z))
        far = (p * (p / q).log()).mean() if way == "ratio" else -(p * q.log()).mean()
        return F.cross_entropy(z, y) + 10 * far

    return taught(loss, trained(mlp(24)), mlp(8))


@pytest.mark.parametrize("way", ["ratio", "entropy"])
def test_distributions_over_the_batch_are_compared_as_features_are(way):
    told = verdict_of(observed(relations, way)[0], "KD313")
    assert told.reason == "out-of-scope", told.message


class Hears(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gru, self.out = nn.GRU(6, width), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.out(self.gru(x)[0])


def frames(square):
    """Frames are taught one by one beside a loss over alignments of the labels."""

    def loss(z, said, y):
        ways = F.ctc_loss(z.log_softmax(-1), y, torch.full((8,), 10), torch.full((8,), 3))
        soft = F.kl_div((z / 2).log_softmax(-1), (said / 2).softmax(-1), reduction="none").sum(-1).mean()
        return ways + square * soft

    return taught(loss, Hears(16), Hears(6), lambda: (torch.randn(10, 8, 6), torch.randint(1, CLASSES, (8, 3))))


def test_frames_beside_a_loss_over_alignments_are_read():
    told = verdict_of(observed(frames, 4)[0], "KD313")
    assert told.status == "pass" and "temperature 2" in told.message, told.message


def sharpened(z, said, y):
    return F.kl_div(z.log_softmax(1), (said / 0.5).softmax(1), reduction="batchmean")


def test_a_teacher_may_be_sharpened_for_a_student_that_is_not():
    report, _ = observed(lambda: taught(sharpened, trained(mlp(24)), mlp(8)))
    assert "sharpened to temperature 0.5" in verdict_of(report, "KD313").message
    assert named_first(report) is None


# -- words


WORDS, LENGTH = 20, 9


class Reader(nn.Module):
    def __init__(self, width, words=WORDS):
        super().__init__()
        self.embed, self.gru, self.out = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True), None
        self.out = nn.Linear(width, words)

    def forward(self, ids):
        return self.out(self.gru(self.embed(ids))[0])


def lines(n=16):
    ids = (torch.randint(WORDS, (n, 1)) + 3 * torch.arange(LENGTH)) % WORDS
    return ids, (torch.arange(1, LENGTH)[None] < torch.randint(4, LENGTH + 1, (n, 1))).float()


def reads(width, words=WORDS):
    net = Reader(width, words)
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        ids, _ = lines()
        step(adam, F.cross_entropy(net(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    return net


def by_words(term, teacher=None):
    return taught(term, teacher or reads(24), Reader(12), lambda: (lambda ids, kept: (ids, (ids, kept)))(*lines()))


def likeliest(alpha, missing=0):
    """The labels' loss and the term over the teacher's likeliest words, both looked up and averaged by hand."""

    def term(z, said, y):
        ids, kept = y
        log_p = z[:, :-1].log_softmax(-1)
        own = -(log_p.gather(-1, ids[:, 1:, None]).squeeze(-1) * kept).sum() / kept.sum()
        top, places = said.log_softmax(-1).topk(4)
        soft = -(top[:, :-1].softmax(-1) * log_p.gather(-1, places[:, missing : missing + LENGTH - 1])).sum(-1)
        return (1 - alpha) * own + alpha * (soft * kept).sum() / kept.sum()

    return by_words(term)


def test_a_term_over_likeliest_words_is_read_beside_labels_by_hand():
    report, _ = observed(likeliest, 0.7)
    assert verdict_of(report, "KD313").status == "pass", verdict_of(report, "KD313").message
    assert "labels 0.3, distillation 0.7" in verdict_of(report, "KD312").message
    assert named_first(report) is None


def twice(wrong):
    def term(z, said, y):
        ids, kept = y
        z, said = z[:, :-1].reshape(-1, WORDS), said[:, :-1].reshape(-1, WORDS)
        kept = kept.flatten()
        own = F.cross_entropy(z, ids[:, 1:].flatten(), reduction="none")
        soft = F.kl_div(z.log_softmax(1), said.softmax(1), reduction="none").sum(1)
        soft = soft / kept.sum() if wrong else soft
        return 0.4 * (own * kept).sum() / kept.sum() + 0.6 * (soft * kept).sum() / kept.sum()

    return by_words(term)


@pytest.mark.parametrize("wrong", [False, True])
def test_tokens_that_are_divided_twice_are_told_beside_a_mean_by_hand(wrong):
    report, _ = observed(twice, wrong)
    assert named_first(report) == (("KD312", "error") if wrong else None)
    assert ("divided by the batch twice" if wrong else "sum to one") in verdict_of(report, "KD312").message


def sorted_words(shift):
    """Other vocabularies: sorted probabilities are compared, of the words that are no prompt."""

    def term(z, said, y):
        ids, _ = y
        labels = ids.clone()
        labels[:, :4] = -100
        own = F.cross_entropy(z[:, :-1].transpose(1, 2), labels[:, 1:])
        p, q = (x[:, :-1].softmax(-1).sort(-1, descending=True).values for x in (z, said))
        apart = (F.pad(p, (0, 5)) - q).abs().sum(-1)
        return own + apart[labels[:, 1 - shift : LENGTH - shift] != -100].mean()

    return by_words(term, reads(24, WORDS + 5))


@pytest.mark.parametrize("shift", [0, 1])
def test_a_mask_that_is_not_shifted_shows_whatever_the_form(shift):
    report, _ = observed(sorted_words, shift)
    assert named_first(report) == (("KD352", "error") if shift else None)


def sampled(detached, start=0.0):
    """The student samples words, and the teacher's log-probabilities say how much each is worth."""
    teacher, student = reads(24), Reader(12)
    teacher.requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        ids = lines()[0][:, :2]
        with torch.no_grad():
            for _ in range(LENGTH - 2):
                ids = torch.cat([ids, torch.multinomial(student(ids)[:, -1].softmax(1), 1)], 1)
            own, of_teacher = student(ids), teacher(ids)
            before, worth = (
                x[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) for x in (own, of_teacher)
            )
        log_p = student(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        gain = worth - log_p
        step(adam, -((gain.detach() if detached else gain) * (log_p - before).exp()).mean())
    return teacher, student


@pytest.mark.parametrize("detached", [True, False])
def test_a_gain_that_carries_a_gradient_is_told(detached):
    report, _ = observed(sampled, detached)
    assert named_first(report) == (None if detached else ("KD313", "warn"))


def drawn_together(z, said, y):
    """Squared and absolute differences of log-probabilities of words have gradients of either sign."""
    ids, _ = y
    mine, its = (x[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) for x in (z, said))
    return (mine - its).square().mean() + 0.1 * (its - mine).abs().mean()


def test_differences_that_are_squared_are_not():
    report, _ = observed(by_words, drawn_together)
    assert named_first(report) is None
