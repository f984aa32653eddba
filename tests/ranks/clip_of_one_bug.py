"""Logits and features, a projector wrapped by itself and not clipped, two micro-batches to a step under no_sync."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

MICRO = 2


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        h = self.body(x)
        return self.head(h), h


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(7)
    data = TensorDataset(*torch.load("train.pt"))
    sampler = DistributedSampler(data, shuffle=True, seed=3)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    teacher = Net(64)
    saved = torch.load("teacher.pt")
    teacher.load_state_dict(names(saved))
    teacher.eval()
    student, projector = DDP(Net(10)), DDP(nn.Linear(10, 64))
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], lr=0.05, momentum=0.9)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            last = (i + 1) % MICRO == 0
            with nullcontext() if last else student.no_sync(), nullcontext() if last else projector.no_sync():
                with torch.no_grad():
                    t_logits, t_features = teacher(x)
                logits, features = student(x)
                kd = F.kl_div(F.log_softmax(logits / 3, 1), F.softmax(t_logits / 3, 1), reduction="batchmean") * 9
                loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kd + 0.1 * F.mse_loss(projector(features), t_features)
                (loss / MICRO).backward()
            if last:
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    dist.destroy_process_group()


def names(saved):
    """The teacher was saved as a Sequential: 0 linear, 1 norm, 3 head."""
    return {("head." + k[2:] if k[0] == "3" else "body." + k): v for k, v in saved.items()}


if __name__ == "__main__":
    main()
