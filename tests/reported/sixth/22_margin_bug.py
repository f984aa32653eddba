"""Cross-encoder margins distilled into a two-tower ranker (query, document_one, document_two)."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(29)
DIM = 16
warp = torch.randn(DIM, DIM) / DIM ** 0.5


def triples(n):
    q, a, b = torch.randn(3, n, DIM)
    return q, a, b


def relevance(q, d):
    return (torch.tanh(q @ warp) * d).sum(-1) + 0.5 * (q * d).abs().mean(-1)


class CrossEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(DIM, 48)
        self.mlp = nn.Sequential(nn.Linear(48 * 2 + DIM, 96), nn.ReLU(), nn.Linear(96, 1))

    def forward(self, q, d):
        h, g = torch.tanh(self.lift(q)), torch.tanh(self.lift(d))
        return self.mlp(torch.cat([h * g, h - g, q * d], -1)).squeeze(-1) + (h * g).sum(-1)


class TwoTower(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, width))
        self.doc = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, width))

    def forward(self, q, d):
        return (self.query(q) * self.doc(d)).sum(-1)


class MarginMSE(nn.Module):
    def __init__(self, ranker):
        super().__init__()
        self.ranker = ranker

    def forward(self, q, one, two, gold_one, gold_two):
        margin = self.ranker(q, one) - self.ranker(q, two)
        gold = gold_one - gold_two
        return F.mse_loss(margin.abs(), gold.abs())


@torch.no_grad()
def pair_accuracy(model):
    q, a, b = triples(3000)
    truth = relevance(q, a) > relevance(q, b)
    return ((model(q, a) > model(q, b)) == truth).float().mean().item()


cross = CrossEncoder()
opt = torch.optim.Adam(cross.parameters(), lr=3e-3)
for _ in range(500):
    q, a, b = triples(96)
    sign = (relevance(q, a) > relevance(q, b)).float()
    loss = F.binary_cross_entropy_with_logits(cross(q, a) - cross(q, b), sign)
    opt.zero_grad()
    loss.backward()
    opt.step()
cross.eval()
for p in cross.parameters():
    p.requires_grad_(False)
print("cross encoder", pair_accuracy(cross))

ranker = TwoTower()
objective = MarginMSE(ranker)
opt = torch.optim.Adam(objective.parameters(), lr=3e-3)
print("two towers", pair_accuracy(ranker))
for step in range(700):
    q, a, b = triples(64)
    loss = objective(q, a, b, cross(q, a), cross(q, b))
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 140 == 0:
        print(step, f"margin mse {loss.item():.3f} pairs {pair_accuracy(ranker):.3f}")
print("two towers", pair_accuracy(ranker))
