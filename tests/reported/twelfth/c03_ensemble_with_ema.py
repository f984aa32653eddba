"""Tabular distillation from two frozen experts and a running average of the student.

Members vote with their predicted probabilities, weighted row by row by how certain each
of them is; the running average joins the committee after a short burn-in.
"""
import copy
import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

N_CLASS = 4


def mlp(width):
    return nn.Sequential(nn.Linear(10, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, N_CLASS))


def table(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10))
    s = np.stack([x[:, 0] * x[:, 1], x[:, 2] ** 2 - 1, np.sin(2 * x[:, 3]), 0.8 * x[:, 4]], 1)
    y = (s + 0.2 * rng.normal(size=s.shape)).argmax(1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def fit_expert(x, y, columns, steps=150):
    """An expert that has learnt with some of the columns blanked."""
    net, visible = mlp(48), torch.zeros(10)
    visible[columns] = 1
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        i = torch.randint(0, len(y), (128,))
        loss = F.cross_entropy(net(x[i] * visible), y[i])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval().requires_grad_(False), visible


class Committee:
    def __init__(self, experts, student, decay=0.97, burn_in=20):
        self.experts = experts
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay, self.burn_in, self.seen = decay, burn_in, 0

    @torch.no_grad()
    def update(self, student):
        self.seen += 1
        d = min(self.decay, self.seen / (self.seen + 10))
        for a, s in zip(self.average.state_dict().values(), student.state_dict().values()):
            if a.dtype.is_floating_point:
                a.mul_(d).add_(s, alpha=1 - d)
            else:
                a.copy_(s)

    @torch.no_grad()
    def __call__(self, x):
        votes = [net(x * visible).softmax(-1) for net, visible in self.experts]
        if self.seen >= self.burn_in:
            votes.append(self.average(x).softmax(-1))
        p = torch.stack(votes)
        entropy = -(p * p.clamp(min=1e-8).log()).sum(-1, keepdim=True)
        weight = (1 - entropy / math.log(N_CLASS)).clamp(min=1e-3)
        return (weight * p).sum(0) / weight.sum(0)


@torch.no_grad()
def accuracy(fn, x, y):
    return (fn(x).argmax(-1) == y).float().mean().item()


def main():
    torch.manual_seed(0)
    (x, y), test = table(1500, 1), table(800, 2)
    experts = [fit_expert(x, y, [0, 1, 2, 5, 6]), fit_expert(x, y, [2, 3, 4, 7])]
    for k, (net, visible) in enumerate(experts):
        print(f"expert {k}: accuracy {accuracy(lambda v: net(v * visible), *test):.3f}")
    student = mlp(16)
    committee = Committee(experts, student)
    opt = torch.optim.AdamW(student.parameters(), lr=6e-3)
    for step in range(1, 151):
        i = torch.randint(0, len(y), (96,))
        student.train()
        logits = student(x[i])
        soft = F.cross_entropy(logits, committee(x[i]))
        loss = 0.6 * soft + 0.4 * F.cross_entropy(logits, y[i])
        opt.zero_grad()
        loss.backward()
        opt.step()
        committee.update(student)
        if step % 50 == 0:
            student.eval()
            print(f"step {step} soft {soft.item():.3f} student {accuracy(student, *test):.3f} "
                  f"committee {accuracy(committee, *test):.3f} average {accuracy(committee.average, *test):.3f}")


if __name__ == "__main__":
    main()
