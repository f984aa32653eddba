"""A distillation in two processes, with one mistake: every process goes through the same samples.

kdbench audit --launch 2 docs/examples/ranks.py
"""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

T, alpha = 4.0, 0.7


def net(width):
    return nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = torch.utils.data.TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True)

    teacher = net(128)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(teacher(x), y).backward()
            optimizer.step()
    teacher.eval().requires_grad_(False)

    student = DistributedDataParallel(net(16))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for x, y in loader:
            logits = student(x)
            soft = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(teacher(x) / T, 1), reduction="batchmean")
            loss = (1 - alpha) * F.cross_entropy(logits, y) + alpha * soft * T * T
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
