"""One teacher, two students of different families, each with its own optimizer, trained side by side."""

import copy

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

rng = np.random.default_rng(17)
torch.manual_seed(17)
CLASSES = 6
PATTERN = rng.normal(size=(CLASSES, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)


def generate(n):
    labels = rng.integers(0, CLASSES, size=n)
    pixels = PATTERN[labels] + 1.2 * rng.normal(size=(n, 3, 16, 16))
    return torch.as_tensor(pixels, dtype=torch.float32), torch.as_tensor(labels)


def batches(x, y, size, shift=True):
    order = rng.permutation(len(x))
    for start in range(0, len(x) - size + 1, size):
        take = torch.as_tensor(order[start : start + size])
        xb = x[take]
        if shift:
            xb = torch.roll(xb, shifts=tuple(rng.integers(-1, 2, size=2)), dims=(2, 3))
        yield xb, y[take]


class Conv(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=1, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)) for _ in range(depth)
        )
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks:
            x = b(x)
        return self.head(F.adaptive_avg_pool2d(F.relu(x), 2).flatten(1))


class Patches(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.mix = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 16))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        tokens = self.embed(x).flatten(2)
        tokens = self.norm((tokens + self.mix(tokens)).transpose(1, 2))
        return self.head(tokens.mean(1))


def soft_cross_entropy(student_logits, teacher_logits, t):
    """Cross entropy against soft targets: the same gradient as the KL divergence."""
    p = torch.softmax(teacher_logits / t, dim=1)
    return -(p * torch.log_softmax(student_logits / t, dim=1)).sum(1).mean() * t * t


@torch.no_grad()
def evaluate(net, x, y):
    copied = copy.deepcopy(net).eval()
    return (copied(x).argmax(1) == y).double().mean().item()


x_train, y_train = generate(576)
x_val, y_val = generate(240)

teacher = Conv(16, 3)
adam = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for _ in range(3):
    for xb, yb in batches(x_train, y_train, 48):
        adam.zero_grad()
        F.cross_entropy(teacher(xb), yb).backward()
        adam.step()
print(f"teacher {evaluate(teacher, x_val, y_val):.3f}")
teacher.eval()
for parameter in teacher.parameters():
    parameter.requires_grad = False

students = {"conv": Conv(6, 2), "patches": Patches(32)}
optimizers = {
    "conv": torch.optim.SGD(students["conv"].parameters(), lr=0.05, momentum=0.9),
    "patches": torch.optim.AdamW(students["patches"].parameters(), lr=1e-2),
}
for epoch in range(3):
    for xb, yb in batches(x_train, y_train, 48):
        answer = teacher(xb)
        for name, net in students.items():
            net.train()
            out = net(xb)
            loss = 0.3 * F.cross_entropy(out, yb) + 0.7 * soft_cross_entropy(out, answer, 2.5)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
    print(f"epoch {epoch}", {name: round(evaluate(net, x_val, y_val), 3) for name, net in students.items()})
print("final accuracy", {name: round(evaluate(net, x_val, y_val), 3) for name, net in students.items()})
