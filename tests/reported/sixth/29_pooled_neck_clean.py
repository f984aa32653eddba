"""Neck features are standardised, pooled, and matched; classification loss on top."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(21)
K, H = 5, 10
texture = torch.randn(K, 1, 3, 3)


def samples(n):
    y = torch.randint(K, (n,))
    noise = torch.randn(1, n, H + 2, H + 2)
    img = F.conv2d(noise, texture[y], groups=n)[0].unsqueeze(1)
    img = img / img.std((2, 3), keepdim=True) + 0.3 * torch.randn(n, 1, H, H)
    return img, y


class Model(nn.Module):
    def __init__(self, c, neck=24):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU())
        self.neck = nn.Conv2d(c, neck, 1)
        self.head = nn.Linear(neck, K)

    def forward(self, x, with_neck=False):
        f = self.neck(self.backbone(x))
        out = self.head(F.relu(f).mean((2, 3)))
        return (out, f) if with_neck else out


class PooledMatch(nn.Module):
    def __init__(self, channels, eps=1e-4):
        super().__init__()
        self.embed = nn.Conv2d(channels, channels, 1)
        self.eps = eps

    def standardise(self, f):
        over = (0, 2, 3)
        mu = f.mean(over, keepdim=True)
        var = f.var(over, keepdim=True, unbiased=False)
        return (f - mu) / (var + self.eps).sqrt()

    def forward(self, mine, ref):
        z_s = self.standardise(self.embed(mine)).mean((2, 3))
        z_t = self.standardise(ref).mean((2, 3))
        return (z_s - z_t).pow(2).sum(1).mean()


def hit_rate(model):
    x, y = samples(600)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def optimise(params, closure, steps, lr, every):
    opt = torch.optim.Adam(list(params), lr=lr)
    for i in range(steps):
        loss, note = closure()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if i % every == 0:
            print(i, note)


reference = Model(24)


def plain():
    x, y = samples(48)
    ce = F.cross_entropy(reference(x), y)
    return ce, f"ce {ce.item():.3f}"


optimise(reference.parameters(), plain, 260, 4e-3, 65)
for p in reference.parameters():
    p.requires_grad = False
reference.eval()
print("reference", hit_rate(reference))

compact = Model(6)
match = PooledMatch(24)


def guided():
    x, y = samples(48)
    out, f = compact(x, with_neck=True)
    _, g = reference(x, with_neck=True)
    ce, m = F.cross_entropy(out, y), match(f, g)
    return ce + 0.2 * m, f"ce {ce.item():.3f} match {m.item():.6f}"


optimise([*compact.parameters(), *match.parameters()], guided, 220, 5e-3, 44)
print("compact", hit_rate(compact))
