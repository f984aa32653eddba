"""Sparse distillation: top-k log-probabilities of the large LM are stored on disk, then replayed."""
import math
import os
import tempfile

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(29)
V, L, K, N = 64, 20, 8, 768


def grammar():
    p = torch.zeros(V, V)
    for v in range(V):
        p[v, torch.randperm(V)[:6]] = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    return p


def sentences(p, n, g):
    ids = [torch.randint(0, V, (n,), generator=g)]
    for _ in range(L - 1):
        ids.append(torch.multinomial(p[ids[-1]], 1, generator=g).squeeze(1))
    return torch.stack(ids, 1)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, d))
        return x + self.ff(self.n2(x))


class Lm(nn.Module):
    def __init__(self, d, layers):
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, d), nn.Embedding(L, d)
        self.blocks = nn.Sequential(*[Block(d, 4) for _ in range(layers)])
        self.out = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, V))

    def forward(self, ids):
        return self.out(self.blocks(self.tok(ids) + self.pos.weight[:ids.size(1)]))


def next_token_loss(net, ids):
    return F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def write_store(net, ids, path):
    net.eval()
    vals, idxs = [], []
    for chunk in ids.split(128):
        logp = net(chunk[:, :-1]).log_softmax(-1)
        val, idx = logp.topk(K, dim=-1)
        idx, order = idx.sort(-1)
        val = val.gather(-1, order)
        vals.append(val.half().numpy())
        idxs.append(idx.to(torch.uint8).numpy())
    np.savez_compressed(path, val=np.concatenate(vals), idx=np.concatenate(idxs))


def sparse_kl(logits, val, idx):
    """KL over the stored support, the teacher renormalised on it."""
    logp = logits.log_softmax(-1).gather(-1, idx)
    logq = val - val.logsumexp(-1, keepdim=True)
    return (logq.exp() * (logq - logp)).sum(-1).mean()


def epochs_of(n, bs, count, g):
    for _ in range(count):
        yield from torch.randperm(n, generator=g).split(bs)


def main():
    g = torch.Generator().manual_seed(1)
    p = grammar()
    train, test = sentences(p, N, g), sentences(p, 200, g)

    large = Lm(64, 2)
    opt = torch.optim.AdamW(large.parameters(), lr=3e-3)
    large.train()
    for _ in range(250):
        opt.zero_grad()
        next_token_loss(large, sentences(p, 48, g)).backward()
        opt.step()

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "topk.npz")
        write_store(large, train, path)
        with np.load(path) as store:
            val = torch.from_numpy(store["val"]).float()
            idx = torch.from_numpy(store["idx"]).long()
    with torch.no_grad():
        print(f"large test nll {next_token_loss(large, test):.3f} (uniform {math.log(V):.3f})")

    tiny = Lm(32, 1)
    opt = torch.optim.AdamW(tiny.parameters(), lr=4e-3)
    for step, rows in enumerate(epochs_of(N, 48, 10, g)):
        tiny.train()
        loss = sparse_kl(tiny(train[rows, :-1]), val[rows], idx[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 40 == 0:
            print(f"step {step} kl {loss.item():.3f}")
    tiny.eval()
    with torch.no_grad():
        print(f"tiny test nll {next_token_loss(tiny, test):.3f}")


main()
