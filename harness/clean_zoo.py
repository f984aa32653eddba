"""The clean zoo: small correct trainings in many styles, under none of which an audit may raise an alarm.

A member is a training of a dozen steps. It opens ``watch(student=..., teacher=..., optimizer=...)`` round its loop:
that is :func:`audits.watch` where its roles are declared, and nothing at all where it is seen as a foreign script.
"""

import copy
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, prune
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.data import DataLoader, Dataset, TensorDataset

import audits
from audits.checks.all import run
from audits.finding import Report
from audits.script import Options, ScriptWatch
from audits.trace import Trace

Open = Callable[..., AbstractContextManager[Any]]
How = Literal["foreign", "declared", "unwatched"]


@dataclass(frozen=True)
class Member:
    """A correct training; `loop` returns what it trained."""

    name: str
    loop: Callable[[Open], nn.Module]
    waived: Mapping[str, str] = field(default_factory=dict)
    "Reason by id: what an audit rightly says of it, and the user would waive."


@dataclass(frozen=True)
class Seen:
    """What an observation of a member came to."""

    report: Report | None
    trace: Trace | None
    weights: list[Tensor]


MEMBERS: dict[str, Member] = {}


def member(**options: Any) -> Callable[[Callable[[Open], nn.Module]], Callable[[Open], nn.Module]]:
    """Enter a training into the zoo, under its function's name."""

    def enter(loop: Callable[[Open], nn.Module]) -> Callable[[Open], nn.Module]:
        MEMBERS[loop.__name__] = Member(loop.__name__, loop, **options)
        return loop

    return enter


def observe(loop: Callable[[Open], nn.Module], seed: int, how: How) -> Seen:
    """Run a training from a seed, and say what was seen of it and what weights it ended with."""
    for kind in KINDS:
        checkpoint(kind)  # trained before anything is watched
    torch.manual_seed(seed)
    if how == "foreign":
        script = ScriptWatch(Options(steps=0), lambda _: None)

        @contextmanager
        def until_the_end(**_: Any) -> Iterator[None]:
            yield
            script.conclude(whole=True)  # while all that a script leaves behind is alive

        with script:
            net = loop(until_the_end)
        return Seen(run(script.trace), script.trace, weights_of(net))
    if how == "unwatched":
        return Seen(None, None, weights_of(loop(lambda **_: nullcontext())))
    watches: list[audits.Watch] = []

    def declared(**roles: Any) -> audits.Watch:
        watches.append(audits.watch(**roles))
        return watches[-1]

    net = loop(declared)
    (watch,) = watches
    return Seen(watch.report, watch.trace, weights_of(net))


def weights_of(net: nn.Module) -> list[Tensor]:
    """Return copies of all tensors of a network."""
    return [value.detach().clone() for value in net.state_dict().values()]


# --- data, networks, teachers ---

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


def trained(net: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]] = rows, steps: int = 12) -> nn.Module:
    """Train a network on its labels, and hand it back in evaluation mode."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    net.train()
    for _ in range(steps):
        x, y = draw()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "mlp": (lambda: mlp(24), rows),
    "normed": (lambda: normed(24), rows),
    "convnet": (lambda: ConvNet(10), images),
    "encoder": (lambda: Encoder(16, 2), tokens),
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


# --- optimizers ---


@member()
def plain_sgd(watch: Open) -> nn.Module:
    student = mlp()
    weights = torch.load(io.BytesIO(checkpoint("mlp")))
    return distil(watch, student, loaded("mlp"), torch.optim.SGD(student.parameters(), 0.1), teacher_weights=weights)


@member()
def nesterov(watch: Open) -> nn.Module:
    student = normed()
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return distil(watch, student, trained(normed(24)), optimizer)


@member()
def adamw(watch: Open) -> nn.Module:
    student = normed()
    decayed = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}]
    return distil(watch, student, loaded("normed"), torch.optim.AdamW(groups, lr=3e-3))


@member()
def fused_adamw(watch: Open) -> nn.Module:
    student = mlp()
    return distil(watch, student, loaded("mlp"), torch.optim.AdamW(student.parameters(), 3e-3, fused=True))


@member()
def foreach_sgd(watch: Open) -> nn.Module:
    student = ConvNet()
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, foreach=True)
    return distil(watch, student, loaded("convnet"), optimizer, images)


@member()
def lbfgs(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.LBFGS(student.parameters(), lr=0.5, max_iter=4, history_size=5)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)

            def closure(x: Tensor = x, y: Tensor = y, answer: Tensor = answer) -> Tensor:
                optimizer.zero_grad()
                logits = student(x)
                loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
                loss.backward()
                return loss

            optimizer.step(closure)
    return student


@member()
def two_optimizers(watch: Open) -> nn.Module:
    teacher, student, projector = loaded("convnet"), ConvNet(), nn.Conv2d(12, 20, 1)
    main = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    side = torch.optim.Adam(projector.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=[main, side]):
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                hint = teacher.features(x)
            hidden = student.features(x)
            loss = F.cross_entropy(student.head(hidden), y) + F.mse_loss(projector(hidden), hint)
            main.zero_grad()
            side.zero_grad()
            loss.backward()
            main.step()
            side.step()
    return student


class Lookahead:
    """Somebody's wrapper that is no Optimizer: slow weights follow the fast ones every few steps."""

    def __init__(self, inner: torch.optim.Optimizer, every: int = 4, rate: float = 0.5) -> None:
        self.inner, self.every, self.rate, self.count = inner, every, rate, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        self.inner.step()
        self.count += 1
        if self.count % self.every == 0:
            fast = [p for group in self.inner.param_groups for p in group["params"]]
            for slow, p in zip(self.slow, fast, strict=True):
                slow.add_(p.detach() - slow, alpha=self.rate)
                p.data.copy_(slow)


