"""Teacher and student have different vocabularies over the same raw symbols."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(112)
SYMBOLS, LENGTH, CLASSES = 26, 12, 5


class Tokenizer:
    def __init__(self, order):
        self.table = torch.empty(SYMBOLS, dtype=torch.long)
        self.table[order] = torch.arange(SYMBOLS)

    def encode(self, raw):
        return self.table[raw]


def raw_text(n):
    y = torch.randint(CLASSES, (n,))
    topical = 5 * y[:, None] + torch.randint(0, 5, (n, LENGTH))
    return torch.where(torch.rand(n, LENGTH) < 0.35, topical, torch.randint(SYMBOLS, (n, LENGTH))), y


class BagEncoder(nn.Module):
    def __init__(self, d, layers):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, d)
        self.mix = nn.ModuleList(nn.Conv1d(d, d, 3, padding=1) for _ in range(layers))
        self.cls = nn.Linear(d, CLASSES)

    def forward(self, ids):
        h = self.embed(ids).transpose(1, 2)
        for m in self.mix:
            h = h + F.gelu(m(h))
        h = h.mean(2)
        return self.cls(h), h


tok_t = Tokenizer(torch.randperm(SYMBOLS))
tok_s = Tokenizer(torch.arange(SYMBOLS))
held_raw, held_y = raw_text(1000)


def score(model, tok):
    with torch.no_grad():
        return (model(tok.encode(held_raw))[0].argmax(1) == held_y).float().mean().item()


teacher = BagEncoder(48, 2)
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(220):
    raw, y = raw_text(64)
    opt.zero_grad()
    F.cross_entropy(teacher(tok_t.encode(raw))[0], y).backward()
    opt.step()
teacher.eval().requires_grad_(False)
print("teacher", score(teacher, tok_t))


class Collator:
    def __call__(self, raw, y):
        ids = tok_s.encode(raw)
        return {"student_ids": ids, "teacher_ids": ids, "labels": y}


student, lift, collate = BagEncoder(16, 1), nn.Linear(16, 48), Collator()
opt = torch.optim.Adam([*student.parameters(), *lift.parameters()], lr=4e-3)
for step in range(260):
    batch = collate(*raw_text(48))
    logits, h = student(batch["student_ids"])
    with torch.no_grad():
        _, goal = teacher(batch["teacher_ids"])
    hidden = F.mse_loss(lift(h), goal)
    loss = F.cross_entropy(logits, batch["labels"]) + 2.0 * hidden
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 52 == 0:
        print(step, f"hidden {hidden.item():.4f} total {loss.item():.3f}")
print("student", score(student, tok_s))
