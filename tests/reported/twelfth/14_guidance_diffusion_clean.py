"""Guidance distillation for a small class-conditional diffusion model on 2-D points.

The teacher needs two evaluations per step (with and without the class); the student
learns to give the guided noise prediction in a single evaluation.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn


@dataclass(frozen=True)
class Settings:
    classes: int = 4
    timesteps: int = 40
    guidance: float = 1.6
    drop: float = 0.2
    teacher_steps: int = 350
    student_steps: int = 200
    batch: int = 128


CFG = Settings()
NULL = CFG.classes


class Schedule:
    def __init__(self, n):
        t = torch.linspace(0, 1, n + 1)
        self.abar = torch.cos((t * 0.98 + 0.01) * math.pi / 2) ** 2

    def add_noise(self, x0, eps, t):
        a = self.abar[t][:, None]
        return a.sqrt() * x0 + (1 - a).sqrt() * eps

    def ddim(self, x, eps, t):
        a, prev = self.abar[t], self.abar[t - 1]
        x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-4, 4)
        return prev.sqrt() * x0 + (1 - prev).sqrt() * eps


class Denoiser(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.label = nn.Embedding(CFG.classes + 1, width)
        self.time = nn.Embedding(CFG.timesteps + 1, width)
        self.inp = nn.Linear(2, width)
        self.net = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t, y):
        return self.net(self.inp(x) + self.time(t) + self.label(y))


class Rings:
    """Each class is a noisy blob; the blobs overlap."""

    def __init__(self):
        angle = torch.arange(CFG.classes) * 2 * math.pi / CFG.classes
        self.centre = 1.2 * torch.stack([angle.cos(), angle.sin()], 1)

    def draw(self, n):
        y = torch.randint(0, CFG.classes, (n,))
        return self.centre[y] + 0.5 * torch.randn(n, 2), y

    def hit_rate(self, x, y):
        return (torch.cdist(x, self.centre).argmin(1) == y).float().mean().item()


def noisy_batch(data, sched):
    x0, y = data.draw(CFG.batch)
    t = torch.randint(1, CFG.timesteps + 1, (CFG.batch,))
    eps = torch.randn_like(x0)
    return sched.add_noise(x0, eps, t), t, y, eps


@torch.no_grad()
def guided(teacher, x, t, y):
    """eps_uncond + w * (eps_cond - eps_uncond), both halves in one batched call."""
    null = torch.full_like(y, NULL)
    eps = teacher(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
    eps_cond, eps_uncond = eps.chunk(2)
    return eps_uncond + CFG.guidance * (eps_cond - eps_uncond)


@torch.no_grad()
def sample(predict, sched, y):
    x = torch.randn(len(y), 2, generator=torch.Generator().manual_seed(50))
    for step in range(CFG.timesteps, 0, -2):
        x = sched.ddim(x, predict(x, torch.full_like(y, step), y), step)
        x = sched.ddim(x, predict(x, torch.full_like(y, step - 1), y), step - 1)
    return x


def train_teacher(data, sched):
    model = Denoiser(48)
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(CFG.teacher_steps):
        x, t, y, eps = noisy_batch(data, sched)
        y = torch.where(torch.rand(len(y)) < CFG.drop, NULL, y)
        loss = (model(x, t, y) - eps).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher noise mse {loss.item():.4f}")
    return model.eval().requires_grad_(False)


def main():
    torch.manual_seed(0)
    data, sched = Rings(), Schedule(CFG.timesteps)
    teacher = train_teacher(data, sched)
    probe = torch.arange(400) % CFG.classes
    plain = data.hit_rate(sample(teacher, sched, probe), probe)
    strong = data.hit_rate(sample(lambda x, t, y: guided(teacher, x, t, y), sched, probe), probe)
    print(f"teacher class hit rate: {plain:.3f} without guidance, {strong:.3f} with guidance")

    student = Denoiser(32)
    opt = torch.optim.AdamW(student.parameters(), lr=5e-3, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.StepLR(opt, step_size=80, gamma=0.4)
    for step in range(1, CFG.student_steps + 1):
        x, t, y, _ = noisy_batch(data, sched)
        loss = (student(x, t, y) - guided(teacher, x, t, y)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        decay.step()
        if step % 50 == 0:
            print(f"step {step} distillation mse {loss.item():.4f}")
    print(f"student: class hit rate {data.hit_rate(sample(student, sched, probe), probe):.3f}")


if __name__ == "__main__":
    main()
