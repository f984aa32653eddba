"""Consistency distillation of a 2-D denoiser (online and target networks)."""
import copy
import math
import torch
import torch.nn as nn

torch.manual_seed(2023)
S_MIN, S_MAX, S_DATA, N_LEVELS = 0.05, 4.0, 1.0, 12
angles = torch.arange(6) * math.pi / 3
modes = 1.4 * torch.stack([angles.cos(), angles.sin()], 1)


def clean_points(n):
    return modes[torch.randint(6, (n,))] + 0.05 * torch.randn(n, 2)


class Denoiser(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, s):
        s = s.view(-1, 1)
        d = s - S_MIN
        c_skip = S_DATA ** 2 / (d ** 2 + S_DATA ** 2)
        c_out = d * S_DATA / (s ** 2 + S_DATA ** 2).sqrt()
        c_in = 1 / (s ** 2 + S_DATA ** 2).sqrt()
        t = s.log() / 4
        return c_skip * x + c_out * self.f(torch.cat([c_in * x, t, t.sin()], 1))


levels = torch.linspace(S_MIN ** (1 / 3), S_MAX ** (1 / 3), N_LEVELS) ** 3


def train_teacher(steps):
    net = Denoiser()
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        y = clean_points(256)
        s = levels[torch.randint(1, N_LEVELS, (256,))]
        w = (s ** 2 + S_DATA ** 2) / (s * S_DATA) ** 2
        loss = (w.view(-1, 1) * (net(y + s.view(-1, 1) * torch.randn_like(y), s) - y) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def solver_step(teacher, x, s_hi, s_lo):
    slope = (x - teacher(x, s_hi)) / s_hi.view(-1, 1)
    return x + (s_lo - s_hi).view(-1, 1) * slope


@torch.no_grad()
def update_ema(target, online, rate):
    for t, o in zip(target.parameters(), online.parameters()):
        t.mul_(rate).add_(o, alpha=1 - rate)


@torch.no_grad()
def one_step_error(net):
    g = torch.Generator().manual_seed(0)
    x = net(S_MAX * torch.randn(2000, 2, generator=g), torch.full((2000,), S_MAX))
    return torch.cdist(x, modes).min(1).values.mean().item()


teacher = train_teacher(700)
online = copy.deepcopy(teacher).requires_grad_(True)
target = copy.deepcopy(online).requires_grad_(False)
print("one step distance: teacher", one_step_error(teacher))
opt = torch.optim.Adam(online.parameters(), lr=1e-3)
for step in range(900):
    y = clean_points(256)
    i = torch.randint(1, N_LEVELS, (256,))
    hi, lo = levels[i], levels[i - 1]
    x_hi = y + hi.view(-1, 1) * torch.randn_like(y)
    x_lo = solver_step(teacher, x_hi, hi, lo)
    with torch.no_grad():
        goal = target(x_lo, lo)
    loss = ((online(x_hi, hi) - goal) ** 2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    update_ema(target, online, 0.95)
    if step % 180 == 0:
        print(step, f"loss {loss.item():.5f} one step distance {one_step_error(online):.4f}")
print("one step distance: online", one_step_error(online))
