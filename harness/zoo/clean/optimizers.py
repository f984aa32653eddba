"""Members of the clean zoo: optimizers."""

import io

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.harness.zoo.clean.material import (
    STEPS,
    ConvNet,
    checkpoint,
    distil,
    images,
    kl,
    loaded,
    mlp,
    normed,
    rows,
    trained,
)
from kdbench.harness.zoo.clean.registry import Open, member


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
