"""Members of the clean zoo: language models, distilled token by token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdbench.harness.zoo.clean.material import PAD, STEPS, WORDS, LanguageModel, loaded, texts
from kdbench.harness.zoo.clean.registry import Open, member

_T = 2.0
Descend = Callable[[Tensor], None]


@contextmanager
def _steps(watch: Open, student: nn.Module, teacher: nn.Module) -> Iterator[Iterator[tuple[Tensor, Tensor, Descend]]]:
    """Hand out texts, their masks, and what is done with a loss: for members that differ in it."""
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with watch(student=student, teacher=teacher, optimizer=optimizer):
        yield ((ids := texts()[0], (ids != PAD).long(), descend) for _ in range(STEPS))


def _pair() -> tuple[LanguageModel, LanguageModel]:
    return LanguageModel(), loaded("language")


def _asked(teacher: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher(ids, mask)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return T^2 KL of each row."""
    p, q = F.log_softmax(student / _T, -1), F.softmax(teacher / _T, -1)
    return F.kl_div(p, q, reduction="none").sum(-1) * _T * _T


def _labels(ids: Tensor, mask: Tensor) -> Tensor:
    return ids.masked_fill(mask == 0, -100)


def _hard(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


@member()
def tokens_chosen(watch: Open) -> nn.Module:
    """The rows that have a label are picked, and averaged."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t, labels = student(ids, mask), _asked(teacher, ids, mask), _labels(ids, mask)
            on = labels[:, 1:] != -100
            descend(0.5 * _hard(s, labels) + 0.5 * _kl(s[:, :-1][on], t[:, :-1][on]).mean())
    return student


@member()
def tokens_masked(watch: Open) -> nn.Module:
    """Each row's divergence times the mask, over the mask's sum."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t, on = student(ids, mask), _asked(teacher, ids, mask), mask[:, 1:]
            soft = (_kl(s[:, :-1], t[:, :-1]) * on).sum() / on.sum()
            descend(0.3 * _hard(s, _labels(ids, mask)) + 0.7 * soft)
    return student


@member()
def tokens_of_all_words(watch: Open) -> nn.Module:
    """All that is no padding is distilled, the last word of each text too, as DistilBERT's script does it."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t, on = student(ids, mask), _asked(teacher, ids, mask), mask.bool()
            descend(2 * _hard(s, _labels(ids, mask)) + 5 * _kl(s[on], t[on]).mean())
    return student


@member()
def tokens_of_answers(watch: Open) -> nn.Module:
    """Prompts of three words have no label, and are not distilled."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t, labels = student(ids, mask), _asked(teacher, ids, mask), _labels(ids, mask)
            labels[:, :3] = -100
            on = labels[:, 1:] != -100
            descend(0.5 * _hard(s, labels) + 0.5 * _kl(s[:, :-1][on], t[:, :-1][on]).mean())
    return student


@member()
def tokens_accumulated(watch: Open) -> nn.Module:
    """Two backwards to a step, each divided by the tokens of both."""
    student, teacher = _pair()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            batches = [ids for ids, _ in (texts(), texts(6))]
            count = sum(int((ids[:, 1:] != PAD).sum()) for ids in batches)
            optimizer.zero_grad()
            for ids in batches:
                mask = (ids != PAD).long()
                s, t, labels = student(ids, mask), _asked(teacher, ids, mask), _labels(ids, mask)
                flat = s[:, :-1].reshape(-1, WORDS)
                hard = F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum")
                soft = (_kl(s[:, :-1], t[:, :-1]) * mask[:, 1:]).sum()
                ((0.5 * hard + 0.5 * soft) / count).backward()
            optimizer.step()
    return student


@member()
def tokens_in_pieces(watch: Open) -> nn.Module:
    """The head's answers piece by piece, a backward each up to the hidden states, and one through the body."""
    student, teacher = _pair()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            ids, _ = texts()
            mask = (ids != PAD).long()
            with torch.no_grad():
                told = teacher.head(teacher.hidden(ids, mask)[:, :-1])
            hidden = student.hidden(ids, mask)[:, :-1]
            leaf, labels = hidden.detach().requires_grad_(), _labels(ids, mask)[:, 1:]
            optimizer.zero_grad()
            for at in range(0, hidden.shape[1], 5):
                piece = slice(at, at + 5)
                on = labels[:, piece] != -100
                s, t = student.head(leaf[:, piece]), told[:, piece]
                hard = F.cross_entropy(s[on], labels[:, piece][on], reduction="sum")
                ((0.5 * hard + 0.5 * _kl(s[on], t[on]).sum()) / (labels != -100).sum()).backward()
            hidden.backward(leaf.grad)
            optimizer.step()
    return student


@member()
def tokens_of_a_padded_vocabulary(watch: Open) -> nn.Module:
    """The teacher's table of words has two more, at its end."""
    student, teacher = LanguageModel(), loaded("language-padded")
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t = student(ids, mask), _asked(teacher, ids, mask)[..., :WORDS]
            on = mask[:, 1:].bool()
            descend(0.5 * _hard(s, _labels(ids, mask)) + 0.5 * _kl(s[:, :-1][on], t[:, :-1][on]).mean())
    return student


@member()
def tokens_on_policy(watch: Open) -> nn.Module:
    """The student goes on from two words, and is taught what the teacher would have said: KL(student || teacher)."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for given, _, descend in steps:
            ids = given[:, :2]
            with torch.no_grad():
                for _ in range(6):
                    drawn = torch.multinomial(student(ids)[:, -1].softmax(-1), 1)
                    ids = torch.cat([ids, drawn], 1)
                log_t = teacher(ids)[:, 1:-1].log_softmax(-1)
            log_s = student(ids)[:, 1:-1].log_softmax(-1)
            descend((log_s.exp() * (log_s - log_t)).sum(-1).mean())
    return student


@member()
def tokens_between_both(watch: Open) -> nn.Module:
    """A generalized Jensen-Shannon divergence, beta 1/2, over the rows that have a label."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            on = mask[:, 1:].bool()
            log_s = student(ids, mask)[:, :-1][on].log_softmax(-1)
            log_t = _asked(teacher, ids, mask)[:, :-1][on].log_softmax(-1)
            log_m = ((log_s.exp() + log_t.exp()) / 2).log()
            both = [F.kl_div(log_m, x, log_target=True, reduction="batchmean") for x in (log_t, log_s)]
            descend(0.5 * both[0] + 0.5 * both[1])
    return student


@member()
def tokens_of_the_likeliest(watch: Open) -> nn.Module:
    """The teacher's five likeliest words, and the rest as one."""
    student, teacher = _pair()

    def rest(log: Tensor) -> Tensor:
        return torch.cat([log, torch.log1p(-log.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))], -1)

    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t, on = student(ids, mask), _asked(teacher, ids, mask), mask[:, 1:].bool()
            log_t, at = t[:, :-1][on].log_softmax(-1).topk(5, -1)
            log_s = s[:, :-1][on].log_softmax(-1).gather(-1, at)
            soft = F.kl_div(rest(log_s), rest(log_t), log_target=True, reduction="batchmean")
            descend(0.5 * _hard(s, _labels(ids, mask)) + 0.5 * soft)
    return student


