"""Memory saving JSD: logits are produced chunk by chunk from hidden states."""
import math
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(1999)
V, T, CHUNK = 24, 18, 96
gram = torch.softmax(2.4 * torch.randn(V, V), -1)
gram2 = torch.softmax(2.4 * torch.randn(V, V), -1)


def text(n, table):
    s = torch.randint(V, (n, 1))
    while s.size(1) < T:
        s = torch.cat([s, torch.multinomial(table[s[:, -1]], 1)], 1)
    return s


class LoraHead(nn.Linear):
    """Frozen output projection plus a trainable low rank delta."""

    def __init__(self, dense, rank):
        super().__init__(dense.in_features, dense.out_features, bias=False)
        self.weight = nn.Parameter(dense.weight.detach().clone(), requires_grad=False)
        self.lora_a = nn.Parameter(torch.randn(rank, dense.in_features) / math.sqrt(dense.in_features))
        self.lora_b = nn.Parameter(torch.zeros(dense.out_features, rank))

    def forward(self, h):
        return F.linear(h, self.weight) + F.linear(F.linear(h, self.lora_a), self.lora_b)


class GRULM(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.embed = nn.Embedding(V, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.lm_head = nn.Linear(dim, V, bias=False)

    def hidden(self, ids):
        return self.gru(self.embed(ids))[0]

    def forward(self, ids):
        return self.lm_head(self.hidden(ids))


def jsd(log_s, log_t, beta=0.5):
    log_m = torch.logsumexp(torch.stack([log_s + math.log(1 - beta), log_t + math.log(beta)]), 0)
    to_t = F.kl_div(log_m, log_t, log_target=True, reduction="none").sum(-1)
    to_s = F.kl_div(log_m, log_s, log_target=True, reduction="none").sum(-1)
    return beta * to_t + (1 - beta) * to_s


def chunked_jsd(student, teacher, ids):
    h_s = student.hidden(ids).flatten(0, 1)
    with torch.no_grad():
        h_t = teacher.hidden(ids).flatten(0, 1)
    total = 0.0
    for hs, ht in zip(h_s.split(CHUNK), h_t.split(CHUNK)):
        s = F.linear(hs, student.lm_head.weight).log_softmax(-1)
        with torch.no_grad():
            t = F.linear(ht, teacher.lm_head.weight).log_softmax(-1)
        total = total + jsd(s, t).sum()
    return total / h_s.size(0)


def fit(model, table, steps, lr=6e-3):
    opt = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        ids = text(32, table)
        opt.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        opt.step()


@torch.no_grad()
def nll(model, table):
    ids = text(300, table)
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()


teacher = GRULM(64)
fit(teacher, gram2, 160)
teacher.eval().requires_grad_(False)
student = GRULM(24)
fit(student, gram, 80)
student.lm_head = LoraHead(student.lm_head, 6)
print("teacher", nll(teacher, gram2), "student", nll(student, gram2))
for p in student.embed.parameters():
    p.requires_grad_(False)
opt = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=6e-3)
for it in range(180):
    loss = chunked_jsd(student, teacher, text(24, gram2)[:, :-1])
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()
    if it % 45 == 0:
        print(it, "jsd", loss.item())
print("student", nll(student, gram2))
