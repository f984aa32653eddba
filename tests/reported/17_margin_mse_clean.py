"""Distil a cross-encoder reranker into a bi-encoder with the margin-MSE objective."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(17)
VOC = 80


class CrossEncoder(nn.Module):
    def __init__(self, dim=48):
        super().__init__()
        self.emb = nn.Embedding(VOC, dim)
        self.ff = nn.Sequential(nn.Linear(3 * dim, 64), nn.ReLU(), nn.Linear(64, 1))
        self.activation_fn = nn.Sigmoid()

    def forward(self, query, doc):
        q, d = self.emb(query).mean(1), self.emb(doc).mean(1)
        return self.ff(torch.cat([q, d, q * d], -1)).squeeze(-1)

    @torch.no_grad()
    def predict(self, query, doc, activation_fn=None):
        act = activation_fn or self.activation_fn
        return act(self(query, doc))


class BiEncoder(nn.Module):
    def __init__(self, dim=24):
        super().__init__()
        self.emb = nn.EmbeddingBag(VOC, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, ids):
        return self.proj(self.emb(ids))


def triplets(n=32):
    topic = torch.randint(0, 10, (n, 1))
    other = (topic + torch.randint(1, 10, (n, 1))) % 10
    def pick(t, k):
        return t * 8 + torch.randint(0, 8, (n, k))
    return pick(topic, 4), pick(topic, 7), pick(other, 7)


teacher = CrossEncoder()
opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for _ in range(100):
    q, p, n = triplets()
    scores = torch.cat([teacher(q, p), teacher(q, n)])
    loss = F.binary_cross_entropy_with_logits(scores, torch.cat([torch.ones(32), torch.zeros(32)]))
    opt.zero_grad(); loss.backward(); opt.step()
teacher.eval()

student = BiEncoder()
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
for step in range(120):
    query, pos, neg = triplets()
    gold = teacher.predict(query, pos, nn.Identity()) - teacher.predict(query, neg, nn.Identity())
    eq, ep, en = student(query), student(pos), student(neg)
    margin = (eq * ep).sum(-1) - (eq * en).sum(-1)
    loss = F.mse_loss(margin, gold)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 30 == 0:
        print(f"{step:4d} margin-mse {loss.item():.4f}")
with torch.no_grad():
    q, p, n = triplets(400)
    win = ((student(q) * (student(p) - student(n))).sum(-1) > 0).float().mean()
print(f"pairs ranked right {win:.4f}")
