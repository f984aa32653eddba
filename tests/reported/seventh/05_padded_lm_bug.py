"""Sequence distillation of a GRU language model on variable-length toy sentences."""
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(21)
torch.set_num_threads(1)
PAD, VOCAB, MAXLEN = 0, 30, 24
GEN = torch.Generator().manual_seed(4)
TRANS = torch.softmax(2.5 * torch.randn(VOCAB, VOCAB, generator=GEN), -1)
TRANS[:, PAD] = 0.0


def corpus(n):
    ids = torch.full((n, MAXLEN), PAD)
    lens = torch.randint(4, MAXLEN + 1, (n,), generator=GEN)
    tok = torch.randint(1, VOCAB, (n,), generator=GEN)
    for t in range(MAXLEN):
        ids[:, t] = torch.where(t < lens, tok, torch.tensor(PAD))
        tok = torch.multinomial(TRANS[tok], 1, generator=GEN)[:, 0]
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


class TinyLM(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, width, padding_idx=PAD)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, VOCAB)

    def forward(self, input_ids):
        return self.out(self.rnn(self.emb(input_ids))[0])


def batches(data, size):
    order = torch.randperm(len(data["input_ids"]), generator=GEN)
    for i in range(0, len(order), size):
        yield {k: v[order[i:i + size]] for k, v in data.items()}


def shift(batch):
    labels = batch["input_ids"][:, 1:].clone()
    labels[batch["attention_mask"][:, 1:] == 0] = -100
    return batch["input_ids"][:, :-1], labels


def kd_terms(student, teacher, batch, T=2.0):
    inp, labels = shift(batch)
    s = student(inp)
    with torch.no_grad():
        t = teacher(inp)
    ce = F.cross_entropy(s.flatten(0, 1), labels.flatten(), ignore_index=-100)
    per_token = F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="none").sum(-1)
    mask = (labels != -100).float()
    kd = per_token.mean()
    return ce, kd * T * T, s, t, mask


train, val = corpus(1500), corpus(300)
teacher = TinyLM(64)
opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for epoch in range(3):
    for b in batches(train, 32):
        inp, labels = shift(b)
        opt.zero_grad()
        F.cross_entropy(teacher(inp).flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
        opt.step()
teacher.eval().requires_grad_(False)

student = TinyLM(20)
opt = torch.optim.Adam(student.parameters(), lr=4e-3)
for epoch in range(4):
    student.train()
    for b in batches(train, 32):
        ce, kd, *_ = kd_terms(student, teacher, b)
        opt.zero_grad()
        (0.2 * ce + 0.8 * kd).backward()
        opt.step()
    student.eval()
    with torch.no_grad():
        vce, _, s, t, mask = kd_terms(student, teacher, val)
        gap = (F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True).sum(-1) * mask)
    print(f"epoch {epoch} ce {ce.item():.3f} kd {kd.item():.4f} | val ppl {vce.exp().item():.3f} "
          f"val kl {(gap.sum() / mask.sum()).item():.4f}")
