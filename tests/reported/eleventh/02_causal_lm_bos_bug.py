"""Next-token distillation between two small causal transformers.

The teacher was trained with a BOS token in front of every document; the student
reads the raw window, so its output i stands for token i+1 of the window.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Cfg:
    vocab: int = 32
    bos: int = 32
    window: int = 20
    batch: int = 32
    teacher_steps: int = 150
    kd_steps: int = 105
    tau: float = 1.5
    alpha: float = 0.85


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, d))
        return x + self.ff(self.n2(x))


class TinyLM(nn.Module):
    def __init__(self, n_in, n_out, d, layers, heads, max_len):
        super().__init__()
        self.tok = nn.Embedding(n_in, d)
        self.pos = nn.Parameter(torch.randn(max_len, d) * 0.02)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, n_out)

    def forward(self, ids):
        h = self.tok(ids) + self.pos[: ids.size(1)]
        for blk in self.blocks:
            h = blk(h)
        return self.head(self.norm(h))


def sampler(cfg, seed):
    table = torch.Generator().manual_seed(5)
    trans = torch.softmax(2.2 * torch.randn(cfg.vocab, cfg.vocab, generator=table), -1)
    g = torch.Generator().manual_seed(seed)
    while True:
        cols = [torch.randint(0, cfg.vocab, (cfg.batch, 1), generator=g)]
        for _ in range(cfg.window):
            cols.append(torch.multinomial(trans[cols[-1][:, 0]], 1, generator=g))
        yield torch.cat(cols, 1)


def with_bos(ids, cfg):
    return torch.cat([ids.new_full((ids.size(0), 1), cfg.bos), ids], 1)


def token_kl(s, t, tau):
    s = F.log_softmax(s / tau, -1).flatten(0, 1)
    t = F.log_softmax(t / tau, -1).flatten(0, 1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True) * tau ** 2


def main(cfg):
    torch.manual_seed(1)
    teacher = TinyLM(cfg.vocab + 1, cfg.vocab, 64, 2, 4, cfg.window + 2)
    opt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    stream = sampler(cfg, 11)
    for _ in range(cfg.teacher_steps):
        doc = next(stream)
        logits = teacher(with_bos(doc, cfg)[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), doc.flatten())
        opt.zero_grad(); loss.backward(); opt.step()
    teacher.eval()
    for p in teacher.parameters():
        p.requires_grad = False
    print(f"teacher loss {loss.item():.3f} (uniform {math.log(cfg.vocab):.3f})")

    student = TinyLM(cfg.vocab, cfg.vocab, 32, 1, 2, cfg.window)
    opt = torch.optim.AdamW(student.parameters(), lr=5e-3)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 8e-3, total_steps=cfg.kd_steps)
    stream = sampler(cfg, 12)
    for step in range(cfg.kd_steps):
        doc = next(stream)
        inputs, labels = doc[:, :-1], doc[:, 1:]
        with torch.no_grad():
            target = teacher(with_bos(inputs, cfg))[:, :-1]
        logits = student(inputs)
        kd = token_kl(logits, target, cfg.tau)
        ce = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss = cfg.alpha * kd + (1 - cfg.alpha) * ce
        opt.zero_grad(); loss.backward(); opt.step(); sched.step()
        if step % 35 == 34:
            print(f"step {step + 1:3d} kd {kd.item():.3f} ce {ce.item():.3f}")

    student.eval()
    doc = next(sampler(cfg, 77))
    with torch.no_grad():
        ce = F.cross_entropy(student(doc[:, :-1]).flatten(0, 1), doc[:, 1:].flatten())
    print(f"student held-out loss {ce.item():.3f}")


if __name__ == "__main__":
    main(Cfg())
