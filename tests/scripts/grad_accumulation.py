"""Distillation with gradient accumulation: several micro-batches make one optimizer step."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Config:
    num_classes: int = 10
    dim: int = 48
    micro_batch: int = 32
    accumulate: int = 2
    updates: int = 60
    temperature: float = 5.0
    alpha: float = 0.9
    lr: float = 0.05
    max_norm: float = 4.0


class Residual(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.inner = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.1), nn.Linear(dim, dim))

    def forward(self, x):
        return x + self.inner(self.norm(x))


def residual_mlp(cfg, hidden, depth):
    blocks = [Residual(hidden) for _ in range(depth)]
    return nn.Sequential(nn.Linear(cfg.dim, hidden), *blocks, nn.Linear(hidden, cfg.num_classes))


def gaussian_blobs(cfg, n, centres):
    y = torch.randint(cfg.num_classes, (n,))
    return TensorDataset(centres[y] + 1.8 * torch.randn(n, cfg.dim), y)


def distillation_loss(cfg, student_out, teacher_out, target):
    t = cfg.temperature
    soft_target = F.softmax(teacher_out / t, dim=1)
    soft_pred = F.log_softmax(student_out / t, dim=1)
    kd = nn.KLDivLoss(reduction="batchmean")(soft_pred, soft_target) * t**2
    return cfg.alpha * kd + (1 - cfg.alpha) * F.cross_entropy(student_out, target)


def accuracy(model, dataset):
    was_training = model.training
    model.eval()
    x, y = dataset.tensors
    with torch.no_grad():
        hit = (model(x).argmax(1) == y).float().mean().item()
    model.train(was_training)
    return hit


def main():
    cfg = Config()
    torch.manual_seed(13)
    centres = torch.randn(cfg.num_classes, cfg.dim)
    train_set, test_set = gaussian_blobs(cfg, 1280, centres), gaussian_blobs(cfg, 400, centres)
    loader = DataLoader(train_set, batch_size=cfg.micro_batch, shuffle=True, drop_last=True)

    teacher = residual_mlp(cfg, hidden=128, depth=3)
    teacher_opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for x, y in itertools.chain(loader, loader):
        teacher_opt.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        teacher_opt.step()
    teacher.eval()
    print(f"teacher: {accuracy(teacher, test_set):.3f}")

    student = residual_mlp(cfg, hidden=32, depth=1)
    optimizer = torch.optim.SGD(student.parameters(), lr=cfg.lr, momentum=0.9)
    stream = itertools.chain.from_iterable(itertools.repeat(loader))
    optimizer.zero_grad()
    for micro, (x, y) in enumerate(stream, start=1):
        with torch.no_grad():
            reference = teacher(x)
        loss = distillation_loss(cfg, student(x), reference, y) / cfg.accumulate
        loss.backward()
        if micro % cfg.accumulate == 0:
            nn.utils.clip_grad_norm_(student.parameters(), cfg.max_norm)
            optimizer.step()
            optimizer.zero_grad()
            update = micro // cfg.accumulate
            if update % 20 == 0:
                print(f"update {update}: loss {loss.item() * cfg.accumulate:.3f} acc {accuracy(student, test_set):.3f}")
            if update == cfg.updates:
                break
    print(f"student: {accuracy(student, test_set):.3f}")


if __name__ == "__main__":
    main()
