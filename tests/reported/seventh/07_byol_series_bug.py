"""BYOL on short sensor windows, evaluated with a nearest-centroid probe."""
import argparse
import copy
import math
import torch
import torch.nn as nn
import torch.nn.functional as F


def windows(n, g, length=64):
    kind = torch.randint(0, 6, (n,), generator=g)
    t = torch.linspace(0, 1, length)[None]
    freq = torch.tensor([2., 3., 4., 6., 8., 11.])[kind][:, None]
    phase = 2 * math.pi * torch.rand(n, 1, generator=g)
    wave = torch.sin(2 * math.pi * freq * t + phase) + 0.5 * torch.sin(4 * math.pi * freq * t + 2 * phase)
    return (wave + 0.4 * torch.randn(n, length, generator=g))[:, None], kind


class Augment:
    """random gain, time roll, jitter and a masked segment"""

    def __init__(self, g):
        self.g = g

    def __call__(self, x):
        n, _, L = x.shape
        x = x * (0.6 + 0.8 * torch.rand(n, 1, 1, generator=self.g))
        roll = torch.randint(0, L, (n, 1), generator=self.g)
        x = x[:, 0].gather(1, (torch.arange(L)[None] + roll) % L)[:, None]
        start = torch.randint(0, L - 12, (n, 1, 1), generator=self.g)
        pos = torch.arange(L)[None, None]
        x = torch.where((pos >= start) & (pos < start + 12), torch.zeros(()), x)
        return x + 0.2 * torch.randn(x.shape, generator=self.g)


def encoder():
    return nn.Sequential(nn.Conv1d(1, 16, 7, 2, 3), nn.BatchNorm1d(16), nn.ReLU(),
                         nn.Conv1d(16, 32, 5, 2, 2), nn.BatchNorm1d(32), nn.ReLU(),
                         nn.AdaptiveAvgPool1d(1), nn.Flatten())


def mlp(i, o):
    return nn.Sequential(nn.Linear(i, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, o))


def loss_fn(p, z):
    return 2 - 2 * F.cosine_similarity(p, z, dim=-1).mean()


@torch.no_grad()
def probe(net, bank, test):
    enc = copy.deepcopy(net[0]).eval()
    f, q = F.normalize(enc(bank[0]), dim=1), F.normalize(enc(test[0]), dim=1)
    cent = torch.stack([f[bank[1] == c].mean(0) for c in range(6)])
    return (torch.cdist(q, cent).argmin(1) == test[1]).float().mean().item()


def main(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(args.seed)
    online, predictor = nn.Sequential(encoder(), mlp(32, 32)), mlp(32, 32)
    target = copy.deepcopy(online).requires_grad_(False)
    opt = torch.optim.Adam([*online.parameters(), *predictor.parameters()], lr=args.lr)
    aug, bank, test = Augment(g), windows(600, g), windows(400, g)
    for step in range(1, args.steps + 1):
        x, _ = windows(64, g)
        view1, view2 = aug(x), aug(x)
        pred1, pred2 = predictor(online(view1)), predictor(online(view2))
        with torch.no_grad():
            proj1, proj2 = target(view1), target(view2)
        loss = (loss_fn(pred1, proj1) + loss_fn(pred2, proj2)) / 2
        opt.zero_grad()
        loss.backward()
        opt.step()
        with torch.no_grad():
            for o, t in zip(online.parameters(), target.parameters()):
                t.lerp_(o, 1 - args.tau)
        if step % 50 == 0:
            cross = F.cosine_similarity(pred1, proj2, dim=-1).mean().item()
            print(f"step {step} loss {loss.item():.4f} cross-view cos {cross:.3f} probe {probe(online, bank, test):.3f}")


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--steps", type=int, default=300)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--tau", type=float, default=0.98)
    ap.add_argument("--seed", type=int, default=17)
    main(ap.parse_args())
