"""Guidance distillation of a class-conditional flow: the student takes the guidance weight as an input."""
import argparse
import math

import torch
from torch import nn

NULL = 4
CENTRES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])


def data(n):
    y = torch.randint(0, 4, (n,))
    return CENTRES[y] + 0.7 * torch.randn(n, 2), y


class Velocity(nn.Module):
    def __init__(self, width, with_w):
        super().__init__()
        self.lab = nn.Embedding(5, 16)
        self.with_w = with_w
        self.net = nn.Sequential(nn.Linear(2 + 6 + 16 + int(with_w), width), nn.SiLU(),
                                 nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t, y, w=None):
        tt = t[:, None]
        emb = torch.cat([tt, 1 - tt, (math.pi * tt).sin(), (math.pi * tt).cos(),
                         (2 * math.pi * tt).sin(), (2 * math.pi * tt).cos()], 1)
        parts = [x, emb, self.lab(y)]
        if self.with_w:
            parts.append(w[:, None])
        return self.net(torch.cat(parts, 1))


def interpolate(x1, t):
    x0 = torch.randn_like(x1)
    xt = (1 - t)[:, None] * x0 + t[:, None] * x1
    return xt, x1 - x0


def fit_teacher(steps, drop=0.2):
    net = Velocity(96, False)
    opt = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(steps):
        x1, y = data(256)
        t = torch.rand(len(x1))
        xt, v = interpolate(x1, t)
        y = torch.where(torch.rand(len(y)) < drop, torch.full_like(y, NULL), y)
        loss = (net(xt, t, y) - v).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def guided(teacher, x, t, y, w):
    null = torch.full_like(y, NULL)
    v_cond = teacher(x, t, y)
    v_uncond = teacher(x, t, y)
    return v_uncond + w[:, None] * (v_cond - v_uncond)


@torch.no_grad()
def sample(field, n=400, steps=12):
    torch.manual_seed(5)
    y = torch.arange(n) % 4
    x = torch.randn(n, 2)
    for k in range(steps):
        t = torch.full((n,), k / steps)
        x = x + field(x, t, y) / steps
    right = torch.cdist(x, CENTRES).argmin(1) == y
    return right.float().mean().item(), (x * CENTRES[y]).sum(1).mean().item() / 4


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--teacher-steps", type=int, default=400)
    ap.add_argument("--steps", type=int, default=120)
    ap.add_argument("--w-min", type=float, default=1.0)
    ap.add_argument("--w-max", type=float, default=3.0)
    ap.add_argument("--lr", type=float, default=4e-3)
    args = ap.parse_args()

    torch.manual_seed(23)
    net_T = fit_teacher(args.teacher_steps)
    plain = sample(lambda x, t, y: net_T(x, t, y))
    strong = sample(lambda x, t, y: guided(net_T, x, t, y, torch.full((len(y),), 3.0)))
    print("teacher class accuracy / reach: plain %.3f %.3f  guided %.3f %.3f" % (*plain, *strong))

    torch.manual_seed(24)
    net_S = Velocity(64, True)
    ema = {k: v.clone() for k, v in net_S.state_dict().items()}
    opt = torch.optim.Adam(net_S.parameters(), lr=args.lr)
    for i in range(args.steps):
        x1, y = data(256)
        t = torch.rand(len(x1))
        w = args.w_min + (args.w_max - args.w_min) * torch.rand(len(x1))
        xt, _ = interpolate(x1, t)
        target = guided(net_T, xt, t, y, w)
        loss = (net_S(xt, t, y, w) - target).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        for k, v in net_S.state_dict().items():
            ema[k].lerp_(v, 0.1)
        if i % 30 == 29:
            print(f"step {i + 1} loss {loss.item():.4f}")
    net_S.load_state_dict(ema)
    for w in (1.0, 3.0):
        r = sample(lambda x, t, y: net_S(x, t, y, torch.full((len(y),), w)))
        print("student w=%.0f accuracy %.3f reach %.3f" % (w, *r))


if __name__ == "__main__":
    main()
