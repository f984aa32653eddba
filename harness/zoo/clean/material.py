"""What members of the clean zoo are made of: data, networks, teachers, and the plainest of loops."""

import functools
import io
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import audits
from kdbench.harness.zoo.clean.registry import Open

CLASSES, WIDTH, STEPS, T = 5, 12, 12, 4.0
_drawn = torch.Generator().manual_seed(7)
CENTRES = 2 * torch.randn(CLASSES, WIDTH, generator=_drawn)
PATTERNS = 2 * torch.randn(CLASSES, 3, 4, 4, generator=_drawn).repeat_interleave(2, 2).repeat_interleave(2, 3)


def rows(n: int = 32) -> tuple[Tensor, Tensor]:
    """Draw rows (n, WIDTH) about the centres of their classes, and the classes (n,)."""
    y = torch.randint(0, CLASSES, (n,))
    return CENTRES[y] + torch.randn(n, WIDTH), y


def images(n: int = 16) -> tuple[Tensor, Tensor]:
    """Draw images (n, 3, 8, 8) about the patterns of their classes, and the classes (n,)."""
    y = torch.randint(0, CLASSES, (n,))
    return PATTERNS[y] + torch.randn(n, 3, 8, 8), y


def tokens(n: int = 16) -> tuple[Tensor, Tensor]:
    """Draw sequences (n, 6) of 20 words, four of them typical of each class, and the classes (n,)."""
    y = torch.randint(0, CLASSES, (n,))
    typical = 4 * y[:, None] + torch.randint(0, 4, (n, 6))
    return torch.where(torch.rand(n, 6) < 0.7, typical, torch.randint(0, 20, (n, 6))), y


def mlp(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES))


def normed(width: int = 16, dropout: float = 0.1) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, CLASSES)
    )


class ConvNet(nn.Module):
    """Two convolutions and a linear head."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Encoder(nn.Module):
    """A transformer over words, read at their mean."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(20, width)
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(x)).mean(1))


WORDS, PAD, LONGEST = 40, 0, 14
FOLLOWING = torch.randint(1, WORDS, (WORDS, 3), generator=_drawn)
"Words that may follow each."


def texts(n: int = 8) -> tuple[Tensor, Tensor]:
    """Draw texts (n, L) of different lengths, padded to the longest, and which word follows each, -100 for none."""
    lengths = torch.randint(5, LONGEST + 1, (n, 1))
    words = [torch.randint(1, WORDS, (n,))]
    for choice in torch.randint(0, 3, (int(lengths.max()), n)):
        words.append(FOLLOWING[words[-1], choice])
    whole, places = torch.stack(words, 1), torch.arange(int(lengths.max()))
    ids = whole[:, :-1].masked_fill(places >= lengths, PAD)
    return ids, whole[:, 1:].masked_fill(places >= lengths - 1, -100)


class Block(nn.Module):
    """Attention to what was said before, and a layer of thought."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.tell = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = self.ask(self.before(h)).chunk(3, -1)
        h = h + self.tell(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None))
        return h + self.think(self.after(h))


class LanguageModel(nn.Module):
    """Says which word follows each; `mask` (B, L) is 0 where the text is padding."""

    def __init__(self, width: int = 16, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(2 * LONGEST, width)
        self.block, self.head = Block(width), nn.Linear(width, words)

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        if mask is None:
            return self.block(h)
        seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril() & mask[:, None].bool()
        return self.block(h, seen)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, mask))


def trained(net: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]] = rows, steps: int = 12) -> nn.Module:
    """Train a network on its labels, and hand it back in evaluation mode."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    net.train()
    for _ in range(steps):
        x, y = draw()
        optimizer.zero_grad()
        F.cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    return net.eval()


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "mlp": (lambda: mlp(24), rows),
    "normed": (lambda: normed(24), rows),
    "convnet": (lambda: ConvNet(10), images),
    "encoder": (lambda: Encoder(16, 2), tokens),
    "language": (lambda: LanguageModel(24), texts),
    "language-padded": (lambda: LanguageModel(24, WORDS + 2), texts),
}


@functools.cache
def checkpoint(kind: str) -> bytes:
    """Train a teacher once, and return its checkpoint."""
    make, draw = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        file = io.BytesIO()
        torch.save(trained(make(), draw, 30).state_dict(), file)
    return file.getvalue()


def loaded(kind: str) -> Any:
    """Return a teacher that holds its checkpoint, in evaluation mode."""
    net = KINDS[kind][0]()
    net.load_state_dict(torch.load(io.BytesIO(checkpoint(kind))))
    return net.eval()


def kl(student: Tensor, teacher: Tensor, t: float = T) -> Tensor:
    return F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t


def distil(
    watch: Open,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: Callable[[], tuple[Tensor, Tensor]] = rows,
    **declared: Any,
) -> nn.Module:
    """Train a student in the plainest of loops: for members that differ in what they hand it."""
    kd = audits.KD(temperature=T, alpha=0.7)
    with watch(student=student, teacher=teacher, optimizer=optimizer, kd=kd, **declared):
        student.train()
        for _ in range(STEPS):
            x, y = draw()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.3 * F.cross_entropy(logits, y) + 0.7 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student
