"""Quantisation-aware distillation of a small decoder: fake-quant student, full-precision teacher."""
import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, DIM, CONTEXT = 72, 64, 24


class FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, bits):
        top = 2 ** (bits - 1) - 1
        scale = w.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / top
        return (w / scale).round().clamp(-top, top) * scale

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class QuantLinear(nn.Linear):
    def __init__(self, src, bits):
        super().__init__(src.in_features, src.out_features, bias=src.bias is not None)
        self.load_state_dict(src.state_dict())
        self.bits = bits

    def forward(self, x):
        return F.linear(x, FakeQuant.apply(self.weight, self.bits), self.bias)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 4, -1).transpose(1, 2) for t in self.qkv(self.n1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, DIM)
        x = x + self.proj(y)
        return x + self.down(F.gelu(self.up(self.n2(x))))


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCAB, DIM), nn.Embedding(CONTEXT, DIM)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, ids):
        x = self.tok(ids) + self.pos.weight[:ids.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def quantize_(model, bits, skip=("head",)):
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Linear) and name not in skip:
            setattr(model, name, QuantLinear(child, bits))
        else:
            quantize_(child, bits, skip)
    return model


def text(n, gen):
    table = torch.randint(0, VOCAB, (VOCAB, VOCAB), generator=torch.Generator().manual_seed(0)) % 5
    rows = [torch.randint(0, VOCAB, (n,), generator=gen) for _ in range(2)]
    while len(rows) < CONTEXT:
        rows.append((rows[-1] + table[rows[-2], rows[-1]] * 7 + (torch.rand(n, generator=gen) < 0.1)) % VOCAB)
    return torch.stack(rows, dim=1)


def nll(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def main(bits=3, steps=80):
    torch.manual_seed(12)
    gen = torch.Generator().manual_seed(12)
    model = TinyGPT()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = nll(model, text(32, gen))
        opt.zero_grad(); loss.backward(); opt.step()
    print(f"full precision nll {loss.item():.4f}")

    student = quantize_(model, bits)
    teacher = copy.deepcopy(student)
    teacher.eval().requires_grad_(False)
    dev = text(64, gen)
    print(f"{bits}-bit nll before {nll(student, dev).item():.4f}")
    opt = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.0)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
    student.train()
    for step in range(steps):
        ids = text(24, gen)
        with torch.no_grad():
            log_t = teacher(ids).log_softmax(-1)
        log_s = student(ids).log_softmax(-1)
        loss = F.kl_div(log_s.flatten(0, 1), log_t.flatten(0, 1), reduction="batchmean", log_target=True)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 20 == 0:
            print(f"step {step} kl {loss.item():.5f}")
    print(f"{bits}-bit nll after {nll(student, dev).item():.4f}")
    print(f"final loss {loss.item():.5f}")


if __name__ == "__main__":
    main()
