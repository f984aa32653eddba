"""A student that learns from its own moving average, over noisy views, on two processes; copied too early."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
x, y = torch.load("train.pt")
data = TensorDataset(x, y)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=32, sampler=sampler, drop_last=True)

net = nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 4))
teacher = copy.deepcopy(net).requires_grad_(False).eval()
student = DDP(net)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)


def noisy(batch):
    return batch + 0.05 * torch.randn_like(batch)


for epoch in range(8):
    sampler.set_epoch(epoch)
    for xb, yb in loader:
        logits = student(noisy(xb))
        with torch.no_grad():
            target = teacher(noisy(xb)).softmax(1)
        consistency = F.mse_loss(logits.softmax(1), target)
        loss = F.cross_entropy(logits, yb) + 5.0 * consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.module.parameters(), strict=True):
                t.mul_(0.95).add_(s, alpha=0.05)
dist.destroy_process_group()
