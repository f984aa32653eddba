"""Cross-encoder -> bi-encoder, listwise softmax over the candidates of each query."""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(17)


@dataclass(frozen=True)
class Config:
    vocab: int = 80
    q_len: int = 5
    d_len: int = 9
    candidates: int = 8
    temperature: float = 3.0
    label_weight: float = 0.2
    steps: int = 120


class Lists:
    """A document is relevant when its topic words agree with those of the query."""

    def __init__(self, cfg, seed):
        self.cfg, self.g = cfg, torch.Generator().manual_seed(seed)
        self.topic = torch.arange(cfg.vocab) % 10

    def words(self, topics, length, purity):
        noise = torch.rand(*topics.shape, length, generator=self.g) > purity
        word = topics.unsqueeze(-1) + 10 * torch.randint(0, 8, (*topics.shape, length), generator=self.g)
        return torch.where(noise, torch.randint(0, self.cfg.vocab, word.shape, generator=self.g), word)

    def batch(self, n):
        c = self.cfg
        tq = torch.randint(0, 10, (n,), generator=self.g)
        shift = torch.stack([torch.randperm(9, generator=self.g)[:c.candidates - 1] + 1 for _ in range(n)])
        td = torch.cat([tq.unsqueeze(1), (tq.unsqueeze(1) + shift) % 10], 1)
        order = torch.rand(n, c.candidates, generator=self.g).argsort(1)
        td = td.gather(1, order)
        positive = (order == 0).float().argmax(1)
        return self.words(tq, c.q_len, 0.7), self.words(td, c.d_len, 0.5), positive


class CrossEncoder(nn.Module):
    def __init__(self, cfg, dim=48):
        super().__init__()
        self.emb = nn.Embedding(cfg.vocab, dim)
        self.mlp = nn.Sequential(nn.Linear(3 * dim, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 1))

    def forward(self, q, d):
        q = self.emb(q).mean(-2).unsqueeze(1).expand(-1, d.size(1), -1)
        d = self.emb(d).mean(-2)
        return self.mlp(torch.cat([q, d, q * d], -1)).squeeze(-1)


class BiEncoder(nn.Module):
    def __init__(self, cfg, dim=12):
        super().__init__()
        self.emb = nn.Embedding(cfg.vocab, dim)
        self.out = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def encode(self, ids):
        return F.normalize(self.out(self.emb(ids).mean(-2)), dim=-1)

    def forward(self, q, d):
        return self.log_scale.exp() * (self.encode(q).unsqueeze(1) * self.encode(d)).sum(-1)


class ListwiseLoss(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.t, self.w = cfg.temperature, cfg.label_weight

    def forward(self, scores, reference, positive):
        log_p = F.log_softmax(scores / self.t, dim=1)
        q = F.softmax(reference / self.t, dim=1)
        kl = F.kl_div(log_p, q, reduction="batchmean") * self.t ** 2
        return (1 - self.w) * kl + self.w * F.cross_entropy(scores, positive)


@torch.no_grad()
def top1(ranker, data):
    ranker.eval()
    q, d, pos = data
    return (ranker(q, d).argmax(1) == pos).float().mean().item()


cfg = Config()
train, dev = Lists(cfg, 1), Lists(cfg, 2).batch(500)
cross = CrossEncoder(cfg)
opt = torch.optim.Adam(cross.parameters(), lr=5e-3)
cross.train()
for _ in range(200):
    q, d, pos = train.batch(64)
    opt.zero_grad()
    F.cross_entropy(cross(q, d), pos).backward()
    opt.step()
print(f"cross-encoder top1 {top1(cross, dev):.3f}")
cross.eval().requires_grad_(False)

bi, criterion = BiEncoder(cfg), ListwiseLoss(cfg)
opt = torch.optim.Adam(bi.parameters(), lr=1e-2)
bi.train()
for step in range(cfg.steps):
    q, d, pos = train.batch(64)
    with torch.no_grad():
        reference = cross(q, d)
    loss = criterion(bi(q, d), reference, pos)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 30 == 0:
        print(f"step {step} loss {loss.item():.3f}")
print(f"bi-encoder top1 {top1(bi, dev):.3f}")
