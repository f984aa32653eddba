"""Consistency distillation of a 2-D diffusion model (8 Gaussians) into a one-step sampler."""
import copy
import math
import torch
from torch import nn

torch.manual_seed(5)
torch.set_num_threads(1)
SIG_MIN, SIG_MAX, SIG_DATA, N = 0.02, 4.0, 1.0, 18
MODES = torch.stack([1.4 * torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * math.pi / 4])
SIGMAS = (SIG_MIN ** (1 / 3) + torch.linspace(0, 1, N) * (SIG_MAX ** (1 / 3) - SIG_MIN ** (1 / 3))) ** 3


def data(n, g):
    return MODES[torch.randint(0, 8, (n,), generator=g)] + 0.05 * torch.randn(n, 2, generator=g)


class Net(nn.Module):
    """preconditioned network: identity at sigma = SIG_MIN"""

    def __init__(self, h=96):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(2 + 8, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, 2))

    def forward(self, x, sigma):
        c = sigma.log()[:, None] / 4
        emb = torch.cat([fn(k * math.pi * c) for k in (0.5, 1, 2, 4) for fn in (torch.sin, torch.cos)], 1)
        s = sigma[:, None]
        skip = SIG_DATA ** 2 / ((s - SIG_MIN) ** 2 + SIG_DATA ** 2)
        out = (s - SIG_MIN) * SIG_DATA / (s ** 2 + SIG_DATA ** 2).sqrt()
        return skip * x + out * self.f(torch.cat([x / (s ** 2 + SIG_DATA ** 2).sqrt(), emb], 1))


def train_teacher(g, steps=500):
    net = Net()
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        x0 = data(256, g)
        sigma = (-0.5 + 1.3 * torch.randn(256, generator=g)).exp().clamp(SIG_MIN, SIG_MAX)
        pred = net(x0 + sigma[:, None] * torch.randn(256, 2, generator=g), sigma)
        w = (sigma ** 2 + SIG_DATA ** 2) / (sigma * SIG_DATA) ** 2
        loss = (w.clamp(max=20) * (pred - x0).pow(2).sum(1)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def euler(teacher, x, hi, lo):
    slope = (x - teacher(x, hi)) / hi[:, None]
    return x + (lo - hi)[:, None] * slope


@torch.no_grad()
def update_ema(target, source, rate=0.95):
    for t, s in zip(target.parameters(), source.parameters()):
        t.mul_(rate).add_(s, alpha=1 - rate)


@torch.no_grad()
def one_step_error(net):
    z = SIG_MAX * torch.randn(1000, 2, generator=torch.Generator().manual_seed(77))
    x = net(z, torch.full((1000,), SIG_MAX))
    return torch.cdist(x, MODES).min(1).values.mean().item()


g = torch.Generator().manual_seed(5)
teacher = train_teacher(g)
student = copy.deepcopy(teacher).train().requires_grad_(True)
target = copy.deepcopy(teacher)
print(f"distance to nearest mode, one step, before: {one_step_error(student):.4f}")
opt = torch.optim.Adam(student.parameters(), lr=1e-3)
for step in range(1, 601):
    x0 = data(256, g)
    n = torch.randint(1, N, (256,), generator=g)
    hi, lo = SIGMAS[n], SIGMAS[n - 1]
    x_hi = x0 + hi[:, None] * torch.randn(256, 2, generator=g)
    x_lo = euler(teacher, x_hi, hi, lo)
    with torch.no_grad():
        goal = target(x_lo, lo)
    loss = (student(x_hi, hi) - goal).pow(2).sum(1).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 120 == 0:
        print(f"step {step} loss {loss.item():.5f} one-step distance {one_step_error(student):.4f}")
