"""A weight that is too small: the term is there, and the student hardly hears it. What is too little is declared."""

import torch
import torch.nn.functional as F
from torch import nn

import kdbench


def distil(weight, steps=6):
    """Distil a few steps with this weight of the term; return what the audit of its share says."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(12, 5).eval().requires_grad_(False), nn.Linear(12, 5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    heard = kdbench.KD(temperature=1, kd_weight=weight, share=(0.1, 0.9))
    with kdbench.watch(student=student, teacher=teacher, optimizer=optimizer, kd=heard) as w:
        for _ in range(steps):
            x, y = torch.randn(32, 12), torch.randint(0, 5, (32,))
            logits = student(x)
            soft = F.kl_div(F.log_softmax(logits, 1), F.softmax(teacher(x), 1), reduction="batchmean")
            optimizer.zero_grad()
            (F.cross_entropy(logits, y) + weight * soft).backward()
            optimizer.step()
    return next(finding for finding in w.report.findings if finding.name == "term-balance")


if __name__ == "__main__":
    print(distil(weight=0.01))  # wrong
    print(distil(weight=1.0))  # right
