"""Intermediate-layer distillation of a four-block transformer into two blocks."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(1234)
VOC, LEN, CLS = 30, 10, 4


def data(n):
    """Label: which of four trigger words comes last."""
    ids = torch.randint(4, VOC, (n, LEN))
    for _ in range(3):
        ids[torch.arange(n), torch.randint(LEN, (n,))] = torch.randint(4, (n,))
    where = torch.where(ids < 4, torch.arange(LEN), -1)
    last = where.argmax(1)
    return ids, ids[torch.arange(n), last]


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, h):
        q, k, v = self.qkv(self.n1(h)).chunk(3, -1)
        score = q @ k.transpose(1, 2) / q.size(-1) ** 0.5
        h = h + self.proj(score.softmax(-1) @ v)
        return h + self.ff(self.n2(h)), score


class Encoder(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOC, d), nn.Parameter(0.3 * torch.randn(LEN, d))
        self.blocks = nn.ModuleList(Block(d) for _ in range(n))
        self.cls = nn.Linear(d, CLS)

    def forward(self, ids):
        h = self.tok(ids) + self.pos
        hidden, attention = [h], []
        for b in self.blocks:
            h, s = b(h)
            hidden.append(h)
            attention.append(s)
        return self.cls(h.mean(1)), hidden, attention


def layer_loss(s_hidden, t_hidden, s_att, t_att, fit):
    per_block = len(t_att) // len(s_att)
    att = sum(F.mse_loss(s.softmax(-1), t_att[(i + 1) * per_block - 1].softmax(-1)) for i, s in enumerate(s_att))
    picked = [t_hidden[0]] + [t_hidden[(i + 1) * per_block - 1] for i in range(len(s_att))]
    rep = sum(F.mse_loss(f(s), t) for f, s, t in zip(fit, s_hidden, picked))
    return 10 * att, rep


def accuracy(net):
    ids, y = held
    with torch.no_grad():
        return (net(ids)[0].argmax(1) == y).float().mean().item()


held = data(800)
teacher = Encoder(32, 4)
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(170):
    ids, y = data(64)
    opt.zero_grad()
    F.cross_entropy(teacher(ids)[0], y).backward()
    opt.step()
teacher.eval().requires_grad_(False)
student = Encoder(20, 2)
fit = nn.ModuleList(nn.Linear(20, 32) for _ in range(3))
print("teacher", accuracy(teacher))
opt = torch.optim.Adam([{"params": student.parameters()}, {"params": fit.parameters()}], lr=4e-3)
for step in range(240):
    ids, y = data(48)
    s_logits, s_hid, s_att = student(ids)
    t_logits, t_hid, t_att = teacher(ids)
    att, rep = layer_loss(s_hid, t_hid, s_att, t_att, fit)
    soft = -(t_logits.softmax(-1) * s_logits.log_softmax(-1)).sum(-1).mean()
    loss = att + rep + soft
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 60 == 0:
        print(step, f"att {att.item():.3f} rep {rep.item():.3f} soft {soft.item():.3f}")
print("student", accuracy(student))
