"""Progressive distillation on 2-D data: one DDIM step of the student replaces two of the teacher."""
import copy
import math

import torch
import torch.nn as nn

torch.manual_seed(50)


def ring(n):
    k = torch.randint(0, 8, (n,))
    a = k * (2 * math.pi / 8)
    return torch.stack([a.cos(), a.sin()], 1) * 1.5 + 0.08 * torch.randn(n, 2)


def alpha_sigma(t):
    """cosine schedule, t in [0, 1]"""
    return torch.cos(t * math.pi / 2)[:, None], torch.sin(t * math.pi / 2)[:, None]


class Denoiser(nn.Module):
    """predicts v"""

    def __init__(self, w=96):
        super().__init__()
        self.freq = nn.Parameter(2.0 ** torch.arange(3) * math.pi / 2, requires_grad=False)
        self.net = nn.Sequential(nn.Linear(2 + 6, w), nn.SiLU(), nn.Linear(w, w), nn.SiLU(),
                                 nn.Linear(w, w), nn.SiLU(), nn.Linear(w, 2))

    def forward(self, z, t):
        f = t[:, None] * self.freq
        return self.net(torch.cat([z, f.sin(), f.cos()], 1))


def predict_x(model, z, t):
    a, s = alpha_sigma(t)
    return a * z - s * model(z, t)


def ddim(model, z, t, t_next):
    a, s = alpha_sigma(t)
    a2, s2 = alpha_sigma(t_next)
    x = predict_x(model, z, t)
    eps = (z - a * x) / s.clamp(min=1e-4)
    return a2 * x + s2 * eps


def train_base(steps=700):
    net = Denoiser()
    opt = torch.optim.Adam(net.parameters(), lr=4e-3)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        x = ring(256)
        t = torch.rand(len(x))
        a, s = alpha_sigma(t)
        e = torch.randn_like(x)
        loss = (net(a * x + s * e, t) - (a * e - s * x)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
    return net


@torch.no_grad()
def two_step_target(teacher, z, t, h):
    """x that would bring z to the teacher's position after two half steps"""
    t_mid, t_end = t - h / 2, t - h
    z_mid = ddim(teacher, z, t, t_mid)
    a_m, s_m = alpha_sigma(t_mid)
    a_e, s_e = alpha_sigma(t_end)
    x_mid = a_m * z_mid - s_m * teacher(z_mid, t_mid)
    z_end = a_e * x_mid + s_e * (z_mid - a_m * x_mid) / s_m
    a, s = alpha_sigma(t)
    r = s_e / s
    return (z_end - r * z) / (a_e - r * a)


def distil(teacher, n_steps, iters=100, lr=1e-3):
    student = copy.deepcopy(teacher)
    teacher.eval().requires_grad_(False)
    opt = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=lr)
    h = 1.0 / n_steps
    for it in range(iters):
        x = ring(256)
        t = torch.randint(1, n_steps + 1, (len(x),)) * h
        a, s = alpha_sigma(t)
        z = a * x + s * torch.randn_like(x)
        target = two_step_target(teacher, z, t, h)
        w = (a / s).pow(2).clamp(1.0, 5.0)
        loss = (w * (predict_x(student, z, t) - target).pow(2)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if it % 25 == 24:
            print(f"  {n_steps} steps, iter {it + 1}: loss {loss.item():.5f}")
    return student


@torch.no_grad()
def quality(model, n_steps, n=1500):
    torch.manual_seed(0)
    z = torch.randn(n, 2)
    for k in range(n_steps, 0, -1):
        t = torch.full((n,), k / n_steps)
        z = ddim(model, z, t, t - 1.0 / n_steps)
    k = torch.arange(8) * (2 * math.pi / 8)
    modes = torch.stack([k.cos(), k.sin()], 1) * 1.5
    return torch.cdist(z, modes).min(1).values.mean().item()


base = train_base()
print(f"base: distance to nearest mode, 8 steps {quality(base, 8):.4f}, 4 steps {quality(base, 4):.4f}")
torch.manual_seed(51)
four = distil(base, 4)
print(f"student with 4 steps {quality(four, 4):.4f}")
