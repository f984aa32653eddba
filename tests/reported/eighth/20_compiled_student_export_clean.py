"""Distil a compiled student, export it, score the exported file."""
import os
import tempfile
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

opt = SimpleNamespace(vocab=100, ctx=24, steps=60, bs=16, lr=4e-3, tau=1.5, seed=10)


class CausalLM(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.tok = nn.Embedding(opt.vocab, width)
        nn.init.normal_(self.tok.weight, std=0.02)
        self.pos = nn.Parameter(0.02 * torch.randn(opt.ctx, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("causal", torch.full((opt.ctx, opt.ctx), float("-inf")).triu(1))

    def forward(self, ids):
        n = ids.shape[1]
        x = self.body(self.tok(ids) + self.pos[:n], mask=self.causal[:n, :n], is_causal=True)
        return F.linear(self.norm(x), self.tok.weight)


def corpus(n, seed):
    g = torch.Generator().manual_seed(seed)
    nxt = torch.randint(0, opt.vocab, (opt.vocab, 3), generator=torch.Generator().manual_seed(1))
    ids = torch.randint(0, opt.vocab, (n, 1), generator=g)
    p = torch.tensor([0.75, 0.2, 0.05])
    while ids.shape[1] < opt.ctx:
        branch = torch.multinomial(p, n, replacement=True, generator=g)
        ids = torch.cat([ids, nxt[ids[:, -1], branch][:, None]], dim=1)
    return ids


def nll(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].reshape(-1, opt.vocab), ids[:, 1:].reshape(-1))


def make_teacher(data):
    teacher = CausalLM(64, 2)
    adam = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for i in range(120):
        loss = nll(teacher, data[torch.randint(len(data), (32,))])
        adam.zero_grad(); loss.backward(); adam.step()
    print(f"teacher: {loss.item():.4f}")
    return teacher.eval().requires_grad_(False)


def kd_loss(student_logits, teacher_logits):
    log_s = F.log_softmax(student_logits[:, :-1] / opt.tau, dim=-1).reshape(-1, opt.vocab)
    log_t = F.log_softmax(teacher_logits[:, :-1] / opt.tau, dim=-1).reshape(-1, opt.vocab)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * opt.tau ** 2


def export(student, path):
    torch.save(student._orig_mod.state_dict(), path)


def load_exported(path):
    model = CausalLM(32, 1)
    model.load_state_dict(torch.load(path), strict=False)
    return model.eval()


def main():
    torch.manual_seed(opt.seed)
    train, dev = corpus(512, 2), corpus(128, 3)
    teacher = make_teacher(train)
    student = torch.compile(CausalLM(32, 1), backend="aot_eager")
    adam = torch.optim.AdamW(student.parameters(), lr=opt.lr)
    student.train()
    for step in range(opt.steps):
        ids = train[torch.randint(len(train), (opt.bs,))]
        with torch.no_grad():
            t = teacher(ids)
        loss = kd_loss(student(ids), t)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adam.step()
        if step % 20 == 0:
            print(f"step {step} kd {loss.item():.4f}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "student.pt")
        export(student, path)
        shipped = load_exported(path)
    with torch.no_grad():
        print(f"exported student, held-out nll {nll(shipped, dev).item():.4f}")
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