@member()
def lookahead(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    inner = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    optimizer = Lookahead(inner)
    with watch(student=student, teacher=teacher, optimizer=inner):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.1 * F.cross_entropy(logits, y) + 0.9 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def sharpness_aware(watch: Open) -> nn.Module:
    """Two backwards to a step: uphill, then down from there."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            (0.5 * F.cross_entropy(z := student(x), y) + 0.5 * kl(z, answer)).backward()
            norm = torch.cat([p.grad.flatten() for p in student.parameters()]).norm()
            climbs = [0.05 * p.grad / (norm + 1e-12) for p in student.parameters()]
            with torch.no_grad():
                for p, climb in zip(student.parameters(), climbs, strict=True):
                    p.add_(climb)
            optimizer.zero_grad()
            (0.5 * F.cross_entropy(z := student(x), y) + 0.5 * kl(z, answer)).backward()
            with torch.no_grad():
                for p, climb in zip(student.parameters(), climbs, strict=True):
                    p.sub_(climb)
            optimizer.step()
            optimizer.zero_grad()
    return student


# --- gradients: clipped, accumulated, scaled, touched by hand ---


@member()
def clipped_globally(watch: Open) -> nn.Module:
    teacher, student, projector = loaded("convnet"), ConvNet(), nn.Conv2d(12, 20, 1)
    everything = [*student.parameters(), *projector.parameters()]
    optimizer = torch.optim.SGD(everything, lr=0.05, momentum=0.9)
    clip = audits.Clip(0.5)
    with watch(student=student, teacher=teacher, projectors={"hint": projector}, optimizer=optimizer, clip=clip):
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                hint = teacher.features(x)
                answer = teacher.head(hint)
            hidden = student.features(x)
            logits = student.head(hidden)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer) + F.mse_loss(projector(hidden), hint)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(everything, 0.5)
            optimizer.step()
    return student


@member()
def clipped_by_group(watch: Open) -> nn.Module:
    teacher, student = loaded("convnet"), ConvNet()
    groups = [{"params": list(student.features.parameters())}, {"params": list(student.head.parameters()), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    clip = audits.Clip(0.3, scope="per_group")
    with watch(student=student, teacher=teacher, optimizer=optimizer, clip=clip):
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                clip_grad_norm_(group["params"], 0.3)
            optimizer.step()
    return student


@member()
def clipped_by_hand(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            (F.cross_entropy(logits, y) + kl(logits, answer)).backward()
            norm = sum(p.grad.pow(2).sum() for p in student.parameters()) ** 0.5
            for p in student.parameters():
                p.grad.mul_((0.5 / (norm + 1e-6)).clamp(max=1.0))
            optimizer.step()
    return student


def _each_by_hand(watch: Open, needs: Callable[[Tensor], bool]) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            (F.cross_entropy(logits, y) + kl(logits, answer)).backward()
            for p in student.parameters():
                if needs(p.grad):
                    p.grad.div_(2 * p.grad.norm())
            optimizer.step()
    return student


@member(waived={"KD204": "each gradient is bounded on its own, as is meant"})
def clipped_each_by_hand(watch: Open) -> nn.Module:
    return _each_by_hand(watch, lambda grad: bool(grad.norm() > 0.5))


@member()
def normalised_gradients(watch: Open) -> nn.Module:
    return _each_by_hand(watch, lambda grad: True)


@member()
def normalised_weight_gradients(watch: Open) -> nn.Module:
    return _each_by_hand(watch, lambda grad: grad.ndim > 1)


@member()
def accumulation(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed(dropout=0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for batch in range(4 * STEPS):
            x, y = rows(16)
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            (loss / 4).backward()
            if (batch + 1) % 4 == 0:
                clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return student


@member()
def zeroed_not_dropped(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            optimizer.zero_grad(set_to_none=False)
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.4 * F.cross_entropy(logits, y) + 0.6 * kl(logits, answer)
            loss.backward()
            clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    return student


def _scaled(watch: Open, dtype: torch.dtype, scale: float) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with watch(student=student, teacher=teacher, optimizer=optimizer, clip=audits.Clip(1.0)):
        for _ in range(STEPS):
            x, y = rows()
            with torch.autocast("cpu", dtype=dtype):
                with torch.no_grad():
                    answer = teacher(x)
                logits = student(x)
                loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(student.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    return student


@member()
def scaler_float16(watch: Open) -> nn.Module:
    return _scaled(watch, torch.float16, 2.0**10)


@member()
def scaler_float16_in_search_of_its_scale(watch: Open) -> nn.Module:
    return _scaled(watch, torch.float16, 2.0**18)


@member()
def scaler_bfloat16(watch: Open) -> nn.Module:
    return _scaled(watch, torch.bfloat16, 2.0**16)


@member()
def autocast_without_scaler(watch: Open) -> nn.Module:
    teacher, student = loaded("convnet"), ConvNet()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = images()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = student(x)
                with torch.no_grad():
                    answer = teacher(x)
            loss = 0.5 * F.cross_entropy(logits.float(), y) + 0.5 * kl(logits.float(), answer.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def gradient_hooks_of_the_user(watch: Open) -> nn.Module:
    student = mlp()
    for p in student.parameters():
        p.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
    student[2].register_full_backward_hook(lambda module, grad_in, grad_out: None)
    student[2].weight.register_post_accumulate_grad_hook(lambda p: None)
    return distil(watch, student, loaded("mlp"), torch.optim.SGD(student.parameters(), 0.1, momentum=0.9))


@member()
def gradient_noise(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            (0.2 * F.cross_entropy(logits, y) + 0.8 * kl(logits, answer)).backward()
            for p in student.parameters():
                p.grad += 0.01 / (1 + step) * torch.randn_like(p)
            optimizer.step()
    return student


@member()
def gradient_centralisation(watch: Open) -> nn.Module:
    """Only matrices are centred: vectors have no mean over inputs."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            (0.2 * F.cross_entropy(logits, y) + 0.8 * kl(logits, answer)).backward()
            for p in student.parameters():
                if p.ndim > 1:
                    p.grad.data.add_(-p.grad.data.mean(dim=1, keepdim=True))
            optimizer.step()
    return student


@member()
def weight_decay_by_hand(watch: Open) -> nn.Module:
    """Added to the gradients after the clip, for all but the vectors, as in old code."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            (0.2 * F.cross_entropy(logits, y) + 0.8 * kl(logits, answer)).backward()
            clip_grad_norm_(student.parameters(), 5.0)
            for p in student.parameters():
                if p.ndim > 1:
                    p.grad.add_(p.detach(), alpha=5e-4)
            optimizer.step()
    return student


@member()
def decoupled_decay_by_hand(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            optimizer.zero_grad()
            (0.2 * F.cross_entropy(logits, y) + 0.8 * kl(logits, answer)).backward()
            optimizer.step()
            with torch.no_grad():
                for p in student.parameters():
                    p.mul_(1 - 1e-4)
    return student


# --- students ---


@member()
def frozen_layers(watch: Open) -> nn.Module:
    student = trained(mlp())
    student[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    return distil(watch, student, loaded("mlp"), optimizer)


@member()
def frozen_layers_in_the_optimizer(watch: Open) -> nn.Module:
    student = trained(mlp())
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for p in student[0].parameters():
        p.requires_grad = False
    return distil(watch, student, loaded("mlp"), optimizer)


@member()
def frozen_batch_norm(watch: Open) -> nn.Module:
    """A pretrained student whose batch norms keep their statistics while the rest trains."""
    teacher, student = loaded("convnet"), trained(ConvNet(), images)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        student.train()
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class TwoBranches(nn.Module):
    """Of two hidden layers one is dead: its gradients are zero, and it never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.dead = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 4)
        nn.init.constant_(self.dead.bias, -100.0)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.alive(x).relu(), self.dead(x).relu()], 1))


