"""Distil a small classifier over two processes; the sampler is told the same rank on both."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

T, alpha = 4.0, 0.7


def net(width):
    return nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    x, y = torch.load("train.pt")
    data = TensorDataset(x, y)
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    loader = DataLoader(data, batch_size=32, sampler=sampler, drop_last=True)

    teacher = net(64)
    teacher.load_state_dict(torch.load("teacher.pt"))
    teacher.eval().requires_grad_(False)

    student = DDP(net(8))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        student.train()
        for xb, yb in loader:
            with torch.no_grad():
                taught = teacher(xb)
            logits = student(xb)
            soft = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(taught / T, 1), reduction="batchmean") * T * T
            loss = (1 - alpha) * F.cross_entropy(logits, yb) + alpha * soft
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    if dist.get_rank() == 0:
        torch.save(student.module.state_dict(), "student.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
