"""Sentence-pair distillation: segment-aware teacher, segment-free student (DistilBERT-like setup)."""
import inspect
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(9)
torch.set_num_threads(1)
g = torch.Generator().manual_seed(9)
VOCAB, HALF = 40, 7
RANK = torch.randn(VOCAB, generator=g)


def make_pairs(n):
    a, b = (torch.randint(1, VOCAB, (n, HALF), generator=g) for _ in range(2))
    gap = RANK[b].mean(1) - RANK[a].mean(1)
    ids = torch.cat([a, b], 1)
    seg = torch.cat([torch.zeros(n, HALF), torch.ones(n, HALF)], 1).long()
    return {"input_ids": ids, "token_type_ids": seg, "labels": (gap > -0.25).long() + (gap > 0.25).long()}


class Encoder(nn.Module):
    def __init__(self, d, positional):
        super().__init__()
        self.word = nn.Embedding(VOCAB, d)
        self.pos = nn.Embedding(2 * HALF, d) if positional else None
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d), nn.GELU())
        self.cls = nn.Linear(d, 3)

    def pool(self, h):
        if self.pos is not None:
            h = h * (1 + self.pos(torch.arange(h.shape[1])))
        return self.cls(self.ff(h).mean(1))


class SegmentEncoder(Encoder):
    def __init__(self, d):
        super().__init__(d, positional=False)
        self.segment = nn.Embedding(2, d)

    def forward(self, input_ids, token_type_ids=None):
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return self.pool(self.word(input_ids) * (1 + self.segment(token_type_ids)))


class PlainEncoder(Encoder):
    def forward(self, input_ids):
        return self.pool(self.word(input_ids))


def select(batch, model):
    return {k: v for k, v in batch.items() if k in inspect.signature(model.forward).parameters}


def loop(data, size):
    for i in torch.randperm(len(data["labels"]), generator=g).split(size):
        yield {k: v[i] for k, v in data.items()}


@torch.no_grad()
def accuracy(model, data):
    return (model.eval()(**select(data, model)).argmax(1) == data["labels"]).float().mean().item()


train, val = make_pairs(4000), make_pairs(1000)
teacher = SegmentEncoder(32)
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for epoch in range(5):
    for batch in loop(train, 64):
        opt.zero_grad()
        F.cross_entropy(teacher(**select(batch, teacher)), batch["labels"]).backward()
        opt.step()
print(f"teacher acc {accuracy(teacher, val):.3f}")

student, T, alpha = PlainEncoder(12, positional=True), 2.0, 0.9
opt = torch.optim.Adam(student.parameters(), lr=4e-3)
for epoch in range(7):
    student.train()
    total = 0.0
    for batch in loop(train, 64):
        student_inputs = select(batch, student)
        s = student(**student_inputs)
        with torch.no_grad():
            t = teacher(**select(batch, teacher))
        kd = F.kl_div((s / T).log_softmax(-1), (t / T).softmax(-1), reduction="batchmean") * T ** 2
        loss = alpha * kd + (1 - alpha) * F.cross_entropy(s, batch["labels"])
        opt.zero_grad()
        loss.backward()
        opt.step()
        total += kd.item()
    print(f"epoch {epoch} kd {total / 63:.4f} val acc {accuracy(student, val):.3f}")
