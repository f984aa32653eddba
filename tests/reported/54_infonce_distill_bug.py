"""Embedding distillation by InfoNCE: the positive is the teacher's embedding of the same item, negatives from a queue."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(54)
DIM_IN = 24


def info_nce(query, positive_key, negative_keys, temperature=0.1):
    query, positive_key, negative_keys = (F.normalize(v, dim=-1) for v in (query, positive_key, negative_keys))
    positive_logit = (query * positive_key).sum(dim=1)
    negative_logits = query @ negative_keys.T
    negative_lse = torch.logsumexp(negative_logits / temperature, dim=1)
    return (torch.logaddexp(positive_logit, negative_lse) - positive_logit).mean()


class Queue:
    def __init__(self, size, dim):
        self.data, self.ptr = F.normalize(torch.randn(size, dim), dim=-1), 0

    def push(self, keys):
        idx = (self.ptr + torch.arange(len(keys))) % len(self.data)
        self.data[idx] = keys
        self.ptr = int((self.ptr + len(keys)) % len(self.data))


def encoder(hidden, out):
    return nn.Sequential(nn.Linear(DIM_IN, hidden), nn.ReLU(), nn.Linear(hidden, out))


basis = torch.randn(12, DIM_IN)


def items(n=48):
    y = torch.randint(0, 12, (n,))
    return basis[y] + 0.8 * torch.randn(n, DIM_IN), y


teacher, classifier = encoder(96, 32), nn.Linear(32, 12)
opt = torch.optim.Adam([*teacher.parameters(), *classifier.parameters()], lr=3e-3)
for _ in range(120):
    x, y = items()
    opt.zero_grad(); F.cross_entropy(classifier(teacher(x)), y).backward(); opt.step()
teacher.eval().requires_grad_(False)

student, projection = encoder(16, 12), nn.Linear(12, 32)
queue = Queue(256, 32)
optimizer = torch.optim.AdamW([*student.parameters(), *projection.parameters()], lr=4e-3)
for step in range(150):
    x, _ = items()
    with torch.no_grad():
        key = teacher(x)
    loss = info_nce(projection(student(x)), key, queue.data)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    queue.push(F.normalize(key, dim=-1))
    if step % 50 == 0:
        print(f"step {step} info-nce {loss.item():.4f}")
with torch.no_grad():
    x, y = items(600)
    e = projection(student(x))
    acc = (classifier(e).argmax(1) == y).float().mean()
    cos = F.cosine_similarity(e, teacher(x)).mean()
print(f"teacher's classifier on student embedding {acc.item():.4f} cosine {cos.item():.4f}")
