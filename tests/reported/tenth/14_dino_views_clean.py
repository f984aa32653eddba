"""A small DINO: two noisy views, centred and sharpened momentum branch, student catches up."""
import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(12)
GROUPS, DIM, PROTOS, STEPS = 6, 24, 32, 200
SIGNAL = DIM // 2
CENTRES = torch.randn(GROUPS, SIGNAL)


def observe(n, g):
    y = torch.randint(0, GROUPS, (n,), generator=g)
    signal = CENTRES[y] + 0.4 * torch.randn(n, SIGNAL, generator=g)
    return torch.cat([signal, 3.0 * torch.randn(n, DIM - SIGNAL, generator=g)], 1), y


def view(x, g):
    signal = x[:, :SIGNAL] + 0.3 * torch.randn(len(x), SIGNAL, generator=g)
    return torch.cat([signal, 3.0 * torch.randn(len(x), DIM - SIGNAL, generator=g)], 1)


class Head(nn.Module):
    def __init__(self, d, k):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, 16))
        self.proto = nn.Linear(16, k, bias=False)

    def forward(self, z):
        return F.linear(F.normalize(self.mlp(z), dim=-1), F.normalize(self.proto.weight, dim=-1))


def make():
    trunk = nn.Sequential(nn.Linear(DIM, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 32))
    return nn.ModuleDict({"trunk": trunk, "head": Head(32, PROTOS)})


def project(net, x):
    return net["head"](net["trunk"](x))


class DinoLoss(nn.Module):
    def __init__(self, k, t_student=0.1, t_target=0.04, momentum=0.9):
        super().__init__()
        self.ts, self.tt, self.m = t_student, t_target, momentum
        self.register_buffer("center", torch.zeros(1, k))

    def forward(self, student_views, target_views):
        targets = [((t - self.center) / self.tt).softmax(-1) for t in target_views]
        total, pairs = 0.0, 0
        for a, q in enumerate(targets):
            for b, s in enumerate(student_views):
                if a == b:
                    continue
                total = total - (q * (s / self.ts).log_softmax(-1)).sum(-1).mean()
                pairs += 1
        self.update_center(torch.cat(target_views))
        return total / pairs

    @torch.no_grad()
    def update_center(self, out):
        self.center.mul_(self.m).add_(out.mean(0, keepdim=True), alpha=1 - self.m)


@torch.no_grad()
def follow(target, online, m):
    for t, o in zip(target.parameters(), online.parameters()):
        t.mul_(m).add_(o, alpha=1 - m)


@torch.no_grad()
def knn(net, g):
    net.eval()
    xa, ya = observe(300, g)
    xb, yb = observe(300, g)
    za, zb = (F.normalize(net["trunk"](x), dim=-1) for x in (xa, xb))
    vote = ya[(zb @ za.T).topk(5, dim=1).indices]
    net.train()
    return (vote.mode(1).values == yb).float().mean().item()


def momentum_at(step, base=0.97):
    return 1 - (1 - base) * (math.cos(math.pi * step / STEPS) + 1) / 2


def main():
    g = torch.Generator().manual_seed(3)
    online = make()
    target = copy.deepcopy(online).eval().requires_grad_(False)
    loss_fn = DinoLoss(PROTOS)
    opt = torch.optim.AdamW(online.parameters(), lr=2e-3, weight_decay=0.04)
    print(f"knn at start {knn(online, torch.Generator().manual_seed(50)):.3f}")
    for step in range(STEPS):
        x, _ = observe(128, g)
        views = [view(x, g), view(x, g)]
        with torch.no_grad():
            target_out = [project(target, v) for v in views]
        loss = loss_fn([project(online, v) for v in views], target_out)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(online.parameters(), 3.0)
        opt.step()
        follow(target, online, momentum_at(step))
        if step % 40 == 0:
            print(f"step {step} loss {loss.item():.3f}")
    print(f"knn of the target trunk {knn(target, torch.Generator().manual_seed(50)):.3f}")


main()
