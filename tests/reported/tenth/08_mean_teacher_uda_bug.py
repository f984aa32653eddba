"""Mean-teacher domain adaptation: labelled source, unlabelled target with another contrast."""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(2)
K, MOM, STEPS = 5, 0.97, 150


def digits(n, proto, seed, shifted):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, K, (n,), generator=g)
    x = proto[y] + 0.8 * torch.randn(n, 1, 10, 10, generator=g)
    if shifted:
        x = 1.3 * x + 0.5
    return x, y


def network():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, K))


class Momentum:
    """Slow copy of a network."""

    def __init__(self, net, tau):
        self.tau = tau
        self.net = copy.deepcopy(net).eval()
        self.net.requires_grad_(False)

    @torch.no_grad()
    def update(self, online):
        for slow, fast in zip(self.net.parameters(), online.parameters()):
            slow.mul_(self.tau).add_(fast, alpha=1 - self.tau)

    @torch.no_grad()
    def __call__(self, x):
        return self.net(x)


@torch.no_grad()
def accuracy(net, x, y):
    mode = net.training
    net.eval()
    acc = (net(x).argmax(1) == y).float().mean().item()
    net.train(mode)
    return acc


def jitter(x, g):
    return x + 0.3 * torch.randn(x.shape, generator=g)


def main():
    proto = F.interpolate(torch.randn(K, 1, 5, 5), size=10)
    xs, ys = digits(600, proto, 1, shifted=False)
    xt, _ = digits(600, proto, 2, shifted=True)
    xe, ye = digits(400, proto, 3, shifted=True)
    g = torch.Generator().manual_seed(9)

    student = network()
    opt = torch.optim.Adam(student.parameters(), lr=2e-3)
    student.train()
    for _ in range(80):
        i = torch.randint(0, 600, (48,), generator=g)
        opt.zero_grad()
        F.cross_entropy(student(xs[i]), ys[i]).backward()
        opt.step()
    print(f"source only, on target: {accuracy(student, xe, ye):.3f}")

    slow = Momentum(student, MOM)
    opt = torch.optim.Adam(student.parameters(), lr=1e-3)
    for step in range(STEPS):
        i, j = torch.randint(0, 600, (32,), generator=g), torch.randint(0, 600, (96,), generator=g)
        pseudo = slow(jitter(xt[j], g)).softmax(1)
        logits = student(torch.cat([xs[i], jitter(xt[j], g)]))
        sup = F.cross_entropy(logits[:32], ys[i])
        con = F.mse_loss(logits[32:].softmax(1), pseudo)
        ramp = min(1.0, step / 50)
        loss = sup + 10.0 * ramp * con
        opt.zero_grad()
        loss.backward()
        opt.step()
        slow.update(student)
        if step % 30 == 0:
            print(f"step {step} sup {sup.item():.3f} con {con.item():.4f}")
    print(f"slow net on target: {accuracy(slow.net, xe, ye):.3f}, student {accuracy(student, xe, ye):.3f}")


main()
