"""Source labels, unlabelled target domain: averaged network provides soft targets."""
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(64)
D, K = 14, 5
means = 1.6 * torch.randn(K, D)
shift, scale = 1.5 * torch.randn(D), 0.5 + 2.0 * torch.rand(D)


def source(n):
    y = torch.randint(K, (n,))
    return means[y] + torch.randn(n, D), y


def target(n):
    x, y = source(n)
    return x * scale + shift, y


def network():
    return nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, 64), nn.BatchNorm1d(64), nn.ReLU(),
                         nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, K))


class MomentumUpdater:
    def __init__(self, tau):
        self.tau = tau

    @torch.no_grad()
    def update(self, online, averaged):
        for a, b in zip(averaged.parameters(), online.parameters()):
            a.mul_(self.tau).add_(b, alpha=1 - self.tau)


@torch.no_grad()
def acc(net, data):
    flag = net.training
    net.eval()
    out = (net(data[0]).argmax(1) == data[1]).float().mean().item()
    net.train(flag)
    return out


held = target(800)
online = network()
opt = torch.optim.Adam(online.parameters(), lr=3e-3)
for _ in range(120):
    xs, ys = source(64)
    opt.zero_grad()
    F.cross_entropy(online(xs), ys).backward()
    opt.step()
print("source", acc(online, source(800)), "target before", acc(online, held))

averaged = copy.deepcopy(online).requires_grad_(False)
averaged.eval()
updater = MomentumUpdater(0.97)
opt = torch.optim.Adam(online.parameters(), lr=1e-3)
online.train()
for step in range(260):
    xs, ys = source(32)
    xt, _ = target(96)
    with torch.no_grad():
        soft = averaged(xt).softmax(1)
    out = online(torch.cat([xs, xt + 0.1 * torch.randn_like(xt)]))
    sup = F.cross_entropy(out[:32], ys)
    con = -(soft * out[32:].log_softmax(1)).sum(1).mean()
    opt.zero_grad()
    (sup + con).backward()
    opt.step()
    updater.update(online, averaged)
    if step % 52 == 0:
        print(step, f"sup {sup.item():.3f} con {con.item():.3f} target: online {acc(online, held):.3f} averaged {acc(averaged, held):.3f}")
print("target after", acc(online, held), "averaged", acc(averaged, held))
