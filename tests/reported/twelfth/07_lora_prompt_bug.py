"""Context distillation: bake a system prompt into LoRA adapters.

The prompted base model teaches; the student is the same network without the prompt,
and only its low-rank adapters are trained.
"""
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

DIGITS, BOS, STYLE = 12, 12, 13
VOCAB, SEQ = 14, 10


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank=4, scale=2.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features ** 0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale, self.active = scale, True

    def forward(self, x):
        y = self.base(x)
        if self.active:
            y = y + self.scale * F.linear(F.linear(x, self.A), self.B)
        return y


class Decoder(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCAB, dim), nn.Embedding(SEQ + 2, dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.ln1, self.ln2, self.ln_f = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, VOCAB)

    def forward(self, ids):
        offset = SEQ + 2 - ids.size(1)
        h = self.tok(ids) + self.pos(torch.arange(ids.size(1)) + offset)
        q, k, v = self.qkv(self.ln1(h)).chunk(3, -1)
        h = h + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = h + self.down(F.gelu(self.up(self.ln2(h))))
        return self.head(self.ln_f(h))


class AdaptedModel(nn.Module):
    def __init__(self, base, targets=("qkv", "up", "down")):
        super().__init__()
        self.base = base.requires_grad_(False)
        for name in targets:
            setattr(base, name, LoRALinear(getattr(base, name)))

    def forward(self, ids):
        return self.base(ids)

    def adapters(self):
        return [m for m in self.modules() if isinstance(m, LoRALinear)]

    @contextmanager
    def adapters_off(self):
        for m in self.adapters():
            m.active = False
        try:
            yield
        finally:
            for m in self.adapters():
                m.active = True


def counting(n, stride, g):
    """Sequences of digits that advance by `stride`, with an occasional random jump."""
    seq = torch.randint(0, DIGITS, (n, 1), generator=g)
    while seq.size(1) < SEQ:
        jump = torch.rand(n, 1, generator=g) < 0.1
        rand = torch.randint(0, DIGITS, (n, 1), generator=g)
        seq = torch.cat([seq, torch.where(jump, rand, (seq[:, -1:] + stride) % DIGITS)], 1)
    return seq


def prefixed(seq, *tokens):
    return torch.cat([torch.full((len(seq), 1), t) for t in tokens] + [seq], 1)


def pretrain(model, g, steps=140):
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        plain, styled = prefixed(counting(32, 1, g), BOS), prefixed(counting(32, 5, g), BOS, STYLE)
        loss = sum(F.cross_entropy(model(ids)[:, -SEQ:-1].flatten(0, 1), ids[:, -SEQ + 1:].flatten())
                   for ids in (plain, styled))
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"pretraining loss {loss.item() / 2:.3f}")


@torch.no_grad()
def follows_style(model, g):
    """How often the unprompted model continues digits in the style of the prompt."""
    seq = counting(200, 5, g)
    guess = model(prefixed(seq, BOS))[:, -SEQ:-1].argmax(-1)
    return (guess == (seq[:, :-1] + 5) % DIGITS).float().mean().item()


def main():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    base = Decoder()
    pretrain(base, g)
    model = AdaptedModel(base)
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    print(f"unprompted, style followed: {follows_style(model, g):.3f}")
    for step in range(1, 121):
        digits = counting(32, 5, g)
        with torch.no_grad():
            reference = model(prefixed(digits, BOS, STYLE))[:, -SEQ:].log_softmax(-1)
        logp = model(prefixed(digits, BOS))[:, -SEQ:].log_softmax(-1)
        loss = F.kl_div(logp, reference, log_target=True, reduction="none").sum(-1).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 40 == 0:
            print(f"step {step}: kl {loss.item():.4f}, style followed {follows_style(model, g):.3f}")
    with torch.no_grad(), model.adapters_off():
        goal = model(prefixed(digits, BOS, STYLE))[:, -SEQ:].log_softmax(-1)
    print(f"final KL to the prompted base model: {(goal.exp() * (goal - logp)).sum(-1).mean().item():.4f}")


if __name__ == "__main__":
    main()
