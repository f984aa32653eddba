"""Attention transfer (spatial attention maps) from a wide to a narrow convnet."""
from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(3)
STAGES = ("stage1", "stage2", "stage3")
BETA = 20.0


def block(cin, cout, stride):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


def build(width, n_classes=6):
    return nn.Sequential(OrderedDict(
        stage1=block(3, width, 1),
        stage2=block(width, 2 * width, 2),
        stage3=block(2 * width, 4 * width, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(4 * width, n_classes)))


def sample(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 6, (n,), generator=g)
    x = 0.4 * torch.randn(n, 3, 16, 16, generator=g)
    pos = torch.randint(0, 10, (n, 2), generator=g)
    for i in range(n):
        r, c = pos[i].tolist()
        ch, horizontal = y[i].item() % 3, y[i].item() >= 3
        patch = x[i, ch, r:r + 6, c:c + 6]
        if horizontal:
            patch[::2] += 2.0
        else:
            patch[:, ::2] += 2.0
    return x, y


def tap(net):
    store = {}
    for name in STAGES:
        def hook(_m, _i, out, name=name):
            store[name] = out
        getattr(net, name).register_forward_hook(hook)
    return store


def attention_map(f):
    return F.normalize(f.pow(2).mean(1).flatten(1))


def at(a, b):
    return (attention_map(a) - attention_map(b)).pow(2).mean()


@torch.no_grad()
def score(net, x, y):
    net.eval()
    return (net(x).argmax(1) == y).float().mean().item()


def batches(x, y, bs, epochs, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for ids in torch.randperm(len(y), generator=g).split(bs):
            yield x[ids], y[ids]


xtr, ytr = sample(1024, 10)
xte, yte = sample(300, 20)

guide = build(16)
opt = torch.optim.Adam(guide.parameters(), lr=3e-3)
guide.train()
for x, y in batches(xtr, ytr, 64, 6):
    opt.zero_grad()
    F.cross_entropy(guide(x), y).backward()
    opt.step()
guide.eval().requires_grad_(False)
print("guide accuracy", round(score(guide, xte, yte), 3))

learner = build(6)
g_maps, l_maps = tap(guide), tap(learner)
terms = []
for stage in STAGES:
    terms.append(lambda: at(l_maps[stage], g_maps[stage]))

opt = torch.optim.Adam(learner.parameters(), lr=4e-3)
for step, (x, y) in enumerate(batches(xtr, ytr, 64, 9, seed=1)):
    learner.train()
    with torch.no_grad():
        guide(x)
    ce = F.cross_entropy(learner(x), y)
    transfer = sum(term() for term in terms)
    loss = ce + BETA * transfer
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 20 == 0:
        print(f"step {step} ce {ce.item():.3f} at {transfer.item():.5f}")
print("learner accuracy", round(score(learner, xte, yte), 3))
