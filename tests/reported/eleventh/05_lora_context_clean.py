"""Context distillation with hand-written low-rank adapters.

A small causal model has learnt several "modes", chosen by the first token.  The
adapters shall make mode 2 its default: with the neutral first token, the adapted
model should answer as the plain base model does when it is given mode 2.
"""
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

V, MODES, NEUTRAL, T = 16, 4, 4, 14      # prefix ids 0..3 are modes, 4 is neutral


class LoRALinear(nn.Module):
    def __init__(self, base, rank=4, alpha=8.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features ** 0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale, self.active = alpha / rank, True

    def forward(self, x):
        y = self.base(x)
        if self.active:
            y = y + self.scale * (x @ self.down.t() @ self.up.t())
        return y


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.fc2(F.gelu(self.fc1(self.n2(x))))


class ModeLM(nn.Module):
    def __init__(self, d=48, depth=2):
        super().__init__()
        self.prefix, self.tok = nn.Embedding(MODES + 1, d), nn.Embedding(V, d)
        self.pos = nn.Parameter(0.02 * torch.randn(T + 1, d))
        self.blocks = nn.ModuleList(Block(d) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, V)

    def forward(self, prefix, ids):
        h = torch.cat([self.prefix(prefix)[:, None], self.tok(ids)], 1)
        h = h + self.pos[: h.size(1)]
        for b in self.blocks:
            h = b(h)
        return self.head(self.norm(h))[:, 1:]       # answer at each real token


def add_adapters(model):
    model.requires_grad_(False)
    for b in model.blocks:
        b.qkv, b.fc1, b.fc2 = LoRALinear(b.qkv), LoRALinear(b.fc1), LoRALinear(b.fc2)
    model.head = LoRALinear(model.head)
    return [p for p in model.parameters() if p.requires_grad]


@contextmanager
def adapters_off(model):
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
    for m in layers:
        m.active = False
    try:
        yield model
    finally:
        for m in layers:
            m.active = True


def batch(n, gen):
    ids = torch.randint(0, V, (n, T), generator=gen)
    mode = torch.randint(0, MODES, (n,), generator=gen)
    labels = (ids * torch.tensor([1, 3, 5, 7])[mode][:, None] + mode[:, None]) % V
    return ids, mode, labels


def main():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    model = ModeLM()
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(260):
        ids, mode, labels = batch(48, gen)
        shown = torch.where(torch.rand(48, generator=gen) < 0.2, torch.tensor(NEUTRAL), mode)
        loss = F.cross_entropy(model(shown, ids).transpose(1, 2), labels)
        opt.zero_grad(); loss.backward(); opt.step()
    print(f"base model: final loss {loss.item():.3f}")

    trainable = add_adapters(model)
    ids, _, _ = batch(256, torch.Generator().manual_seed(9))
    wanted = (ids * 5 + 2) % V
    neutral, two = torch.full((256,), NEUTRAL), torch.full((256,), 2)
    with torch.no_grad(), adapters_off(model):
        before = model(two, ids)
        print(f"base, mode 2 given: acc {(before.argmax(-1) == wanted).float().mean():.3f}")
    opt = torch.optim.Adam(trainable, lr=8e-3)
    for step in range(100):
        x, _, _ = batch(48, gen)
        with torch.no_grad(), adapters_off(model):
            target = F.log_softmax(model(torch.full((48,), 2), x), -1)
        out = F.log_softmax(model(torch.full((48,), NEUTRAL), x), -1)
        kd = F.kl_div(out.flatten(0, 1), target.flatten(0, 1), reduction="batchmean", log_target=True)
        opt.zero_grad(); kd.backward(); opt.step()
        if step % 25 == 24:
            print(f"step {step + 1} kd {kd.item():.4f}")
    with torch.no_grad():
        acc = (model(neutral, ids).argmax(-1) == wanted).float().mean().item()
        gap = (F.softmax(model(neutral, ids), -1) - F.softmax(before, -1)).abs().sum(-1).mean().item()
    print(f"adapted, neutral: acc {acc:.3f}, L1 distance to original base with mode 2 {gap:.4f}")


if __name__ == "__main__":
    main()
