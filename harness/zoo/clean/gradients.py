"""Members of the clean zoo: gradients that are clipped, accumulated, scaled or touched by hand."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from kdbench import audits
from kdbench.harness.zoo.clean.material import STEPS, ConvNet, distil, images, kl, loaded, mlp, normed, rows
from kdbench.harness.zoo.clean.registry import Open, member


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
