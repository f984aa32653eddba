"""Generalised KD: part of the batches are sampled from the student itself."""
import random
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(616)
random.seed(616)
V, PROMPT, TOTAL = 16, 3, 14
lang = torch.softmax(2.6 * torch.randn(V, V, V), -1)


def corpus(n):
    ids = torch.randint(V, (n, 2))
    while ids.size(1) < TOTAL:
        ids = torch.cat([ids, torch.multinomial(lang[ids[:, -2], ids[:, -1]], 1)], 1)
    return ids


class LM(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.e, self.g, self.o = nn.Embedding(V, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, V)

    def forward(self, ids, state=None, return_state=False):
        h, state = self.g(self.e(ids), state)
        return (self.o(h), state) if return_state else self.o(h)

    @torch.no_grad()
    def generate(self, prompt, length):
        ids = prompt
        logits, st = self(prompt, return_state=True)
        while ids.size(1) < length:
            nxt = torch.multinomial(logits[:, -1].softmax(-1), 1)
            ids = torch.cat([ids, nxt], 1)
            logits, st = self(nxt, st, return_state=True)
        return ids


def response_labels(ids):
    labels = ids[:, 1:].clone()
    labels[:, :PROMPT - 1] = -100
    return labels


class GKD:
    def __init__(self, student, teacher, lmbda=0.6, sft_alpha=0.5):
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        self.lmbda, self.sft_alpha = lmbda, sft_alpha
        self.opt = torch.optim.Adam(student.parameters(), lr=5e-3)

    def compute_loss(self, ids, on_policy):
        labels = response_labels(ids)
        keep = labels != -100
        logits = self.student(ids[:, :-1])
        with torch.no_grad():
            ref = self.teacher(ids[:, :-1]).log_softmax(-1)
        kl = F.kl_div(logits.log_softmax(-1), ref, log_target=True, reduction="none").sum(-1)
        loss = kl[keep].mean()
        if self.sft_alpha > 0 and not on_policy:
            loss = loss + self.sft_alpha * F.cross_entropy(logits[keep], labels[keep])
        return loss

    def training_step(self):
        ids, on_policy = corpus(32), random.random() < self.lmbda
        if on_policy:
            ids = self.student.generate(ids[:, :PROMPT], TOTAL)
        loss = self.compute_loss(ids, on_policy)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return on_policy, loss.item()


@torch.no_grad()
def nll(m, ids):
    lab = response_labels(ids)
    return F.cross_entropy(m(ids[:, :-1])[lab != -100], lab[lab != -100]).item()


held = corpus(400)
teacher = LM(80)
opt = torch.optim.Adam(teacher.parameters(), lr=6e-3)
for _ in range(200):
    ids = corpus(48)
    opt.zero_grad()
    F.cross_entropy(teacher(ids[:, :-1]).transpose(1, 2), ids[:, 1:]).backward()
    opt.step()
student = LM(32)
print("teacher", nll(teacher, held), "student", nll(student, held))
trainer = GKD(student, teacher)
for step in range(220):
    kind, value = trainer.training_step()
    if step % 44 == 0:
        print(step, "on-policy" if kind else "data", round(value, 4))
print("student", nll(student, held))