@member()
def dead_units(watch: Open) -> nn.Module:
    student = TwoBranches()
    return distil(watch, student, loaded("mlp"), torch.optim.SGD(student.parameters(), 0.1, momentum=0.9))


@member()
def compiled_student_eager(watch: Open) -> nn.Module:
    student = normed()
    compiled = torch.compile(student, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9)
    return distil(watch, compiled, loaded("normed"), optimizer)


@member()
def compiled_student_aot(watch: Open) -> nn.Module:
    student = mlp()
    compiled = torch.compile(student, backend="aot_eager")
    return distil(watch, compiled, loaded("mlp"), torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9))


class Residual(nn.Module):
    """In-place arithmetic right behind modules, and a module that hands out what it stores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        out = self.second(self.act(self.first(x)))
        out += x
        out *= 0.9
        out = F.relu_(out)
        return self.head(out).clamp_(-50, 50)


@member()
def in_place_arithmetic(watch: Open) -> nn.Module:
    """With features of both taken by hooks of the user's."""
    teacher, student, projector = trained(Residual(24)), Residual(16), nn.Linear(16, 24)
    kept: dict[str, Tensor] = {}
    teacher.second.register_forward_hook(lambda module, args, out: kept.__setitem__("teacher", out.clone()))
    student.second.register_forward_hook(lambda module, args, out: kept.__setitem__("student", out.clone()))
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            loss += 0.1 * F.mse_loss(projector(kept["student"]), kept["teacher"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Swish(torch.autograd.Function):
    """x * sigmoid(x), with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * s * (1 + x * (1 - s))


class SwishNet(nn.Module):
    """A network with a custom function in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Swish.apply(self.first(x)))


@member()
def custom_function_in_the_network(watch: Open) -> nn.Module:
    teacher, student = trained(SwishNet(24)), SwishNet(12)
    return distil(watch, student, teacher, torch.optim.Adam(student.parameters(), lr=1e-2))


class SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy against the teacher's softened answer, with its own backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, answer: Tensor) -> Tensor:
        target = (answer / T).softmax(1)
        ctx.save_for_backward(logits, target)
        return -(target * (logits / T).log_softmax(1)).sum(1).mean() * T * T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        return grad * T * ((logits / T).softmax(1) - target) / len(logits), None


@member()
def custom_function_in_the_loss(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * SoftCrossEntropy.apply(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Recomputed(nn.Module):
    """A network whose first block is computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.block = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x.requires_grad_() if self.reentrant else x  # the reentrant kind wants an input with a gradient
            return self.head(recompute(self.block, x, use_reentrant=self.reentrant))
        return self.head(self.block(x))


@member()
def checkpointing_reentrant(watch: Open) -> nn.Module:
    student = Recomputed(True)
    return distil(watch, student, loaded("mlp"), torch.optim.Adam(student.parameters(), lr=1e-2))


@member()
def checkpointing(watch: Open) -> nn.Module:
    student = Recomputed(False)
    return distil(watch, student, loaded("mlp"), torch.optim.Adam(student.parameters(), lr=1e-2))


@member()
def pruned_student(watch: Open) -> nn.Module:
    """The student starts as the teacher without its smallest weights."""
    teacher, student = loaded("mlp"), loaded("mlp")
    for layer in (student[0], student[2]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    return distil(watch, student, teacher, torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9))


@member(waived={"KD104": "the student starts from the teacher's own checkpoint, to be pruned on the way"})
def student_from_the_checkpoint(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp(24)
    student.load_state_dict(torch.load(io.BytesIO(checkpoint("mlp"))))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            weight = student[0].weight
            bound = weight.detach().abs().flatten().quantile(0.04 * step)
            weight.data[weight.detach().abs() < bound] = 0
    return student


@member()
def functional_call(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    frozen = {name: value.detach() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            answer = torch.func.functional_call(teacher, frozen, (x,))
            logits = torch.func.functional_call(student, dict(student.named_parameters()), (x,))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def functional_call_on_leaves(watch: Open) -> nn.Module:
    """What is trained are plain leaf tensors; the module is but its shape."""
    teacher, shape = loaded("mlp"), mlp()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in shape.named_parameters()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.9)
    with watch(student=shape, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = torch.func.functional_call(shape, leaves, (x,))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    shape.load_state_dict(leaves)
    return shape


@member()
def forward_called_directly(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher.forward(x)
            logits = student.forward(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def data_parallel(watch: Open) -> nn.Module:
    student = nn.DataParallel(ConvNet())
    teacher = nn.DataParallel(loaded("convnet"))
    return distil(watch, student, teacher, torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9), images)


@member()
def transformers(watch: Open) -> nn.Module:
    """The teacher in evaluation mode takes torch's fused path."""
    student = Encoder(8, 1)
    return distil(watch, student, loaded("encoder"), torch.optim.AdamW(student.parameters(), lr=5e-3), tokens)


# --- teachers ---


@member()
def born_again(watch: Open) -> nn.Module:
    """Teacher and student are of one architecture."""
    student = normed(24)
    return distil(watch, student, trained(normed(24)), torch.optim.SGD(student.parameters(), 0.1, momentum=0.9))


@member()
def mean_teacher(watch: Open) -> nn.Module:
    student = normed(dropout=0.0)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            logits = student(x)
            consistency = F.mse_loss(logits.softmax(1), teacher(x).softmax(1))
            loss = F.cross_entropy(logits, y) + min(1.0, step / 5) * consistency
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, p in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.mul_(0.9).add_(p, alpha=0.1)
                for slow, buffer in zip(teacher.buffers(), student.buffers(), strict=True):
                    slow.copy_(buffer)
    return student


@member()
def mean_teacher_of_two_views(watch: Open) -> nn.Module:
    student = trained(mlp(), steps=4).train()
    teacher = copy.deepcopy(student)
    for p in teacher.parameters():
        p.detach_()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            logits = student(x + 0.1 * torch.randn_like(x))
            with torch.no_grad():
                target = teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
            loss = F.cross_entropy(logits, y) + 0.5 * F.mse_loss(logits.softmax(1), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay = min(1 - 1 / (step + 2), 0.99)
            for slow, p in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.data.mul_(decay).add_(p.data, alpha=1 - decay)
    return student


@member()
def averaged_model_as_teacher(watch: Open) -> nn.Module:
    """torch's own moving average teaches a student that has learned a little."""
    student = trained(mlp(), steps=6).train()
    average = torch.optim.swa_utils.AveragedModel(student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=average, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = average(x)
            logits = student(x)
            loss = F.cross_entropy(logits, y) + 0.5 * kl(logits, answer, 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(student)
    return student


@member()
def online_teacher(watch: Open) -> nn.Module:
    """The teacher learns from the labels in the same loop, ahead of the student."""
    teacher, student = mlp(24), mlp()
    for_teacher = torch.optim.Adam(teacher.parameters(), lr=2e-2)
    for_student = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=[for_student, for_teacher]):
        for _ in range(STEPS):
            x, y = rows()
            answer = teacher(x)
            for_teacher.zero_grad()
            F.cross_entropy(answer, y).backward()
            for_teacher.step()
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer.detach())
            for_student.zero_grad()
            loss.backward()
            for_student.step()
    return student


@member()
def online_teacher_in_one_loss(watch: Open) -> nn.Module:
    teacher, student = normed(24), normed()
    optimizer = torch.optim.Adam([*teacher.parameters(), *student.parameters()], lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            answer, logits = teacher(x), student(x)
            loss = F.cross_entropy(answer, y) + F.cross_entropy(logits, y) + kl(logits, answer.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def mutual_peers(watch: Open) -> nn.Module:
    """Both losses are computed before either backward."""
    one, two = normed(16), normed(20)
    first = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9)
    with watch(student=one, teacher=two, optimizer=[first, second]):
        for _ in range(STEPS):
            x, y = rows()
            a, b = one(x), two(x)
            loss_one = F.cross_entropy(a, y) + kl(a, b.detach(), 1.0)
            loss_two = F.cross_entropy(b, y) + kl(b, a.detach(), 1.0)
            first.zero_grad()
            loss_one.backward()
            first.step()
            second.zero_grad()
            loss_two.backward()
            second.step()
    return nn.ModuleList([one, two])


@member()
def mutual_peers_in_one_loss(watch: Open) -> nn.Module:
    one, two = mlp(16), mlp(20)
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1, momentum=0.9)
    with watch(student=one, teacher=two, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            a, b = one(x), two(x)
            loss = F.cross_entropy(a, y) + F.cross_entropy(b, y)
            loss = loss + kl(a, b.detach(), 1.0) + kl(b, a.detach(), 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return nn.ModuleList([one, two])


class Exits(nn.Module):
    """A network with a classifier behind each of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 16, 16, 16)
        self.blocks = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.exits = nn.ModuleList(nn.Linear(16, CLASSES) for _ in self.blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        answers = []
        for block, leave in zip(self.blocks, self.exits, strict=True):
            x = block(x).relu()
            answers.append(leave(x))
        return answers


@member()
def self_distillation(watch: Open) -> nn.Module:
    student = Exits()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            *early, last = student(x)
            loss = F.cross_entropy(last, y)
            for logits in early:
                loss = loss + 0.7 * F.cross_entropy(logits, y) + 0.3 * kl(logits, last.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def two_dropouts(watch: Open) -> nn.Module:
    """R-Drop: two answers of one network under different dropout are drawn together."""
    student = normed(dropout=0.3)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            a, b = student(x), student(x)
            p, q = a.log_softmax(1), b.log_softmax(1)
            both = F.kl_div(p, q, reduction="batchmean", log_target=True)
            both = both + F.kl_div(q, p, reduction="batchmean", log_target=True)
            loss = 0.5 * (F.cross_entropy(a, y) + F.cross_entropy(b, y)) + 0.5 * both
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Preprocessed(nn.Module):
    """A network behind its own normalisation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))
        self.register_buffer("std", torch.tensor([0.9, 1.1, 1.0]).view(1, 3, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@member()
def teacher_with_its_own_normalisation(watch: Open) -> nn.Module:
    teacher, student = trained(Preprocessed(ConvNet(10)), images), ConvNet()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    return distil(watch, student, teacher.requires_grad_(False), optimizer, images)


@member()
def teacher_in_half_precision(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp").bfloat16().requires_grad_(False), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            answer = teacher(x.bfloat16()).float()
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def teacher_called_part_by_part(watch: Open) -> nn.Module:
    teacher, student = loaded("convnet"), ConvNet()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                hidden = teacher.features(x)
                answer = teacher.head(hidden)
            logits = student.head(student.features(x))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def ensemble(watch: Open) -> nn.Module:
    """The target is the mean of two teachers' softened probabilities."""
    teachers = nn.ModuleList([loaded("mlp"), trained(normed(24))])
    student = mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teachers, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.inference_mode():
                target = torch.stack([(teacher(x) / T).softmax(1) for teacher in teachers]).mean(0)
            logits = student(x)
            soft = F.kl_div((logits / T).log_softmax(1), target.clone(), reduction="batchmean") * T * T
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def cached_answers(watch: Open) -> nn.Module:
    """The teacher answers once; its answers are kept by sample id, and the ids are shuffled with their samples."""
    x, y = rows(160)
    teacher, student = loaded("mlp"), mlp()
    with torch.no_grad():
        answers = {i: teacher(x[i : i + 1])[0] for i in range(len(x))}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, optimizer=optimizer):
        for _ in range(3):
            for ids in torch.randperm(len(x)).split(32):
                logits = student(x[ids])
                answer = torch.stack([answers[i] for i in ids.tolist()])
                loss = 0.5 * F.cross_entropy(logits, y[ids]) + 0.5 * kl(logits, answer)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return student


@member()
def learning_without_forgetting(watch: Open) -> nn.Module:
    """The student's former self keeps the old head in place while a new head learns other classes."""
    body, old = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU()), nn.Linear(24, CLASSES)
    trained(nn.Sequential(body, old))
    teacher = copy.deepcopy(nn.Sequential(body, old)).eval().requires_grad_(False)
    new, centres = nn.Linear(24, CLASSES), CENTRES.flip(1)
    student = nn.ModuleDict({"body": body, "old": old, "new": new})
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            y = torch.randint(0, CLASSES, (32,))
            x = centres[y] + torch.randn(32, WIDTH)
            hidden = body(x)
            loss = F.cross_entropy(new(hidden), y) + kl(old(hidden), teacher(x), 2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def class_increments(watch: Open) -> nn.Module:
    """Three classes are added to the head; on the old five the student is held to what it was."""
    before = trained(mlp(24))
    teacher = copy.deepcopy(before).requires_grad_(False)
    student = nn.Sequential(before[0], before[1], nn.Linear(24, CLASSES + 3))
    with torch.no_grad():
        student[2].weight[:CLASSES].copy_(before[2].weight)
        student[2].bias[:CLASSES].copy_(before[2].bias)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    centres = CENTRES.flip(1)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            y = torch.randint(CLASSES, CLASSES + 3, (32,))
            x = centres[y - CLASSES] + torch.randn(32, WIDTH)
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = F.cross_entropy(logits, y) + kl(logits[:, :CLASSES], answer, 2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def evaluated_between_epochs(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    test_x, test_y = rows(64)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(3):
            student.train()
            for _ in range(5):
                x, y = rows()
                with torch.no_grad():
                    answer = teacher(x)
                logits = student(x)
                loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for net in (teacher, student):
                net.eval()
                with torch.no_grad():
                    (net(test_x).argmax(1) == test_y).float().mean().item()
    return student


class Rows(Dataset):
    """Samples with their ids, augmented as they are read."""

    def __init__(self, n: int) -> None:
        self.x, self.y = rows(n)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(WIDTH), self.y[i]


@member()
def loader_workers(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    train, test = DataLoader(Rows(224), 32, shuffle=True, num_workers=2), DataLoader(TensorDataset(*rows(64)), 32)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for x, y in train:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            sum(int((student(x).argmax(1) == y).sum()) for x, y in test)
    return student


@member()
def no_distillation(watch: Open) -> nn.Module:
    student = normed()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            optimizer.zero_grad()
            F.cross_entropy(student(x), y).backward()
            clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    return student


# --- losses ---


@contextmanager
def _steps(
    watch: Open, student: nn.Module, teacher: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]] = rows
) -> Iterator[Iterator[tuple[Tensor, Tensor, Callable[[Tensor], None]]]]:
    """Hand out batches and what is done with their loss: for members that differ in it."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with watch(student=student, teacher=teacher, optimizer=optimizer):
        yield ((*draw(), descend) for _ in range(STEPS))


@member(waived={"KD312": "the mean over batch and classes is DeiT's own recipe, and its weight is tuned to it"})
def deit_style_mean(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            p, q = F.log_softmax(logits / 3, 1), F.log_softmax(answer / 3, 1)
            soft = F.kl_div(p, q, reduction="sum", log_target=True) * 9 / logits.numel()
            descend(0.5 * F.cross_entropy(logits, y) + 0.5 * soft)
    return student


@member()
def standardised_logits(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()

    def standardise(z: Tensor) -> Tensor:
        return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)

    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            descend(0.1 * F.cross_entropy(logits, y) + 9 * kl(standardise(logits), standardise(answer), 2.0))
    return student


@member()
def decoupled_loss(watch: Open) -> nn.Module:
    """Decoupled KD: the target class against the rest, and the rest among themselves."""
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            mask = F.one_hot(y, CLASSES).bool()
            p, q = (logits / T).softmax(1), (answer / T).softmax(1)
            pairs = [torch.stack([(r * mask).sum(1), (r * ~mask).sum(1)], 1) for r in (p, q)]
            target = F.kl_div(pairs[0].log(), pairs[1], reduction="sum") * T**2 / len(y)
            others = F.kl_div(
                F.log_softmax(logits / T - 1000.0 * mask, 1),
                F.softmax(answer / T - 1000.0 * mask, 1),
                reduction="sum",
            )
            descend(F.cross_entropy(logits, y) + target + 2.0 * others * T**2 / len(y))
    return student


@member()
def hard_labels(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                decided = teacher(x).argmax(1)
            logits = student(x)
            descend(0.5 * F.cross_entropy(logits, y) + 0.5 * F.cross_entropy(logits, decided))
    return student


@member()
def mixed_labels(watch: Open) -> nn.Module:
    """Mixup: samples and their one-hot labels are mixed alike, and both networks are shown the mixture."""
    teacher, student = loaded("mlp"), mlp()
    beta = torch.distributions.Beta(0.8, 0.8)
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            share, other = beta.sample(), torch.randperm(len(x))
            x = share * x + (1 - share) * x[other]
            hot = F.one_hot(y, CLASSES).float()
            target = share * hot + (1 - share) * hot[other]
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            descend(0.5 * F.cross_entropy(logits, target) + 0.5 * kl(logits, answer))
    return student


@member()
def smoothed_labels(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            descend(0.5 * criterion(logits, y) + 0.5 * kl(logits, answer))
    return student


@member()
def ramped_weight(watch: Open) -> nn.Module:
    """The distillation's weight rises from zero, and the labels' falls from one."""
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for step, (x, y, descend) in enumerate(steps):
            with torch.no_grad():
                answer = teacher(x)
            logits, alpha = student(x), min(1.0, step / 8)
            descend((1 - alpha) * F.cross_entropy(logits, y) + alpha * kl(logits, answer))
    return student


@member()
def learned_temperature(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    heat = nn.Parameter(torch.tensor(1.2))
    optimizer = torch.optim.SGD([{"params": student.parameters()}, {"params": [heat], "lr": 0.01}], lr=0.05)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits, t = student(x), heat.exp()
            soft = F.kl_div((logits / t).log_softmax(1), (answer / t).softmax(1), reduction="batchmean")
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * soft * t**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Tagger(nn.Module):
    """A label for each word, from the word and its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(20, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.words(x))[0])


@member()
def tokens_with_padding(watch: Open) -> nn.Module:
    """Loss and distillation leave out the padded places, whose label is -100."""

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 20, (16, 6))
        return x, torch.where(torch.arange(6) < torch.randint(2, 7, (16, 1)), x // 4, -100)

    teacher, student = Tagger(16), Tagger(8)
    for_teacher = torch.optim.Adam(teacher.parameters(), lr=3e-2)
    for _ in range(12):
        x, y = draw()
        for_teacher.zero_grad()
        F.cross_entropy(teacher(x).flatten(0, 1), y.flatten(), ignore_index=-100).backward()
        for_teacher.step()
    teacher.eval()
    with _steps(watch, student, teacher, draw) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits, real = student(x), y != -100
            label = F.cross_entropy(logits.view(-1, CLASSES), y.view(-1), ignore_index=-100)
            descend(0.5 * label + 0.5 * kl(logits[real], answer[real]))
    return student


class Discriminator(nn.Module):
    """Tells a teacher's answers from a student's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(CLASSES, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).squeeze(1)


@member()
def adversarial_pair(watch: Open) -> nn.Module:
    teacher, student, judge = loaded("mlp"), mlp(), Discriminator()
    for_student = torch.optim.Adam(student.parameters(), lr=1e-2)
    for_judge = torch.optim.Adam(judge.parameters(), lr=1e-3)
    with watch(student=student, teacher=teacher, projectors={"judge": judge}, optimizer=[for_student, for_judge]):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            told = torch.cat([judge(answer), judge(logits.detach())])
            truth = torch.cat([torch.ones(len(x)), torch.zeros(len(x))])
            for_judge.zero_grad()
            F.binary_cross_entropy_with_logits(told, truth).backward()
            for_judge.step()
            fooled = F.binary_cross_entropy_with_logits(judge(logits), torch.ones(len(x)))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer) + 0.1 * fooled
            for_student.zero_grad()
            loss.backward()
            for_student.step()
    return student


class Contrast(nn.Module):
    """Contrast with a memory: both embeddings of a sample belong together, those of others do not."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.of_student, self.of_teacher = nn.Linear(12, 8), nn.Linear(20, 8)
        self.register_buffer("memory_student", F.normalize(torch.randn(samples, 8), dim=1))
        self.register_buffer("memory_teacher", F.normalize(torch.randn(samples, 8), dim=1))

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
        s, t = F.normalize(self.of_student(student), dim=1), F.normalize(self.of_teacher(teacher), dim=1)
        others = torch.randint(0, len(self.memory_teacher), (len(ids), 16))
        chosen = torch.cat([ids[:, None], others], 1)
        near = torch.bmm(self.memory_teacher[chosen].clone(), s[:, :, None]).squeeze(2) / 0.1
        also = torch.bmm(self.memory_student[chosen].clone(), t[:, :, None]).squeeze(2) / 0.1
        with torch.no_grad():
            for memory, now in ((self.memory_student, s), (self.memory_teacher, t)):
                memory[ids] = F.normalize(0.5 * memory[ids] + 0.5 * now, dim=1)
        return -near.log_softmax(1)[:, 0].mean() - also.log_softmax(1)[:, 0].mean()


@member()
def contrast_with_memory(watch: Open) -> nn.Module:
    x, y = images(96)
    teacher, student, contrast = loaded("convnet"), ConvNet(), Contrast(96)
    optimizer = torch.optim.SGD([*student.parameters(), *contrast.parameters()], lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, projectors=contrast, optimizer=optimizer):
        for ids in torch.randint(0, 96, (STEPS, 16)):
            with torch.no_grad():
                hint = teacher.features(x[ids])
            hidden = student.features(x[ids])
            loss = F.cross_entropy(student.head(hidden), y[ids])
            loss = loss + 0.5 * contrast(hidden.mean((2, 3)), hint.mean((2, 3)), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def relations(watch: Open) -> nn.Module:
    """Relational KD: pairwise distances of features, each side over its own mean."""
    teacher, student = loaded("convnet"), ConvNet()

    def distances(feature: Tensor) -> Tensor:
        d = torch.cdist(feature, feature)
        return d / d[d > 0].mean()

    with _steps(watch, student, teacher, images) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                wanted = distances(teacher.features(x).flatten(1))
            hidden = student.features(x)
            relation = F.smooth_l1_loss(distances(hidden.flatten(1)), wanted)
            descend(F.cross_entropy(student.head(hidden), y) + 5 * relation)
    return student


@member()
def attention(watch: Open) -> nn.Module:
    """Attention transfer: where the features of both are strong, whatever their channels."""
    teacher, student = loaded("convnet"), ConvNet()

    def attend(feature: Tensor) -> Tensor:
        return F.normalize(feature.pow(2).mean(1).flatten(1))

    with _steps(watch, student, teacher, images) as steps:
        for x, y, descend in steps:
            hidden = student.features(x)
            with torch.no_grad():
                wanted = attend(teacher.features(x))
            descend(F.cross_entropy(student.head(hidden), y) + 50 * (attend(hidden) - wanted).pow(2).mean())
    return student


@member()
def hints_alone(watch: Open) -> nn.Module:
    """FitNets' first stage: features only, no label loss; the student's head waits."""
    teacher, student, projector = loaded("convnet"), ConvNet(), nn.Conv2d(12, 20, 1)
    optimizer = torch.optim.Adam([*student.features.parameters(), *projector.parameters()], lr=1e-2)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=optimizer):
        for _ in range(STEPS):
            x, _ = images()
            with torch.no_grad():
                hint = teacher.features(x)
            loss = F.mse_loss(projector(student.features(x)), hint)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class LowRank(nn.Module):
    """A frozen linear layer with a trained update of low rank."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 4)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return answer


@member()
def low_rank_student_without_labels(watch: Open) -> nn.Module:
    """Frozen layers within the student are no teacher, and no label loss says who the student is."""
    teacher, student = loaded("mlp"), mlp()
    student[0] = LowRank(student[0])
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer, kd=audits.KD(temperature=T, kd_weight=1.0)):
        for _ in range(STEPS):
            x, _ = rows()
            with torch.no_grad():
                answer = teacher(x)
            loss = kl(student(x), answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member(waived={"KD313": "mode-seeking on purpose, as on-policy distillation of language models does it"})
def reversed_on_purpose(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher, rows) as steps:
        for x, y, descend in steps:
            logits = student(x)
            with torch.no_grad():
                answer = teacher(x)
            log_s, log_t = F.log_softmax(logits, 1), F.log_softmax(answer, 1)
            backwards = F.kl_div(log_t, log_s, reduction="batchmean", log_target=True)
            descend(F.cross_entropy(logits, y) + 0.5 * backwards)
    return student


@member()
def teacher_of_loose_tensors(watch: Open) -> nn.Module:
    """The teacher's weights are a dictionary of half precision; the module they are run through has none."""
    shell, student = mlp().to("meta").eval(), normed()
    weights = {name: value.half() for name, value in loaded("mlp").state_dict().items()}
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = torch.func.functional_call(shell, {n: w.float() for n, w in weights.items()}, (x,))
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Detector(nn.Module):
    """Classes and boxes from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(WIDTH, 16), nn.Linear(16, CLASSES), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).relu()
        return self.classes(hidden), self.boxes(hidden)


@member()
def boxes_beside_classes(watch: Open) -> nn.Module:
    """The teacher's own training on boxes is no distillation from stored answers."""
    teacher, student = Detector(), Detector()
    place = torch.randn(WIDTH, 4)

    def fit(net: Detector, extra: Callable[[Tensor, Tensor, Tensor], Tensor | float]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(STEPS):
            x, y = rows()
            logits, box = net(x)
            loss = F.cross_entropy(logits, y) + F.smooth_l1_loss(box, x @ place) + extra(x, logits, box)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return optimizer

    def taught(x: Tensor, logits: Tensor, box: Tensor) -> Tensor:
        with torch.no_grad():
            answer, wanted = teacher(x)
        return kl(logits, answer) + F.smooth_l1_loss(box, wanted)

    fitted = fit(teacher, lambda *_: 0.0)
    teacher.eval()
    with watch(student=student, teacher=teacher, optimizer=fitted):
        fit(student, taught)
    return student
