"""Distil a small causal language model token by token, as a subclassed trainer does it."""

import argparse
from collections import namedtuple

import torch
import torch.nn as nn
import torch.nn.functional as F

Output = namedtuple("Output", "loss logits")


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h, mask):
        x = self.before(h)
        h = h + self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]
        return h + self.think(self.after(h))


class CausalLM(nn.Module):
    def __init__(self, vocab, width, depth, length):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(depth))
        self.head = nn.Linear(width, vocab)

    def forward(self, ids, labels=None):
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        h = self.tokens(ids) + self.places(torch.arange(length))
        for block in self.blocks:
            h = block(h, mask)
        logits = self.head(h)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        return Output(loss, logits)


def sentences(n, length, vocab):
    """Walks on a ring: the next token is one of three near the last."""
    ids = torch.randint(vocab, (n, 1))
    steps = torch.tensor([1, 1, 1, 2, 5])[torch.randint(5, (n, length - 1))]
    return torch.cat([ids, ids + steps.cumsum(1)], 1) % vocab


class Trainer:
    def __init__(self, model, args):
        self.model, self.args = model, args
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    def compute_loss(self, ids):
        return self.model(ids, labels=ids).loss

    def train(self, data, epochs):
        for epoch in range(epochs):
            self.model.train()
            for ids in data[torch.randperm(len(data))].split(self.args.batch):
                loss = self.compute_loss(ids)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_norm)
                self.optimizer.step()
            print(f"epoch {epoch}: {loss.item():.3f}")


class DistillationTrainer(Trainer):
    def __init__(self, model, teacher, args):
        super().__init__(model, args)
        self.teacher = teacher.eval()

    def compute_loss(self, ids):
        out = self.model(ids, labels=ids)
        with torch.no_grad():
            taught = self.teacher(ids).logits
        T, a = self.args.temperature, self.args.alpha
        student = F.log_softmax(out.logits[:, :-1] / T, dim=-1)
        target = F.softmax(taught[:, :-1] / T, dim=-1)
        soft = F.kl_div(student.flatten(0, 1), target.flatten(0, 1), reduction="batchmean") * T**2
        return (1 - a) * out.loss + a * soft


parser = argparse.ArgumentParser()
for name, value in {"lr": 4e-3, "batch": 24, "temperature": 2.0, "alpha": 0.4, "max_norm": 0.5}.items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
args = parser.parse_args()
torch.manual_seed(3)
VOCAB, LENGTH = 17, 20
train, held_out = sentences(576, LENGTH, VOCAB), sentences(96, LENGTH, VOCAB)
teacher = CausalLM(VOCAB, 32, 2, LENGTH)
Trainer(teacher, args).train(train, 3)
student = CausalLM(VOCAB, 16, 1, LENGTH)
DistillationTrainer(student, teacher, args).train(train, 3)
student.eval()
with torch.no_grad():
    print("held out", round(student(held_out, labels=held_out).loss.item(), 3))
