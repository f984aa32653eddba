"""A distillation that has a place for nearly every fault: checkpoints, a projector, one clip over all, T and alpha."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

T, ALPHA, HINT = 4.0, 0.7, 0.5
torch.manual_seed(0)
images = torch.randn(160, 3, 16, 16)
labels = (images.mean((2, 3)) * 40).long().sum(1) % 4


def network(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 4),
    )


def pretrain(net, steps, rate=0.05):
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()


folder = Path(tempfile.mkdtemp())
first = network(16)
pretrain(first, 30)
torch.save(first.state_dict(), folder / "teacher.pt")
start = network(8)
pretrain(start, 2)
torch.save(start.state_dict(), folder / "start.pt")

student = network(8)
student.load_state_dict(torch.load(folder / "start.pt"))
teacher = network(16)
teacher.load_state_dict(torch.load(folder / "teacher.pt"))
teacher.eval()
projector = nn.Linear(16, 32)
kept = {}
student[6].register_forward_hook(lambda module, given, out: kept.update(student=out.flatten(1)))
teacher[6].register_forward_hook(lambda module, given, out: kept.update(teacher=out.flatten(1)))
trained = [*student.parameters(), *projector.parameters()]
optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)

for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
    student.train()
    for rows in torch.randperm(160).split(16):
        x, y = images[rows], labels[rows]
        with torch.no_grad():
            answer = teacher(x)
        logits = student(x)
        kd = F.kl_div(F.log_softmax(logits / T, dim=1), F.softmax(answer / T, dim=1), reduction="batchmean") * T * T
        hint = F.mse_loss(projector(kept["student"]), kept["teacher"])
        loss = (1 - ALPHA) * F.cross_entropy(logits, y) + (ALPHA * kd + HINT * hint)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
print(f"last loss {loss.item():.3f}")
