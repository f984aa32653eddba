"""Rank 0 evaluates and saves after each epoch while the other one waits."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def net(width):
    return nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


dist.init_process_group("gloo")
rank = dist.get_rank()
x, y = torch.load("train.pt")
train, val = TensorDataset(x[:448], y[:448]), TensorDataset(x[448:], y[448:])
sampler = DistributedSampler(train)
loader, held_out = DataLoader(train, 32, sampler=sampler), DataLoader(val, 64)
teacher = net(64)
teacher.load_state_dict(torch.load("teacher.pt"))
teacher.eval()
if rank == 0:
    print("teacher", accuracy(teacher, held_out))
student = DDP(net(8))
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
best = 0.0
for epoch in range(9):
    sampler.set_epoch(epoch)
    student.train()
    for xb, yb in loader:
        with torch.no_grad():
            t = teacher(xb)
        s = student(xb)
        loss = 0.1 * F.cross_entropy(s, yb)
        loss = loss + 0.9 * 16 * F.kl_div(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1), reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        score = accuracy(student.module, held_out)
        if score > best:
            best = score
            torch.save(student.module.state_dict(), "best.pt")
    dist.barrier()
dist.destroy_process_group()
