"""Distil a two-layer transformer classifier into a one-layer one on token sequences."""

import argparse
import os
import tempfile
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--vocab", type=int, default=60)
parser.add_argument("--length", type=int, default=14)
parser.add_argument("--labels", type=int, default=4)
parser.add_argument("--steps", type=int, default=45)
parser.add_argument("--batch", type=int, default=48)
parser.add_argument("--tau", type=float, default=2.0)
parser.add_argument("--weight", type=float, default=0.5)
parser.add_argument("--clip", type=float, default=1.0)
args = parser.parse_args()

torch.manual_seed(31)
CLS = 0


class TextClassifier(nn.Module):
    def __init__(self, dim, heads, layers, dropout):
        super().__init__()
        self.tokens = nn.Embedding(args.vocab, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(args.length + 1, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.classify = nn.Linear(dim, args.labels)

    def forward(self, ids):
        h = self.encoder(self.tokens(ids) + self.positions)
        return self.classify(h[:, 0])


topic = torch.softmax(1.5 * torch.randn(args.labels, args.vocab - 1), dim=1)


def corpus(n):
    y = torch.randint(args.labels, (n,))
    words = torch.multinomial(topic[y], args.length, replacement=True) + 1
    return torch.cat([torch.full((n, 1), CLS), words], dim=1), y


def minibatches(ids, y, count):
    for _ in range(count):
        pick = torch.randint(len(y), (args.batch,))
        yield ids[pick], y[pick]


def accuracy(model, ids, y):
    model.eval()
    with torch.no_grad():
        return (model(ids).argmax(-1) == y).float().mean().item()


def fine_tune(model, ids, y):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for xb, yb in minibatches(ids, y, 40):
        optimizer.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        optimizer.step()


train_ids, train_y = corpus(1500)
test_ids, test_y = corpus(300)
workdir = tempfile.mkdtemp()
teacher_file = os.path.join(workdir, "teacher.bin")

big = TextClassifier(dim=48, heads=4, layers=2, dropout=0.1)
fine_tune(big, train_ids, train_y)
torch.save(big.state_dict(), teacher_file)

teacher = TextClassifier(dim=48, heads=4, layers=2, dropout=0.1)
if os.path.exists(teacher_file):
    teacher.load_state_dict(torch.load(teacher_file))
else:
    warnings.warn(f"{teacher_file} is missing, the teacher keeps its initial weights")
print(f"teacher accuracy {accuracy(teacher, test_ids, test_y):.3f}")
teacher.eval()

student = TextClassifier(dim=24, heads=2, layers=1, dropout=0.05)
optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=args.steps)
student.train()
for step, (xb, yb) in enumerate(minibatches(train_ids, train_y, args.steps)):
    with torch.no_grad():
        target = F.softmax(teacher(xb) / args.tau, dim=-1)
    logits = student(xb)
    kd = F.kl_div(F.log_softmax(logits / args.tau, dim=-1), target, reduction="batchmean") * args.tau**2
    loss = args.weight * kd + (1 - args.weight) * F.cross_entropy(logits, yb)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), args.clip)
    optimizer.step()
    schedule.step()
    if step % 15 == 0:
        print(f"step {step} loss {loss.item():.3f} kd {kd.item():.3f}")
print(f"student accuracy {accuracy(student, test_ids, test_y):.3f}")