@member()
def tokens_checkpointed(watch: Open) -> nn.Module:
    """The block's activations are computed again in the backward."""
    student, teacher = _pair()
    plain = student.block.forward
    student.block.forward = lambda *given: checkpoint(plain, *given, use_reentrant=False)
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            s, t, on = student(ids, mask), _asked(teacher, ids, mask), mask[:, 1:].bool()
            descend(0.5 * _hard(s, _labels(ids, mask)) + 0.5 * _kl(s[:, :-1][on], t[:, :-1][on]).mean())
    return student


@member()
def tokens_in_half_precision(watch: Open) -> nn.Module:
    """Both networks compute in bfloat16, the losses in single precision."""
    student, teacher = _pair()
    with _steps(watch, student, teacher) as steps:
        for ids, mask, descend in steps:
            with torch.autocast("cpu", torch.bfloat16):
                s, t = student(ids, mask), _asked(teacher, ids, mask)
            s, t, on = s.float(), t.float(), mask[:, 1:].bool()
            descend(0.5 * _hard(s, _labels(ids, mask)) + 0.5 * _kl(s[:, :-1][on], t[:, :-1][on]).mean())
    return student


class _Adapted(nn.Module):
    """A linear layer that is frozen, with a trained addition of low rank that can be switched off."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.on = base.requires_grad_(False), True
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 4)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T if self.on else self.base(x)


@member()
def tokens_of_the_own_base(watch: Open) -> nn.Module:
    """The teacher is the network itself with its adapter off: it is to forget nothing while it learns another text."""
    student = loaded("language").requires_grad_(False).train()
    student.block.think[0] = adapter = _Adapted(student.block.think[0])
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            ids, _ = texts()
            mask = (ids != PAD).long()
            adapter.on = False
            t = _asked(student, ids, mask)
            adapter.on = True
            s, on = student(ids, mask), mask[:, 1:].bool()
            loss = 0.5 * _hard(s, _labels(ids.flip(0), mask.flip(0)))
            loss = loss + 0.5 * _kl(s[:, :-1][on], t[:, :-1][on]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def tokens_with_hidden_states(watch: Open) -> nn.Module:
    """The hidden states too, through a projector, where there is no padding."""
    student, teacher = _pair()
    projector = nn.Linear(16, 24)
    optimizer = torch.optim.Adam([*student.parameters(), *projector.parameters()], lr=1e-2)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=optimizer):
        for _ in range(STEPS):
            ids, _ = texts()
            mask = (ids != PAD).long()
            with torch.no_grad():
                wanted = teacher.hidden(ids, mask)
                t = teacher.head(wanted)
            hidden, on = student.hidden(ids, mask), mask.bool()
            s = student.head(hidden)
            gap = (projector(hidden) - wanted).pow(2).mean(-1)
            soft = _kl(s[:, :-1], t[:, :-1])[on[:, 1:]].mean()
            loss = 0.5 * _hard(s, _labels(ids, mask)) + 0.5 * soft + 0.1 * gap[on].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class _Translator(nn.Module):
    """Reads one text, and writes another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reader, self.writer = LanguageModel(width), LanguageModel(width)

    def forward(self, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        read = (self.reader.hidden(source, mask) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.writer.head(self.writer.hidden(target) + read[:, None])


@member()
def tokens_translated(watch: Open) -> nn.Module:
    """An encoder's padding is none of the decoder's."""
    student, teacher = _Translator(16), _Translator(24)

    def batch() -> tuple[Tensor, Tensor]:
        source = texts()[0]
        return source, (source + 3).roll(1, 1) % WORDS

    start = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(20):
        source, target = batch()
        start.zero_grad()
        _hard(teacher(source, (source != PAD).long(), target), target).backward()
        start.step()
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            source, target = batch()
            mask = (source != PAD).long()
            s = student(source, mask, target)
            with torch.no_grad():
                t = teacher(source, mask, target)
            optimizer.zero_grad()
            (0.5 * _hard(s, target) + 0.5 * _kl(s[:, :-1], t[:, :-1]).mean()).backward()
            optimizer.step()
    return student
